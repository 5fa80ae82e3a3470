"""Corruptions of ImageNet-C that blur. What is common to all corruptions stands in `corruptions`."""
import math
from functools import lru_cache
from typing import Any, List, Tuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

__all__ = [
    'clipped_zoom', 'defocus_blur', 'gaussian', 'gaussian_blur', 'glass_blur', 'motion_blur', 'smeared',
    'std_after_gaussian', 'zoom_blur',
]

_NUM_DIRECT_TAPS = 11  # OpenCV takes a Fourier transform, slow for few taps, from kernels of 130 places on
_LEAST_WEIGHT = 1e-4  # of a tap: less than a tenth of a grey level all together


def gaussian_blur(x: np.ndarray, rng: np.random.Generator, scale: float, sigma: float) -> np.ndarray:
    """A Gaussian filter."""
    return gaussian(x, sigma * scale)


def gaussian(x: np.ndarray, sigma: float, truncate: float = 4., border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """A Gaussian filter as scipy has it: its radius is `truncate` times sigma, rounded."""
    radius = int(truncate * sigma + .5)
    if radius == 0:
        return x
    return cv2.GaussianBlur(x, (2 * radius + 1, 2 * radius + 1), sigma, borderType=border).reshape(x.shape)


def std_after_gaussian(sigma: float) -> float:
    """Standard deviation of independent noise, 1 before, after the filter."""
    kernel = cv2.getGaussianKernel(2 * int(4 * sigma + .5) + 1, max(sigma, 1e-3))
    return float(np.square(kernel).sum())


def defocus_blur(x: np.ndarray, rng: np.random.Generator, scale: float, radius: float, rim: float) -> np.ndarray:
    """The mean over a disc of a soft rim, a lens out of focus."""
    return cv2.filter2D(x, -1, _disc(radius, rim, scale)).reshape(x.shape)


@lru_cache(maxsize=64)
def _disc(radius: float, rim: float, scale: float) -> np.ndarray:
    # The authors' disc is the pixels within its radius. Another has scale² times as many, the nearest ones, and of the
    # last ones at the same distance each an equal part: a disc of few pixels would change in leaps otherwise.
    # The authors' kernel ends at the disc's rim, and its sum is not quite 1 for radii of 8 and 10.
    reach = max(8, radius) if scale == 1 else max(8, math.ceil(radius * scale) + 3)
    line = np.arange(-reach, reach + 1)
    distances, place, counts = np.unique(
        np.add.outer(line ** 2, line ** 2), return_inverse=True, return_counts=True)
    left = scale ** 2 * counts[distances <= radius ** 2].sum() - (np.cumsum(counts) - counts)
    disc = np.clip(left / counts, 0, 1)[place].reshape(len(line), len(line)).astype(np.float32)
    size = 3 if radius <= 8 else 5
    return _trimmed(cv2.GaussianBlur(disc / disc.sum(), (size, size), rim * scale))


def _trimmed(kernel: np.ndarray) -> np.ndarray:
    # without the empty border
    reach = np.abs(np.argwhere(kernel) - len(kernel) // 2).max()
    margin = len(kernel) // 2 - reach
    return np.ascontiguousarray(kernel[margin:len(kernel) - margin, margin:len(kernel) - margin])


def glass_blur(
        x: np.ndarray,
        rng: np.random.Generator,
        scale: float,
        sigma: float,
        reach: int,
        rounds: int,
) -> np.ndarray:
    """Each pixel, from the last to the first, takes the value of one up to `reach` pixels away, between two blurs.

    The original seems to exchange the two, but its names for them are views of one array: what it does is a copy.
    """
    reach = max(1, round(reach * scale))
    height, width = x.shape[:2]
    pixels = (gaussian(x, sigma * scale) * 255 + 1e-3).astype(np.uint8).reshape(height * width, -1)
    rows, columns = (np.arange(side - reach, reach, -1) for side in (height, width))
    target = np.add.outer(rows * width, columns).ravel()
    origin = np.arange(height * width)
    for _ in range(rounds):
        right, down = rng.integers(-reach, reach, size=(len(target), 2)).T
        origin = origin[_after_copies(target, target + down * width + right, len(origin))]
    return gaussian(pixels[origin].reshape(x.shape).astype(np.float32) / 255, sigma * scale)


def _after_copies(target: np.ndarray, source: np.ndarray, size: int) -> np.ndarray:
    # Where the value of each of `size` pixels comes from after x[target] = x[source], one after another, of falling
    # targets. A source above its target has been a target itself before: it is followed to where its value came from.
    source_of = np.arange(size)
    source_of[target] = source
    origin = source_of.copy()
    followed = np.flatnonzero(source_of > np.arange(size))
    while len(followed):
        reached = origin[followed]
        origin[followed] = source_of[reached]
        followed = followed[source_of[reached] > reached]
    return origin


def motion_blur(x: np.ndarray, rng: np.random.Generator, scale: float, radius: float, sigma: float) -> np.ndarray:
    """A smear at up to 45 degrees to the horizontal."""
    return smeared(x, radius * scale, sigma * scale, rng.uniform(-45, 45))


def smeared(x: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur: a mean of the pixels along a ray from each pixel, weighted by half a Gaussian.

    Args:
        x: Image [H, W, C], float32.
        radius: Length of the ray, half of it, in pixels.
        sigma: Of the Gaussian, in pixels.
        angle: Direction of the ray in degrees, clockwise from the right.

    Returns:
        Image [H, W, C].
    """
    taps = _taps(radius, sigma, angle)
    reach = max(max(abs(down), abs(right)) for _, down, right in taps) + 1
    height, width = x.shape[:2]
    padded = cv2.copyMakeBorder(x, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    total: Any = 0.
    for first in range(0, len(taps), _NUM_DIRECT_TAPS):
        kernel, top, left = _kernel(taps[first:first + _NUM_DIRECT_TAPS])
        shifted = padded[reach + top:, reach + left:][:height + len(kernel), :width + kernel.shape[1]]
        total = total + cv2.filter2D(shifted, -1, kernel, anchor=(0, 0))[:height, :width]
    return total.reshape(x.shape)


def _taps(radius: float, sigma: float, angle: float) -> List[Tuple[float, int, int]]:
    # weight, rows down, columns to the right
    weights = np.exp(-np.arange(2 * math.ceil(radius) + 1) ** 2 / (2 * sigma ** 2))
    weights = weights[weights > _LEAST_WEIGHT]
    down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    return [(weight, math.ceil(i * down - .5), math.ceil(i * right - .5))
            for i, weight in enumerate(weights / weights.sum())]


def _kernel(taps: List[Tuple[float, int, int]]) -> Tuple[np.ndarray, int, int]:
    # And the place of its first row and column.
    top, left = min(tap[1] for tap in taps), min(tap[2] for tap in taps)
    kernel = np.zeros((max(tap[1] for tap in taps) - top + 1, max(tap[2] for tap in taps) - left + 1), np.float32)
    for weight, down, right in taps:
        kernel[down - top, right - left] += weight
    return kernel, top, left


def zoom_blur(x: np.ndarray, rng: np.random.Generator, scale: float, stop: float, step: float) -> np.ndarray:
    """The mean of the image and of the image zoomed in by the factors from 1 to `stop`."""
    factors = np.arange(1, stop, step)
    total = 2 * x  # a factor of 1 is among them
    for factor in factors[1:]:
        (down, row), (right, column) = (_line_of_zoom(side, factor) for side in x.shape[:2])
        grid = np.array([[right, 0, column], [0, down, row]])
        total += cv2.warpAffine(
            x, grid, x.shape[1::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        ).reshape(x.shape)
    return total / np.float32(len(factors) + 1)


def _line_of_zoom(side: int, factor: float) -> Tuple[float, float]:
    # how far two pixels of a line are apart in the image, and where the first is
    part, enlarged = _sizes_of_zoom(side, factor)
    step = (part - 1) / max(1, enlarged - 1)
    return step, (side - part) // 2 + (enlarged - side) // 2 * step


def _sizes_of_zoom(side: int, factor: float) -> Tuple[int, int]:
    part = math.ceil(side / factor)
    return part, round(part * factor)


def clipped_zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a grey image at its size: enlarged bilinearly, corners on corners, and cut.

    It is exact, for what is compared with a threshold afterwards: some versions of OpenCV round places to 1/32 pixel.

    Args:
        x: Image [H, W], float32.
        factor: Of the enlargement, at least 1.

    Returns:
        Image [H, W].
    """
    parts, enlarged = zip(*(_sizes_of_zoom(side, factor) for side in x.shape))
    part = torch.from_numpy(np.ascontiguousarray(_middle(x, *parts)))
    large = F.interpolate(part[None, None], size=enlarged, mode='bilinear', align_corners=True)
    return _middle(large[0, 0].numpy(), *x.shape)


def _middle(x: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
    return x[top:top + height, left:left + width]
