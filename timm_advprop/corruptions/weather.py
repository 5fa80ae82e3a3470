"""Corruptions of ImageNet-C that are weather. What is common to all corruptions stands in `corruptions`."""
import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Tuple

import cv2
import numpy as np

from .blurs import clipped_zoom, gaussian, smeared, std_after_gaussian
from .digital import SMALLEST_VALUE, planes_of

__all__ = ['brightness', 'fog', 'frost', 'frost_textures', 'snow', 'spatter']

_NUM_TEXTURES = 5
_WATER, _MUD = (np.array(color, dtype=np.float32) / 255 for color in ((175, 238, 238), (63, 42, 20)))  # RGB


def brightness(x: np.ndarray, rng: np.random.Generator, scale: float, added: float) -> np.ndarray:
    """A higher value in HSV space, at the same hue and saturation: all channels times the same factor."""
    planes = planes_of(x)
    value = planes.max(axis=0)
    brighter = np.minimum(value + np.float32(added), 1)
    return np.where(value > 0, planes * (brighter / np.maximum(value, SMALLEST_VALUE)), brighter).transpose(1, 2, 0)


def fog(x: np.ndarray, rng: np.random.Generator, scale: float, strength: float, decay: float, span: int) -> np.ndarray:
    """A plasma fractal on top, then as dark as before. The fractal covers a square a little wider than the image."""
    height, width = x.shape[:2]
    span = round(span * scale * max(height, width) / min(height, width))
    size = 2 ** math.ceil(math.log2(span))
    layer = _plasma(rng, size, decay)
    if size != span:
        layer = cv2.resize(layer, (span, span), interpolation=cv2.INTER_AREA)
    brightest = x.max()
    return (x + _grey(strength * layer[:height, :width], x.shape[2])) * (brightest / (brightest + np.float32(strength)))


def _grey(plane: np.ndarray, channels: int = 3) -> np.ndarray:
    # [H, W] in all channels of an image: faster to compute with than to broadcast
    return cv2.merge([plane] * channels).reshape(*plane.shape, channels)


def _plasma(rng: np.random.Generator, size: int, decay: float) -> np.ndarray:
    # The diamond-square algorithm on a torus, from one corner on: each step halves the distance of the points, the
    # middles of squares being the mean of their corners, those of edges the mean of four neighbours, and noise.
    noise = rng.random(size * size - 1, dtype=np.float32)
    noise -= np.float32(.5)
    height, amplitude, first = np.zeros((1, 1), np.float32), 2e4, 0  # only relative amplitudes matter
    while len(height) < size:
        num = len(height)
        middles, beside, below = (amplitude * noise[first:first + 3 * num * num]).reshape(3, num, num)
        finer = np.empty((2 * num, 2 * num), np.float32)
        corners = cv2.copyMakeBorder(height, 0, 1, 0, 1, cv2.BORDER_WRAP)
        middles += _pairs(_pairs(corners, 0), 1) / 4
        around = cv2.copyMakeBorder(middles, 1, 0, 1, 0, cv2.BORDER_WRAP)
        beside += (_pairs(around[:, 1:], 0) + _pairs(corners[:-1], 1)) / 4
        below += (_pairs(around[1:], 1) + _pairs(corners[:, :-1], 0)) / 4
        finer[::2, ::2], finer[1::2, 1::2], finer[1::2, ::2], finer[::2, 1::2] = height, middles, below, beside
        height, amplitude, first = finer, amplitude / decay ** 2, first + 3 * num * num
    height -= height.min()
    return height / height.max()


def _pairs(grid: np.ndarray, axis: int) -> np.ndarray:
    # sums of neighbours
    return grid[:-1] + grid[1:] if axis == 0 else grid[:, :-1] + grid[:, 1:]


