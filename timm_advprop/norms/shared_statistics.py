"""Batch norms whose routes share statistics and keep affine parameters of their own.

Rebuffi et al. (*Revisiting adapters with adversarial training*, ICLR 2023) find that clean and adversarial images need
no statistics of their own, separate affine parameters are enough. What the routes of a model share is one of

* `'none'`: the split norm of AdvProp, statistics and affine parameters apart.
* `'statistics'`: all images of a step are normalised together, and all of them update the running statistics.
* `'statistics-of-main'`: all are normalised together, and the clean part alone updates the running statistics, so that
  a test on clean images finds the statistics of clean images.

A norm that keeps no statistics, such as a layer norm, has nothing to share.
"""
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from .split_norm import SplitNorm, split_norms
from .state_dict import main_key, split_state_dict

__all__ = ['SHARES', 'SharingNorm', 'share_in', 'share_of']

NONE, STATISTICS, STATISTICS_OF_MAIN = SHARES = ('none', 'statistics', 'statistics-of-main')


class SharingNorm(SplitNorm):
    """A split norm with running statistics, which its routes may share.

    An auxiliary norm then has a weight and a bias alone. It remains a batch norm by its class, so that converters and
    freezes that look for batch norms come upon it and are refused, as they are by norms that share nothing.
    """
    if TYPE_CHECKING:
        track_running_stats: bool

    def add_aux_norms(self, num_aux: int, share: str = NONE) -> None:
        """Add auxiliary norms, copies of the main norm.

        Args:
            num_aux: Their number, at least 1.
            share: What all norms share, one of `SHARES`.
        """
        super().add_aux_norms(num_aux)
        if check_share(share) == NONE:
            return
        self.share = share
        for aux in self.aux_bn:
            aux.running_mean = aux.running_var = aux.num_batches_tracked = None
            aux.track_running_stats = False

    def _normalize_with(
            self,
            input: torch.Tensor,
            weight: Optional[torch.Tensor],
            bias: Optional[torch.Tensor],
            track: bool,
    ) -> torch.Tensor:
        # The main norm with another weight and bias. It updates the running statistics where `track` is true.
        raise NotImplementedError

    def _normalize_parts(self, x: torch.Tensor) -> torch.Tensor:
        if self.share == NONE:
            return super()._normalize_parts(x)
        parts = x.split(self._part_sizes(x.shape[0]))
        track = self.track_running_stats and self.share == STATISTICS
        output = self._normalize_with(x, *self._identity_for(x), track)
        if self.share == STATISTICS_OF_MAIN and self.training and self.track_running_stats:
            with torch.no_grad():
                self._normalize_with(parts[0], None, None, True)
        if self.weight is None:
            return output
        parts = output.split([len(part) for part in parts])
        return torch.cat([_scale_and_shift(norm, part) for norm, part in zip((self, *self.aux_bn), parts)])

    def _identity_for(self, x: torch.Tensor) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        # Weight and bias that change nothing. On a CPU torch rounds the statistics of images in half precision where it
        # is given nothing wider; elsewhere, and in float32, it has no use for them.
        like: Any = self.running_mean if self.weight is None else self.weight
        if like is None or x.device.type != 'cpu' or x.dtype not in (torch.bfloat16, torch.float16):
            return None, None
        return torch.ones_like(like), torch.zeros_like(like)

    def _normalize_for_aux(self, aux: Any, x: torch.Tensor) -> torch.Tensor:
        # A pass of auxiliary images alone.
        return self._normalize_with(x, aux.weight, aux.bias, self.track_running_stats and self.share == STATISTICS)

    def _load_from_state_dict(
            self, state_dict: Dict[str, Any], prefix: str, local_metadata: Dict[str, Any], strict: bool,
            missing_keys: List[str], unexpected_keys: List[str], error_msgs: List[str],
    ) -> None:
        # What a lax load would drop without a word is how the auxiliary norms normalise.
        if self.share != NONE and any(
                key.startswith(f'{prefix}aux_bn.') and key.endswith('.running_mean') for key in state_dict):
            error_msgs.append(f'{prefix}aux_bn: the auxiliary norms have statistics of their own, those of the model '
                              f'share the main norm\'s: create it with share=\'{NONE}\'.')
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def extra_repr(self) -> str:
        return super().extra_repr() + ('' if self.share == NONE else f', share={self.share}')


def _scale_and_shift(norm: Any, x: torch.Tensor) -> torch.Tensor:
    # A batch norm of mean 0 and variance 1 is its weight and bias. Its one kernel is faster than a multiply-add, whose
    # backward multiplies and sums in steps, and under autocast weight and bias keep their precision.
    return F.batch_norm(
        x, torch.zeros_like(norm.weight), torch.ones_like(norm.weight), norm.weight, norm.bias, eps=0.)


def check_share(share: str) -> str:
    """What norms shall share, if they can.

    Raises:
        ValueError: It is not one of `SHARES`.
    """
    if share not in SHARES:
        raise ValueError(f'share must be one of {", ".join(SHARES)}, got {share!r}.')
    return share


def share_of(model: nn.Module) -> str:
    """What the routes of a model share, one of `SHARES`; `'none'` for a model without split batch norms."""
    return next((norm.share for norm in split_norms(model)), NONE)


def share_in(state_dict: Iterable[str]) -> str:
    """What the routes of the model of a state dict share: `'statistics'` where its auxiliary norms have none and their
    main norms do, which of both kinds it does not say; else `'none'`."""
    keys = set(state_dict)
    aux = {key.rpartition('.')[0] for key in split_state_dict(dict.fromkeys(keys))[1]}
    sharing = (norm for norm in aux if main_key(f'{norm}.running_mean') in keys and f'{norm}.running_mean' not in keys)
    return NONE if next(sharing, None) is None else STATISTICS
