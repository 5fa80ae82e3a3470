"""Amplitude mix: the shapes of an image with the texture and colours of another, a source that needs no model."""
from dataclasses import dataclass
from typing import Any, Dict

import torch
import torch.nn as nn

from ..settings import setting
from .pixels import PixelSource
from .source import Images

__all__ = ['AmplitudeMix']


@dataclass(frozen=True, kw_only=True)
class AmplitudeMix(PixelSource):
    """Mixes the amplitude spectrum of each image with that of another of the batch, and keeps its phase and label.

    Xu et al., *A Fourier-based Framework for Domain Generalization*, CVPR 2021, arXiv:2105.11120, amplitude mix: the
    phase has the shapes, the amplitude the style. Without that paper's teacher and consistency loss.

    Raises:
        ValueError: A setting is out of its range.
    """
    strength: float = setting(1., 'highest weight of the other image\'s amplitude, drawn from 0 to it', low=0, high=1)

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Images:
        source = self.normalised_for(model)
        # drawn on the CPU, where a permutation costs no wait
        order, weight = torch.randperm(len(images)), torch.rand(len(images), 1, 1, 1) * self.strength
        order, weight = (values.to(images.device, non_blocking=True) for values in (order, weight))
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pixels = source.in_pixels(images)
            mixed = _with_amplitude_of(pixels, pixels[order], weight.to(pixels.dtype))
            return source.in_range_of(images, source.from_pixels(mixed)), target

    def describe(self) -> str:
        return f'amplitude mix with another image, up to {self.strength:g}'

    def facts(self) -> Dict[str, Any]:
        return dict(trained_on='amplitude-mix', **self.values())


def _with_amplitude_of(pixels: torch.Tensor, others: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    spectrum, other = torch.fft.rfft2(pixels), torch.fft.rfft2(others)
    amplitude = torch.lerp(spectrum.abs(), other.abs(), weight)
    return torch.fft.irfft2(amplitude * spectrum.sgn(), s=pixels.shape[-2:])  # nothing where there is no phase
