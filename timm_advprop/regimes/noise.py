"""Gaussian noise, a source that needs no model."""
from dataclasses import dataclass
from typing import Any, Dict

import torch
import torch.nn as nn

from ..attacks import per_channel
from ..settings import setting
from .pixels import PixelSource
from .source import Images

__all__ = ['GaussianNoise']


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(PixelSource):
    """Adds normal noise to images and clamps them to the range of pixels.

    Args:
        eps_px: Standard deviation of the noise in 0–255 pixels, at least 0.

    Raises:
        ValueError: The deviation is below 0.
    """
    eps_px: float = setting(4., 'standard deviation of the noise', low=0, unit='in 0–255 pixels')

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Images:
        source = self.normalised_for(model)
        noise = torch.randn_like(images) * per_channel(source.normalised(self.eps_px), images)
        return source.in_range_of(images, images + noise), target

    def describe(self) -> str:
        return f'Gaussian noise, std {self.eps_px:g}/255'

    def facts(self) -> Dict[str, Any]:
        return dict(trained_on='gaussian-noise', eps_px=self.eps_px)
