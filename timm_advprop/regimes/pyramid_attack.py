"""`PyramidAttack`: adversarial images by perturbations of several scales.

Herrmann et al., *Pyramid Adversarial Training Improves ViT Performance*, CVPR 2022, arXiv:2111.15121.
"""
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import torch

from ..attacks import Forward, Gradient, pyramid
from ..settings import setting
from .model_attack import ModelAttack

__all__ = ['PyramidAttack']

_PIXELS = dict(low=0, high=255, unit='in 0–255 pixels')


@dataclass(frozen=True, kw_only=True)
class PyramidAttack(ModelAttack):
    """The pyramid attack on a model with images as timm's loaders deliver them, and the source of such images.

    How it treats the model, and its loss, says `ModelAttack`. A pixel moves by at most eps_px × the sum of the weights,
    186 by default.

    The defaults are the paper's figures for ViT. The authors' code (google-research/scenic) attacks in train mode,
    draws random targets that may be the true label, and adds its eps of 6/255 to images between −1 and 1, where it is
    that of 3 in pixels: eps_px 3 and alpha_px 0.5 are what that code runs.

    Raises:
        ValueError: A setting is out of its range; the message names it.
    """
    eps_px: float = setting(6., 'largest value of each scale\'s perturbation, before its weight', **_PIXELS)
    alpha_px: float = setting(1., 'size of an attack step, before the weight', **_PIXELS)
    steps: int = setting(5, 'attack steps', low=1)
    scales: Tuple[int, ...] = setting((32, 16, 1), 'sides of the patches in pixels', low=1, nargs='+')
    weights: Tuple[float, ...] = setting((20., 10., 1.), 'weight of each scale', low=0, nargs='+')

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales or len(self.scales) != len(self.weights):
            raise ValueError(f'a pyramid needs a weight for each of its scales, got scales {list(self.scales)} and '
                             f'weights {list(self.weights)}.')

    def perturb(
            self,
            forward: Forward,
            images: torch.Tensor,
            target: torch.Tensor,
            gradient: Optional[Gradient] = None,
    ) -> torch.Tensor:
        return pyramid(
            forward, images, target, eps=self.normalised(self.eps_px), alpha=self.normalised(self.alpha_px),
            steps=self.steps, bounds=self.bounds, scales=self.scales, weights=self.weights, targeted=self.is_targeted,
            loss=self.objective, gradient=gradient)

    def describe(self) -> str:
        """Name of the attack and its strength: `pyramid-5 (20 × 32 px, 10 × 16 px, 1 × 1 px), eps 6/255, …`."""
        levels = ', '.join(f'{weight:g} × {scale} px' for scale, weight in zip(self.scales, self.weights))
        target = 'random target' if self.is_targeted else 'untargeted'
        return f'pyramid-{self.steps} ({levels}), eps {self.eps_px:g}/255, alpha {self.alpha_px:g}/255, {target}'

    def facts(self) -> Dict[str, Any]:
        return dict(
            trained_on='pyramid adversarial images', target=self.target, alpha_px=self.alpha_px, eps_px=self.eps_px,
            steps=self.steps, scales=list(self.scales), weights=list(self.weights))
