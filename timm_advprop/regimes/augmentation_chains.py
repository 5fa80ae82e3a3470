"""Chains of random augmentations of a batch, as AugMix and AugMax mix them.

Hendrycks et al., *AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty*, ICLR 2020,
arXiv:1912.02781. The operations are those that share nothing with the corruptions of ImageNet-C, with the magnitudes of
the authors' code (github.com/google-research/augmix). Images of a batch that draw the same operation pass it together,
each with a magnitude of its own.
"""
from dataclasses import dataclass
from typing import Callable, Dict, Optional

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import autocontrast, equalize

from ..errors import InputError
from ..settings import Settings, setting

__all__ = ['OPERATIONS', 'ChainSettings', 'augmented_chains']

_RANDOM_DEPTH = 3  # the deepest chain where the depth is drawn
_LEAST_LEVEL = 0.1  # of a magnitude, of 10

Operation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _depth_problem(depth: int) -> Optional[str]:
    return 'must be at least 1, or -1 for 1 to 3 at random' if depth == 0 else None


@dataclass(frozen=True, kw_only=True)
class ChainSettings(Settings):
    """Settings of chains of augmentations.

    Raises:
        ValueError: A setting is out of its range.
    """
    width: int = setting(3, 'number of chains that are mixed', low=1)
    depth: int = setting(-1, 'augmentations in a chain; -1: 1 to 3 at random', low=-1, check=_depth_problem)
    severity: float = setting(3., 'highest magnitude of an augmentation, of 10', low=_LEAST_LEVEL, high=10)

    def describe_chains(self) -> str:
        """The chains in a few words."""
        depth = f'1–{_RANDOM_DEPTH}' if self.depth == -1 else f'{self.depth}'
        return f'{self.width} chains of depth {depth}, severity {self.severity:g}'


@torch.no_grad()
def augmented_chains(pixels: torch.Tensor, settings: ChainSettings) -> torch.Tensor:
    """Augment each image by several chains of random operations.

    Operations and magnitudes are drawn by torch's generator of the CPU, so that no step waits for a device.

    Args:
        pixels: Images [N, C, H, W] of 1 or 3 channels, in 0–1, float32 or float64.
        settings: How many chains, how deep and how strong.

    Returns:
        Images [N, width, C, H, W] in 0–1.

    Raises:
        InputError: They have other channels.
    """
    if pixels.shape[1] not in (1, 3):
        raise InputError('Augmentation chains (augmix, augmax) are for images of 1 or 3 channels, got '
                         f'{pixels.shape[1]}.')
    count, width = len(pixels), settings.width
    images = pixels.repeat_interleave(width, dim=0)
    if settings.depth == -1:
        depths = torch.randint(1, _RANDOM_DEPTH + 1, (len(images),))
    else:
        depths = torch.full((len(images),), settings.depth)
    with torch.autocast(pixels.device.type, enabled=False):  # coordinates of pixels need their digits
        for step in range(int(depths.max()) if len(depths) else 0):
            _augment(images, depths > step, settings.severity)
    return images.view(count, width, *pixels.shape[1:])


def _augment(images: torch.Tensor, chosen: torch.Tensor, severity: float) -> None:
    # In place: a random operation on each image that is chosen.
    drawn = torch.randint(len(OPERATIONS), (len(images),))
    levels = torch.empty(len(images), dtype=images.dtype).uniform_(_LEAST_LEVEL, severity) / 10
    signs = torch.randint(2, (len(images),)).to(images.dtype) * 2 - 1
    for number, operation in enumerate(OPERATIONS.values()):
        places = (chosen & (drawn == number)).nonzero().flatten()
        if len(places):
            level, sign = (values[places].to(images.device, non_blocking=True) for values in (levels, signs))
            places = places.to(images.device, non_blocking=True)
            images[places] = operation(images[places], level, sign)


def _autocontrast(pixels: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return autocontrast(pixels)


def _equalize(pixels: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return equalize(_grey_levels(pixels).to(torch.uint8)).to(pixels.dtype) / 255


def _posterize(pixels: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    step = 2 ** (4 + _per_image((4 * level).floor()))  # 4 bits or fewer are left
    return (_grey_levels(pixels) / step).floor() * step / 255


def _solarize(pixels: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    threshold = 256 - _per_image((256 * level).floor())
    return torch.where(_grey_levels(pixels) >= threshold, 1 - pixels, pixels)


def _rotate(pixels: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    angle = (sign * (30 * level).floor()).deg2rad()
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    height, width = pixels.shape[-2:]
    # about the middle, which is the origin of `affine_grid`; a unit there is half a side
    rows = (cos, -sin * height / width, none), (sin * width / height, cos, none)
    return _resampled(pixels, torch.stack([torch.stack(row, dim=1) for row in rows], dim=1))


def _shear_x(pixels: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    # by the distance from the upper edge
    slope = 0.3 * level * sign * pixels.shape[-2] / pixels.shape[-1]
    return _moved(pixels, {(0, 1): slope, (0, 2): slope})


def _shear_y(pixels: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    slope = 0.3 * level * sign * pixels.shape[-1] / pixels.shape[-2]
    return _moved(pixels, {(1, 0): slope, (1, 2): slope})


def _translate_x(pixels: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return _moved(pixels, {(0, 2): _whole_pixels(level, sign, pixels.shape[-1])})


def _translate_y(pixels: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return _moved(pixels, {(1, 2): _whole_pixels(level, sign, pixels.shape[-2])})


OPERATIONS: Dict[str, Operation] = {
    'autocontrast': _autocontrast, 'equalize': _equalize, 'posterize': _posterize, 'rotate': _rotate,
    'solarize': _solarize, 'shear_x': _shear_x, 'shear_y': _shear_y, 'translate_x': _translate_x,
    'translate_y': _translate_y,
}


def _grey_levels(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels * 255).round()


def _whole_pixels(level: torch.Tensor, sign: torch.Tensor, side: int) -> torch.Tensor:
    # up to a third of the side, in the units of `affine_grid`
    return sign * (level * side / 3).floor() * 2 / side


def _moved(pixels: torch.Tensor, entries: Dict[tuple, torch.Tensor]) -> torch.Tensor:
    theta = torch.eye(2, 3, dtype=pixels.dtype, device=pixels.device).repeat(len(pixels), 1, 1)
    for (row, column), value in entries.items():
        theta[:, row, column] = value
    return _resampled(pixels, theta)


def _resampled(pixels: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    # black comes in from outside
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode='bilinear', padding_mode='zeros', align_corners=False)


def _per_image(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)
