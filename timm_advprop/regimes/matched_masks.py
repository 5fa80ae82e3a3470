"""Matched masks: what dropout drops of a clean image, it drops of the adversarial one, too.

Herrmann et al., *Pyramid Adversarial Training Improves ViT Performance*, CVPR 2022, arXiv:2111.15121.
"""
from typing import Sequence

import torch
import torch.nn as nn
from timm.layers import DropBlock2d, DropPath, PatchDropout, register_notrace_module

__all__ = ['match_masks']


class _MatchedMask(nn.Module):
    # Mixin for a module that multiplies its input by a random mask; it comes before the plain module among the bases.
    # The mask is what the plain module makes of ones.
    own_state = ('num_parts',)  # which its plain module does not have, see strip_aux
    num_parts = 1
    rate = 'p'  # the attribute that is 0 where nothing is dropped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._match(x) if self._matches(x) else super().forward(x)

    def _matches(self, x: torch.Tensor) -> bool:
        return self.training and getattr(self, self.rate) > 0 and x.shape[0] % self.num_parts == 0

    def _match(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.unflatten(0, (self.num_parts, -1))
        mask = super().forward(x.new_ones(parts.shape[1], *self._shape_of_mask(x)))
        return (parts * mask).flatten(0, 1)

    def _shape_of_mask(self, x: torch.Tensor) -> Sequence[int]:
        return x.shape[1:]

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, num_parts={self.num_parts}'.removeprefix(', ')


class MatchedDropPath(_MatchedMask, DropPath):
    """timm's `DropPath`, which drops the same paths of each part of a batch."""
    plain_type, rate = DropPath, 'drop_prob'

    def _shape_of_mask(self, x: torch.Tensor) -> Sequence[int]:
        return [1] * (x.ndim - 1)


class MatchedDropout(_MatchedMask, nn.Dropout):
    """`nn.Dropout`, which drops the same values of each part of a batch."""
    plain_type = nn.Dropout


class MatchedDropout1d(_MatchedMask, nn.Dropout1d):
    """`nn.Dropout1d`, which drops the same channels of each part of a batch [N, C, L]."""
    plain_type = nn.Dropout1d


class MatchedDropout2d(_MatchedMask, nn.Dropout2d):
    """`nn.Dropout2d`, which drops the same channels of each part of a batch [N, C, H, W]."""
    plain_type = nn.Dropout2d


class MatchedDropBlock2d(_MatchedMask, DropBlock2d):
    """timm's `DropBlock2d`, which drops the same blocks of each part of a batch."""
    plain_type, rate = DropBlock2d, 'drop_prob'


class MatchedPatchDropout(_MatchedMask, PatchDropout):
    """timm's `PatchDropout`, which keeps the same patches of each part of a batch [N, L, C]."""
    plain_type, rate = PatchDropout, 'prob'

    def _match(self, x: torch.Tensor) -> torch.Tensor:
        # which tokens it keeps is seen from what it makes of their numbers
        numbers = torch.arange(x.shape[1], device=x.device).view(1, -1, 1)
        kept = PatchDropout.forward(self, numbers.repeat(x.shape[0] // self.num_parts, 1, 1))
        return x.gather(1, kept.repeat(self.num_parts, 1, x.shape[2]))


_MATCHED = {matched.plain_type: matched for matched in (
    MatchedDropPath, MatchedDropout, MatchedDropout1d, MatchedDropout2d, MatchedDropBlock2d, MatchedPatchDropout)}
for _matched in _MATCHED.values():
    register_notrace_module(_matched)


def match_masks(model: nn.Module, num_parts: int) -> nn.Module:
    """Let dropout and stochastic depth treat all parts of a batch alike, in place.

    In train mode, a batch that is divisible by `num_parts` is taken for equal parts below each other, as
    [clean; adversarial]: what is drawn for the first part holds for all. Other batches, and eval mode, find the plain
    modules. It is a state of the model: a checkpointed pass that runs again during the backward pass finds it.
    Parameters, state-dict keys and the distribution of masks stay what they are.

    Modules of torch and timm are matched: `nn.Dropout`, `nn.Dropout1d`, `nn.Dropout2d`, `DropPath`, `DropBlock2d` and
    `PatchDropout`. Dropout that a model calls as a function (`F.dropout`, that of attention weights inside of
    `F.scaled_dot_product_attention`), and modules of other kinds, draw for each image as before. A matched model cannot
    be scripted.

    Args:
        model: Any model.
        num_parts: Parts of a batch, at least 1; 1 gives the plain modules back.

    Returns:
        The model.

    Raises:
        ValueError: There is less than one part.
    """
    if num_parts < 1:
        raise ValueError(f'A batch has at least 1 part, got {num_parts}.')
    for module in model.modules():
        plain = getattr(module, 'plain_type', None) if isinstance(module, _MatchedMask) else type(module)
        if plain not in _MATCHED or plain is DropBlock2d and module.with_noise:  # noise is no mask
            continue
        # the module becomes another kind, so that its hooks, its mode and every reference to it stay
        module.__class__ = plain if num_parts == 1 else _MATCHED[plain]  # pyright: ignore[reportAttributeAccessIssue]
        module.__dict__.pop('num_parts', None)
        if num_parts > 1:
            module.num_parts = num_parts  # pyright: ignore[reportArgumentType]
    return model
