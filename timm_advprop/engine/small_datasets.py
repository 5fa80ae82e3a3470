"""Small real data sets as image folders: digits and Fashion-MNIST, grey images at their native size."""
import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, Dict, Optional, Union

import numpy as np

from ..errors import InputError
from .image_folder import Split, shuffled_groups, write_folder

__all__ = ['FASHION_MNIST_SOURCE', 'write_digits', 'write_fashion_mnist']

FASHION_MNIST_SOURCE = '/usr/share/datasets/fashion-mnist'  # of Debian's package dataset-fashion-mnist

_DIGIT_CLASSES = tuple('0123456789')
_FASHION_CLASSES = (
    '0_t-shirt_top', '1_trouser', '2_pullover', '3_dress', '4_coat', '5_sandal', '6_shirt', '7_sneaker', '8_bag',
    '9_ankle_boot',
)
_VALIDATION_FRACTION = 0.2
_IDX_UNSIGNED_BYTE = 8


def write_digits(folder: Union[str, Path]) -> Dict[str, int]:
    """Write scikit-learn's 1797 handwritten digits, 8×8 pixels, as an image folder.

    The 17 grey levels become 0–255. A fifth of each class is for validation, the same images on every machine.

    Args:
        folder: Folder to write. It appears complete or not at all; one that holds this data set already is left as it
            is.

    Returns:
        Number of images of each split, `'train'` and `'validation'`.

    Raises:
        InputError: scikit-learn is missing, the folder holds something else, or it cannot be written.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError('The digits come with scikit-learn: pip install \'timm-advprop[data]\'.') from error
    digits: Any = load_digits()
    images = ((digits.images.astype(int) * 255 + 8) // 16).astype(np.uint8)
    split = Split(images, digits.target, np.arange(len(images)))
    held_out = [members[:round(len(members) * _VALIDATION_FRACTION)] for members in shuffled_groups(split.labels)]
    validation = np.sort(np.concatenate(held_out))
    train = np.setdiff1d(split.positions, validation)
    return write_folder(folder, dict(train=split.part(train), validation=split.part(validation)), _DIGIT_CLASSES)


def write_fashion_mnist(
        folder: Union[str, Path],
        source: Union[str, Path] = FASHION_MNIST_SOURCE,
        num_train: Optional[int] = None,
        num_holdout: int = 0,
        padding: int = 0,
) -> Dict[str, int]:
    """Write Fashion-MNIST, 28×28 pixels, as an image folder: the official training set, the test set as validation.

    Args:
        folder: Folder to write. It appears complete or not at all; one that holds this data set already is left as it
            is.
        source: Folder of the four idx.gz files, by default where Debian's package `dataset-fashion-mnist` puts them.
        num_train: Number of images of the training set to take, as many of each class and the same on every machine;
            all that are not held out by default.
        num_holdout: Number of other images of the training set to write as a split `'holdout'`.
        padding: Width of a black border around training images, in pixels: random crops of 28 × 28 pixels, which timm
            makes where `scale` is (28 / (28 + 2 · padding))², shift them.

    Returns:
        Number of images of each split, `'train'`, `'validation'` and, where there is one, `'holdout'`.

    Raises:
        InputError: A file is missing or damaged, the folder holds something else, it cannot be written, or there are
            not so many images of each class.
    """
    source = Path(source)
    if padding < 0:
        raise InputError(f'A border is at least 0 pixels wide, got {padding}.')
    if not source.is_dir():
        raise InputError(f'No folder {source}. Install Debian\'s package dataset-fashion-mnist, or name the folder of '
                         f'the idx.gz files with --source.')
    splits = {name: _read_idx_split(source, prefix) for name, prefix in (('train', 'train'), ('validation', 't10k'))}
    if num_train is not None or num_holdout:
        splits.update(_balanced_parts(splits['train'], num_train, num_holdout))
    splits['train'] = _padded(splits['train'], padding)
    return write_folder(folder, splits, _FASHION_CLASSES)


def _padded(split: Split, width: int) -> Split:
    return split._replace(images=np.pad(split.images, ((0, 0), (width, width), (width, width))))


def _balanced_parts(split: Split, num_train: Optional[int], num_holdout: int) -> Dict[str, Split]:
    # As many images of each class, drawn at random. Held-out images come first: they do not depend on num_train.
    of_class = shuffled_groups(split.labels)
    num_classes, smallest = len(of_class), min(map(len, of_class))
    num_train = num_classes * smallest - num_holdout if num_train is None else num_train
    for name, number in (('training', num_train), ('held-out', num_holdout)):
        if number < 0 or number % num_classes:
            raise InputError(f'The number of {name} images must be a multiple of {num_classes}, got {number}.')
    held, end = num_holdout // num_classes, (num_holdout + num_train) // num_classes
    if num_train == 0 or end > smallest:
        raise InputError(f'Cannot take {num_train} training and {num_holdout} held-out images: each class has '
                         f'{smallest}.')
    parts = dict(train=slice(held, end), **(dict(holdout=slice(held)) if held else {}))
    return {name: split.part(np.sort(np.concatenate([members[part] for members in of_class])))
            for name, part in parts.items()}


def _read_idx_split(source: Path, prefix: str) -> Split:
    images = _read_idx(source / f'{prefix}-images-idx3-ubyte.gz', num_dims=3)
    labels = _read_idx(source / f'{prefix}-labels-idx1-ubyte.gz', num_dims=1)
    if len(images) != len(labels):
        raise InputError(f'{source} has {len(images)} {prefix} images, but {len(labels)} labels.')
    if not np.array_equal(np.unique(labels), np.arange(len(_FASHION_CLASSES))):
        raise InputError(f'The {prefix} labels in {source} are not the classes 0 to {len(_FASHION_CLASSES) - 1}.')
    return Split(images, labels, np.arange(len(labels)))


def _read_idx(path: Path, num_dims: int) -> np.ndarray:
    content = _read_gz(path)
    header = 4 + 4 * num_dims
    if content[:4] != bytes((0, 0, _IDX_UNSIGNED_BYTE, num_dims)) or len(content) < header:
        raise InputError(f'{path} is not an idx file of {num_dims}-dimensional bytes: it starts with '
                         f'{content[:4].hex() or "nothing"}.')
    shape = struct.unpack(f'>{num_dims}I', content[4:header])
    expected, found = math.prod(shape), len(content) - header
    if found != expected or not expected:
        raise InputError(f'{path} holds {found} bytes of data, its header announces '
                         f'{" × ".join(map(str, shape))} = {expected}.')
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_gz(path: Path) -> bytes:
    try:
        with gzip.open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError as error:
        raise InputError(f'No file {path}.') from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f'{path} is damaged or cannot be read: {error}.') from error
