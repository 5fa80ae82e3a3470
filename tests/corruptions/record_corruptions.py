"""Records what the authors' corruptions make of drawn images, at 32, 64 and 224 px, in recorded_corruptions.npz.

    python -m tests.corruptions.record_corruptions PATH/TO/robustness

PATH is a checkout of github.com/hendrycks/robustness. Its scripts are old; they run with Python 3.11, numpy 1.26,
scipy 1.11, scikit-image 0.19, opencv-python-headless 4.10, Pillow 10, Wand 0.7 on ImageMagick 6 (Debian's
libmagickwand-6.q16-dev) and torch-uncertainty-assets, which has five of the frost textures. Of the scripts only the
functions are run, with numpy's legacy generator seeded by `seed_of`. `sk.util.random_noise` (impulse noise) draws from
a generator of its own, so that of it only the statistics can be compared.
"""
import os
import sys
import tempfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from tests.corruptions.drawn_images import drawn_image

RECORD = Path(__file__).with_name('recorded_corruptions.npz')
SCRIPTS = {32: 'make_cifar_c.py', 64: 'make_tinyimagenet_c.py', 224: 'make_imagenet_c.py'}
NAMES = (
    'gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'snow',
    'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression', 'speckle_noise',
    'gaussian_blur', 'spatter', 'saturate',
)
NUM_PIXELS = 160


def seed_of(size, severity):
    """Seed of the draws for a size and a severity."""
    return 1000 * severity + size


def places_of(size):
    """Places of the recorded pixels in a flattened image."""
    return np.random.RandomState(size).choice(size * size, NUM_PIXELS, replace=False)


def checksum(image):
    """Of an image's pixels."""
    return zlib.crc32(np.ascontiguousarray(image).tobytes())


def _functions_of(script):
    # what stands between the authors' headings, without the programs around it
    source = script.read_text()
    first, last = (source.index(f'# /////////////// {name}') for name in ('Distortion Helpers', 'End Distortions'))
    source = source[first:last]
    names = {'np': np}
    exec(compile(source, str(script), 'exec'), names)
    return names


def _write_textures(folder):
    textures = Path(find_spec('torch_uncertainty_assets').submodule_search_locations[0], 'frost')
    for number in range(1, 6):
        texture = textures / f'frost{number}.jpg'
        if number > 3:
            Path(folder, texture.name).write_bytes(texture.read_bytes())
        else:
            Image.open(texture).save(Path(folder, f'frost{number}.png'))


def _record(checkout):
    record = {'names': np.array(NAMES)}
    for size, script in SCRIPTS.items():
        functions = _functions_of(Path(checkout, 'ImageNet-C/create_c', script))
        image, places = drawn_image(size), places_of(size)
        pixels = np.zeros((len(NAMES), 5, NUM_PIXELS, 3), np.uint8)
        means = np.zeros((len(NAMES), 5, 3), np.float32)
        for i, name in enumerate(NAMES):
            for severity in range(1, 6):
                np.random.seed(seed_of(size, severity))
                result = np.uint8(functions[name](Image.fromarray(image), severity))
                pixels[i, severity - 1] = result.reshape(-1, 3)[places]
                means[i, severity - 1] = result.mean(axis=(0, 1))
        record.update({f'pixels_{size}': pixels, f'means_{size}': means, f'checksum_{size}': checksum(image)})
    return record


if __name__ == '__main__':
    path = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        _write_textures(folder)
        os.chdir(folder)  # where the authors' script looks for them
        recorded = _record(path)
    np.savez_compressed(RECORD, **recorded)
