"""Images for tests that are drawn by formulas: smooth shades, edges and texture, as photographs have them."""
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)
def drawn_image(height, width=None, seed=0):
    """An image uint8 [H, W, 3], the same with every version of numpy, that is not to be written to."""
    width = width or height
    random = np.random.RandomState(seed)
    down, right = np.mgrid[:height, :width]
    down, right = down / height, right / width
    image = np.stack([_shades(random, down, right) for _ in range(3)], axis=2)
    for _ in range(6):
        center, radius, color = random.uniform(0, 1, 2), random.uniform(.08, .3), random.uniform(0, 1, 3)
        image[np.hypot(down - center[0], right - center[1]) < radius] = color
    grain = random.uniform(-.06, .06, (height, width, 1)) * (right > .5)[..., None]
    stripes = .1 * (np.sin(40 * down) > 0)[..., None] * (down > .7)[..., None]
    image = np.uint8(np.rint(255 * np.clip(image + grain + stripes, 0, 1)))
    image.flags.writeable = False
    return image


def _shades(random, down, right):
    waves = sum(random.uniform(-1, 1) / (1 + i + j) * np.cos(np.pi * (i * down + random.uniform()) + np.pi * j * right)
                for i in range(4) for j in range(4))
    return .5 + .45 * waves / np.abs(waves).max()
