"""AugMix, a source that needs no model."""
from dataclasses import dataclass
from typing import Any, Dict

import torch
import torch.nn as nn
from torch.distributions import Beta, Dirichlet

from ..settings import setting
from .augmentation_chains import ChainSettings, augmented_chains
from .pixels import PixelSource
from .source import Images

__all__ = ['AugMix', 'ChainSource', 'mixed']


@dataclass(frozen=True, kw_only=True)
class ChainSource(ChainSettings, PixelSource):
    """A source that mixes each image with a mixture of chains of augmentations of it."""

    def chains(self, images: torch.Tensor) -> torch.Tensor:
        """Augmented images [N, width, C, H, W] of images [N, C, H, W], both normalised, in 32 bits or more."""
        chains = augmented_chains(self.in_pixels(images), self)
        return self.from_pixels(chains.flatten(0, 1)).view_as(chains)


@dataclass(frozen=True, kw_only=True)
class AugMix(ChainSource):
    """Mixes each image with a mixture of chains of augmentations, by random weights.

    Hendrycks et al., *AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty*, ICLR 2020,
    arXiv:1912.02781, Algorithm 1; without its consistency loss, which is timm's `--jsd-loss`.

    Raises:
        ValueError: A setting is out of its range.
    """
    alpha: float = setting(1., 'of the Dirichlet and Beta distributions of the weights', low=0.01)

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Images:
        source = self.normalised_for(model)
        chains = source.chains(images)
        weights = Dirichlet(torch.full((self.width,), self.alpha)).sample((len(images),))
        share = Beta(self.alpha, self.alpha).sample((len(images),))
        weights, share = (values.to(chains, non_blocking=True) for values in (weights, share))
        return source.in_range_of(images, mixed(images, chains, weights, share)), target

    def describe(self) -> str:
        return f'AugMix, {self.describe_chains()}'

    def facts(self) -> Dict[str, Any]:
        return dict(trained_on='augmix', **self.values())


def mixed(images: torch.Tensor, chains: torch.Tensor, weights: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Images mixed with a mixture of others.

    Args:
        images: Images [N, C, H, W].
        chains: Others for each image, [N, K, C, H, W].
        weights: Weights of these [N, K], of sum 1.
        share: Weight of the mixture [N], in 0–1.
    """
    mixture = (weights[..., None, None, None] * chains).sum(dim=1)
    return torch.lerp(images.to(mixture.dtype), mixture, share.view(-1, 1, 1, 1))
