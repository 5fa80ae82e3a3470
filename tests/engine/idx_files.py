"""Small sources of Fashion-MNIST: idx.gz files."""
import gzip
import struct

import numpy as np

DATA_TYPE_BYTE = 8
LABELS = np.array([7, 2, 1, 0, 4, 9, 5, 8, 6, 3, 3, 9, 0, 0], np.uint8)


def gzip_bytes(content):
    """Without the time: the parameters' names must not change from one collection to the next."""
    return gzip.compress(content, mtime=0)


def idx_bytes(array, data_type=DATA_TYPE_BYTE):
    return bytes((0, 0, data_type, array.ndim)) + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


def images_like(labels, seed):
    return np.random.RandomState(seed).randint(0, 256, (len(labels), 5, 4)).astype(np.uint8)


def write_source(folder, labels=LABELS):
    """Training images with these labels, and ten test images; of the seeds 0 and 1."""
    folder.mkdir()
    for seed, (prefix, part) in enumerate((('train', labels), ('t10k', LABELS[:10]))):
        (folder / f'{prefix}-images-idx3-ubyte.gz').write_bytes(gzip_bytes(idx_bytes(images_like(part, seed))))
        (folder / f'{prefix}-labels-idx1-ubyte.gz').write_bytes(gzip_bytes(idx_bytes(part)))
    return folder
