"""From 0–255 pixels to the units of normalised images: here, once."""
import logging
from dataclasses import dataclass, replace
from typing import Any, Mapping, Optional, Sequence, Tuple, TypeVar

import torch
import torch.nn as nn

from ..attacks import limits, per_channel, widened
from ..settings import Settings
from .source import Source

__all__ = ['PixelSource', 'normalisation_of', 'warn_of_pixels']

_logger = logging.getLogger(__name__)

Channels = Tuple[float, ...]
_Self = TypeVar('_Self', bound='PixelSource')


@dataclass(frozen=True, kw_only=True)
class PixelSource(Settings, Source):
    """A source whose strength is given in pixels.

    Args:
        mean: Mean of each channel that images are normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
    """
    mean: Optional[Sequence[float]] = None
    std: Optional[Sequence[float]] = None

    def __post_init__(self) -> None:
        for name in ('mean', 'std'):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _as_channels(getattr(self, name)))
        super().__post_init__()
        _check_normalisation(self.mean, self.std)

    def normalised_by(self: _Self, mean: Sequence[float], std: Sequence[float]) -> _Self:
        return replace(self, mean=self.mean or tuple(mean), std=self.std or tuple(std))

    def normalised_for(self: _Self, model: nn.Module) -> _Self:
        """The source for the images of a model, where it is not known yet how they are normalised."""
        return self if self.mean and self.std else self.normalised_by(*normalisation_of(model, self.mean, self.std))

    def normalised(self, pixels: float) -> Channels:
        """A length in pixels in the units of images, for each channel."""
        return tuple(pixels / 255 / std for std in self._normalisation[1])

    @property
    def _normalisation(self) -> Tuple[Sequence[float], Sequence[float]]:
        assert self.mean is not None and self.std is not None  # see normalised_by
        return self.mean, self.std

    @property
    def bounds(self) -> Tuple[Channels, Channels]:
        """The lowest and the highest pixel in the units of images, for each channel."""
        low, high = (tuple((edge - mean) / std for mean, std in zip(*self._normalisation)) for edge in (0, 1))
        return low, high

    def in_pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images [N, C, H, W] as pixels in 0–1, of 32 bits or more; values out of the range are clamped."""
        images = widened(images)
        mean, std = (per_channel(values, images) for values in self._normalisation)
        return (images * std + mean).clamp(0, 1)

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [N, C, H, W] in 0–1 as normalised images."""
        mean, std = (per_channel(values, pixels) for values in self._normalisation)
        return (pixels - mean) / std

    def in_range_of(self, images: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """What was made of images, in their type and in the range of pixels.

        Where images leave the range already (random erasing) it is wider: values may stay where they are.

        Args:
            images: Images [N, C, H, W], normalised.
            made: Images [N, C, H, W], normalised.
        """
        return made.to(images.dtype).clamp(*limits(images, self.bounds))


def normalisation_of(
        model: nn.Module,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
) -> Tuple[Channels, Channels]:
    """Mean and std of a model's inputs: those given, or the model's own `pretrained_cfg`.

    Args:
        model: The model.
        mean: Mean of each channel, in 0–1.
        std: Standard deviation of each channel, in 0–1.

    Raises:
        ValueError: Neither given nor known from the model, or no normalisation.
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    channels = getattr(model, 'in_chans', None)
    mean = mean if mean is not None else _for_channels(cfg.get('mean'), channels)
    std = std if std is not None else _for_channels(cfg.get('std'), channels)
    if mean is None or std is None:
        raise ValueError(f'{type(model).__name__} does not say how its inputs are normalised: pass mean and std.')
    mean, std = _as_channels(mean), _as_channels(std)
    _check_normalisation(mean, std)
    return mean, std


def _as_channels(values: Sequence[float]) -> Channels:
    # of a list, an array or a tensor
    return tuple(map(float, values))


def _check_normalisation(mean: Optional[Sequence[float]], std: Optional[Sequence[float]]) -> None:
    if std is not None and not all(value > 0 for value in std) or mean and std and len(mean) != len(std):
        raise ValueError(f'mean and std need one value for each channel, std above 0; got {mean} and {std}.')


def warn_of_pixels(task: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a task look at its first batch, and warn where its images cannot be normalised, as those in 0–255.

    Args:
        task: A module of images [N, C, H, W] and targets.
        mean: Mean of each channel that images are normalised by, in 0–1.
        std: Standard deviation of each channel, in 0–1.
    """
    task.register_forward_pre_hook(_FirstBatch(mean, std), with_kwargs=True)  # pyright: ignore[reportArgumentType]


class _FirstBatch:
    # The first alone, as it waits for the device.
    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std, self.seen = mean, std, False

    @torch.compiler.disable
    def __call__(self, task: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        images = args[0] if args else kwargs.get('input')
        if self.seen or not isinstance(images, torch.Tensor) or images.is_meta:
            return
        self.seen, peak = True, float(images.detach().abs().max())
        largest = max(abs(edge - value) / deviation for value, deviation in zip(self.mean, self.std) for edge in (0, 1))
        if peak > 2 * largest + 10:  # far outside: random erasing fills in noise of unit variance
            _logger.warning(
                f'Images have values up to {peak:.4g}, which those normalised by mean {self.mean} and std {self.std} '
                'cannot have: divide pixels in 0–255 by 255 and normalise them, else attacks are next to nothing.')


def _for_channels(values: Optional[Sequence[float]], channels: Optional[int]) -> Optional[Sequence[float]]:
    # timm's loaders take the average where a cfg's number of values is not that of the model's channels
    if values is None or channels is None or len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels
