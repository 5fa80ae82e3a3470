"""Corrupted images, a source that needs no model."""
from dataclasses import dataclass
from typing import Any, Dict, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn

from ..corruptions import ALL_CORRUPTIONS, CORRUPTIONS, SEVERITIES, check_libraries, corrupt
from ..settings import setting
from .pixels import PixelSource
from .source import Images

__all__ = ['CorruptedImages']


@dataclass(frozen=True, kw_only=True)
class CorruptedImages(PixelSource):
    """Corrupts each image by a random corruption of ImageNet-C at a random severity, on the CPU.

    Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*, ICLR
    2019, arXiv:1903.12261; see `corruptions.corrupt`. Who trains on corruptions measures by them how well the model
    learned these, not how it takes what it has never seen: `names` may hold some out.

    Values that random erasing left out of the range of pixels are clamped: corruptions take whole grey levels.

    Raises:
        ValueError: A setting is out of its range.
    """
    severities: Tuple[int, ...] = setting(
        (1, 3), 'lowest and highest severity', low=SEVERITIES[0], high=SEVERITIES[-1], nargs=2, ordered=True)
    names: Tuple[str, ...] = setting(
        CORRUPTIONS, 'corruptions to draw from', choices=ALL_CORRUPTIONS, nargs='+',
        default_help='the 15 of the mean corruption error')

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise ValueError('names must be at least one corruption, got none.')

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Images:
        source = self.normalised_for(model)
        low, high = self.severities
        draws = zip(
            torch.randint(len(self.names), (len(images),)).tolist(),
            torch.randint(low, high + 1, (len(images),)).tolist(),
            torch.randint(2 ** 62, (len(images),)).tolist())
        pixels = (source.in_pixels(images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        corrupted = np.stack([
            corrupt(image, self.names[name], severity, np.random.default_rng(seed))
            for image, (name, severity, seed) in zip(pixels, draws)])
        made = torch.from_numpy(corrupted).permute(0, 3, 1, 2).to(images.device)
        dtype = torch.promote_types(images.dtype, torch.float32)
        return source.in_range_of(images, source.from_pixels(made.to(dtype) / 255)), target

    def normalised_by(self, mean: Sequence[float], std: Sequence[float]) -> 'CorruptedImages':
        check_libraries()  # when a task is built, not where a model card tells of its images
        return super().normalised_by(mean, std)

    def describe(self) -> str:
        low, high = self.severities
        severity = f'severity {low}' if low == high else f'severity {low}–{high}'
        return f'corrupted images ({self._which()}), {severity}'

    def _which(self) -> str:
        left_out = [name for name in CORRUPTIONS if name not in self.names]
        if set(self.names) <= set(CORRUPTIONS) and len(left_out) < 5:
            return f'all {len(CORRUPTIONS)}' + (f' but {", ".join(left_out)}' if left_out else '')
        return ', '.join(self.names)

    def facts(self) -> Dict[str, Any]:
        return dict(trained_on='corruption', severities=list(self.severities), names=list(self.names))
