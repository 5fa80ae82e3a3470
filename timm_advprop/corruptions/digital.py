"""Corruptions of ImageNet-C that are digital. What is common to all corruptions stands in `corruptions`."""
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from .blurs import gaussian, std_after_gaussian

__all__ = [
    'SMALLEST_VALUE', 'contrast', 'elastic_transform', 'jpeg_compression', 'pixelate', 'planes_of', 'saturate',
]

SMALLEST_VALUE = np.float32(1e-6)  # to divide by where a pixel is black, or grey


def contrast(x: np.ndarray, rng: np.random.Generator, scale: float, kept: float) -> np.ndarray:
    """Differences to the mean of each channel, times `kept`."""
    means = np.array(cv2.mean(x)[:x.shape[2]], dtype=np.float32)
    return x * np.float32(kept) + means * np.float32(1 - kept)


def saturate(x: np.ndarray, rng: np.random.Generator, scale: float, factor: float, added: float) -> np.ndarray:
    """Another saturation in HSV space, at the same hue and value. Where there is no hue, it is red."""
    planes = planes_of(x)
    value = planes.max(axis=0)
    below = value - planes
    spread = below.max(axis=0)
    saturation = np.minimum(spread / np.maximum(value, SMALLEST_VALUE) * np.float32(factor) + np.float32(added), 1)
    below *= value * saturation / np.maximum(spread, SMALLEST_VALUE)
    below[1:] += np.where(spread > 0, 0, value * saturation)
    return (value - below).transpose(1, 2, 0)


def planes_of(x: np.ndarray) -> np.ndarray:
    """The channels of an image [H, W, C], one after another: [C, H, W]. They are faster to compare with each other."""
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def jpeg_compression(x: np.ndarray, rng: np.random.Generator, scale: float, quality: int) -> np.ndarray:
    """To JPEG and back."""
    _, file = cv2.imencode('.jpg', _pixels(x)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    pixels = cv2.imdecode(file, cv2.IMREAD_COLOR if x.shape[2] == 3 else cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    return pixels.reshape(x.shape)[..., ::-1].astype(np.float32) / 255


def pixelate(x: np.ndarray, rng: np.random.Generator, scale: float, kept: float) -> np.ndarray:
    """To `kept` times the size and back, pixels being squares."""
    height, width = x.shape[:2]
    image = Image.fromarray(_pixels(x).squeeze(2) if x.shape[2] == 1 else _pixels(x))
    image = image.resize((max(1, int(width * kept)), max(1, int(height * kept))), Image.Resampling.BOX)
    image = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32).reshape(x.shape) / 255


def _pixels(x: np.ndarray) -> np.ndarray:
    return np.rint(x * 255).astype(np.uint8)


def elastic_transform(
        x: np.ndarray,
        rng: np.random.Generator,
        scale: float,
        amplitude: float,
        sigma: float,
        reach: float,
) -> np.ndarray:
    """Three points move by up to `reach`, and the image with them; then each pixel by smooth noise."""
    height, width = x.shape[:2]
    middle, side = np.array([width // 2, height // 2]), min(height, width) // 3
    points = (middle + side * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = points + rng.uniform(-reach * scale, reach * scale, size=(3, 2)).astype(np.float32)
    x = cv2.warpAffine(x, cv2.getAffineTransform(points, moved), (width, height),
                       borderMode=cv2.BORDER_REFLECT_101).reshape(x.shape)
    if amplitude == 0:
        return x
    right, down = (_smooth(2 * rng.random((height, width), dtype=np.float32) - 1, sigma * scale) for _ in range(2))
    amplitude *= scale * std_after_gaussian(sigma) / std_after_gaussian(sigma * scale)
    right, down = (side * np.float32(amplitude) for side in (right, down))
    return cv2.remap(x, right + np.arange(width, dtype=np.float32), down + np.arange(height, dtype=np.float32)[:, None],
                     cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT).reshape(x.shape)


def _smooth(noise: np.ndarray, sigma: float) -> np.ndarray:
    # A Gaussian filter, its border reflected; a product of matrices where it is about as wide as the image.
    if 6 * sigma < min(noise.shape):
        return gaussian(noise, sigma, truncate=3, border=cv2.BORDER_REFLECT)
    down, right = (_gaussian_matrix(side, sigma) for side in noise.shape)
    return down @ noise @ right.T


@lru_cache(maxsize=8)
def _gaussian_matrix(side: int, sigma: float) -> np.ndarray:
    # the filter of a line, [side, side]
    reach = np.arange(-int(3 * sigma + .5), int(3 * sigma + .5) + 1)
    weights = np.exp(-reach ** 2 / (2 * sigma ** 2))
    source = np.add.outer(np.arange(side), reach) % (2 * side)
    source = np.minimum(source, 2 * side - 1 - source)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], source), weights / weights.sum())
    return matrix.astype(np.float32)