def frost(
        x: np.ndarray,
        rng: np.random.Generator,
        scale: float,
        image_weight: float,
        frost_weight: float,
        zoom: float,
) -> np.ndarray:
    """A part of a photograph of frost, added. Where the image is larger than the photograph, that is enlarged."""
    height, width = x.shape[:2]
    texture = _texture(int(rng.integers(_NUM_TEXTURES)), zoom * scale, height, width)
    top, left = (int(rng.integers(there - needed)) for there, needed in zip(texture.shape, (height, width)))
    layer = texture[top:top + height, left:left + width].astype(np.float32)
    layer *= np.float32(frost_weight / 255)
    layer += x * np.float32(image_weight)
    return layer


@lru_cache(maxsize=8)
def _texture(index: int, zoom: float, height: int, width: int) -> np.ndarray:
    # at least a pixel higher and wider than the image
    texture = frost_textures()[index]
    zoom = max(zoom, (height + 2) / texture.shape[0], (width + 2) / texture.shape[1])
    return texture if zoom == 1 else cv2.resize(texture, (0, 0), fx=zoom, fy=zoom)


@lru_cache(maxsize=1)
def frost_textures() -> Tuple[np.ndarray, ...]:
    """Photographs of frost [H, W, 3], RGB, the first five of ImageNet-C's, of the package torch-uncertainty-assets.

    Raises:
        ImportError: The package is not there.
    """
    package = find_spec('torch_uncertainty_assets')
    if package is None:
        raise ImportError('torch-uncertainty-assets is not installed.')
    folder = Path(package.submodule_search_locations[0], 'frost')  # pyright: ignore[reportOptionalSubscript]
    files = [str(folder / f'frost{number}.jpg') for number in range(1, _NUM_TEXTURES + 1)]
    return tuple(cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB) for file in files)  # pyright: ignore[reportCallIssue, reportArgumentType]


def snow(
        x: np.ndarray,
        rng: np.random.Generator,
        scale: float,
        mean: float,
        std: float,
        zoom: float,
        threshold: float,
        radius: float,
        sigma: float,
        kept: float,
) -> np.ndarray:
    """Flakes, which are enlarged normal noise above a threshold, smeared downwards, on a whitened image."""
    layer = rng.standard_normal(x.shape[:2], dtype=np.float32) * np.float32(std) + np.float32(mean)
    layer = clipped_zoom(layer, max(1., zoom * scale))
    layer = np.floor(np.where(layer < threshold, 0, np.minimum(layer, 1) * np.float32(255)))
    layer = smeared(layer, radius * scale, sigma * scale, rng.uniform(-135, -45))
    layer = np.floor(layer + np.float32(1e-3)) / np.float32(255)  # an image of whole levels, with the authors
    whitened = _grey(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) * np.float32(1.5) + np.float32(.5))
    return x * np.float32(kept) + np.maximum(x, whitened) * np.float32(1 - kept) + _grey(layer + layer[::-1, ::-1])


def spatter(
        x: np.ndarray,
        rng: np.random.Generator,
        scale: float,
        mean: float,
        std: float,
        sigma: float,
        threshold: float,
        amount: float,
        liquid: str,
) -> np.ndarray:
    """Drops of water or of mud where smooth noise is above a threshold."""
    std *= std_after_gaussian(sigma) / std_after_gaussian(sigma * scale)  # as many drops at every scale
    layer = rng.standard_normal(x.shape[:2], dtype=np.float32) * np.float32(std) + np.float32(mean)
    layer = gaussian(layer, sigma * scale)
    layer[layer < threshold] = 0
    if liquid == 'water':
        light = _refraction(layer) * np.float32(amount)
        return x + cv2.merge([light * value for value in _WATER])
    cover = gaussian((layer > threshold).astype(np.float32), amount * scale)
    cover[cover < .8] = 0
    return x * _grey(1 - cover) + cv2.merge([cover * value for value in _MUD])


def _refraction(layer: np.ndarray) -> np.ndarray:
    # Light in drops [H, W], from 0 to 1: by the distance from their edges, embossed.
    layer = (np.minimum(layer, 1) * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    embossed = cv2.filter2D(distance, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    light = layer * cv2.blur(embossed, (3, 3)).astype(np.float32)
    return light / max(light.max(), 1)
