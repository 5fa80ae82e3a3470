"""Split batch norms, the norms of AdvProp (Xie et al., CVPR 2020, section 4)."""
from typing import Any, Optional, Tuple, Type

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, SyncBatchNormAct, register_notrace_module
from torch.nn.modules.batchnorm import _BatchNorm

from .shared_statistics import NONE, SharingNorm
from .split_norm import MAIN, SplitNorm

__all__ = [
    'SplitBatchNorm1d', 'SplitBatchNorm2d', 'SplitBatchNormAct2d', 'SplitSyncBatchNorm', 'SplitSyncBatchNormAct',
    'is_batch_norm', 'split_batch_norm_type', 'synchronise',
]


class SplitBatchNorm(SharingNorm, _BatchNorm):
    # A _BatchNorm, but no nn.BatchNorm2d, BatchNormAct2d or nn.SyncBatchNorm: timm's freeze_batch_norm_2d would take it
    # for the plain layer, copy the main norm and never look below it. As it is, timm goes on to the auxiliary norms,
    # and AuxNorms refuses.
    def __init__(
            self,
            num_features: int,
            eps: float = 1e-5,
            momentum: Optional[float] = 0.1,
            affine: bool = True,
            track_running_stats: bool = True,
            num_aux: int = 1,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            share: str = NONE,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.add_aux_norms(num_aux, share)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(input)
        if torch.jit.is_scripting():  # a scripted model is the main route
            return self._activate(self._normalize(input))
        return self._activate(self._normalize_by_route(input))

    def _normalize(self, input: torch.Tensor) -> torch.Tensor:
        return self._normalize_with(input, self.weight, self.bias, self.track_running_stats)

    def _normalize_with(
            self,
            input: torch.Tensor,
            weight: Optional[torch.Tensor],
            bias: Optional[torch.Tensor],
            track: bool,
    ) -> torch.Tensor:
        # torch's own forward does the same, but TorchScript cannot reach it through super().
        momentum = 0. if self.momentum is None else self.momentum
        if self.training and track and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1. / float(self.num_batches_tracked)
        use_buffers = not self.training or track
        return F.batch_norm(
            input,
            self.running_mean if use_buffers else None,
            self.running_var if use_buffers else None,
            weight,
            bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )

    def _activate(self, input: torch.Tensor) -> torch.Tensor:
        return input

    def _apply_aux(self, norm: Any, input: torch.Tensor) -> torch.Tensor:
        # An attack runs in eval mode, with parameters that need no gradient: a batch norm is then one multiply-add of
        # each value, and its backward one multiplication. torch's batch_norm computes the sums for the gradients of
        # weight and bias in its backward all the same, which costs three times as much.
        owner = norm if self.share == NONE else self  # of the statistics
        constants = _factor_and_shift(owner, norm) if torch.is_grad_enabled() else None
        if constants is not None and input.dtype in (norm.weight.dtype, torch.bfloat16, torch.float16):
            return _multiply_add(input, *constants)
        return norm(input) if owner is norm else self._normalize_for_aux(norm, input)


def fixed_factor_and_shift(norm: nn.Module) -> Optional[Tuple[torch.Tensor, torch.Tensor]]:
    """Factor and shift of each channel [C] that a batch norm is on its route, None where that is not fixed: where it
    normalises by the statistics of a batch, or its weights require gradients.

    Args:
        norm: A batch norm, split or not.
    """
    if not isinstance(norm, SplitBatchNorm):
        return _factor_and_shift(norm, norm)
    if norm._divides():
        return None
    affine = norm.aux_bn[norm.route - 1] if norm.route > MAIN else norm
    return _factor_and_shift(affine if norm.share == NONE else norm, affine)


def _factor_and_shift(owner: Any, affine: Any) -> Optional[Tuple[torch.Tensor, torch.Tensor]]:
    # By the statistics of one and the weight and bias of the other.
    if owner.training or owner.running_var is None or not affine.affine or affine.weight.requires_grad:
        return None
    factor = affine.weight * torch.rsqrt(owner.running_var + owner.eps)
    return factor, torch.addcmul(affine.bias, owner.running_mean, factor, value=-1)


def _multiply_add(input: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    # under autocast these are rounded as the weights of a convolution are
    factor, shift = (value.to(input.dtype).view((-1,) + (1,) * (input.dim() - 2)) for value in (factor, shift))
    return torch.addcmul(shift, input, factor)


class _ActMixin(SplitBatchNorm):
    # timm's norm + activation layer; a converted one brings its drop and act along.
    def __init__(self, num_features: int, num_aux: int = 1, share: str = NONE, **kwargs: Any):
        plain: Any = BatchNormAct2d(num_features, **kwargs)
        super().__init__(
            num_features,
            eps=plain.eps,
            momentum=plain.momentum,
            affine=plain.affine,
            track_running_stats=plain.track_running_stats,
            num_aux=num_aux,
            device=kwargs.get('device'),
            dtype=kwargs.get('dtype'),
            share=share,
        )
        self.drop, self.act = plain.drop, plain.act

    def _activate(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(input))


class SplitBatchNorm1d(SplitBatchNorm):
    """`nn.BatchNorm1d` with auxiliary norms, for inputs [N, C] or [N, C, L].

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Weight of the new batch in the running statistics, None for a cumulative average.
        affine: Learn a weight and a bias for each channel, in every norm.
        track_running_stats: Keep running statistics, in every norm.
        num_aux: Number of auxiliary norms, at least 1.
        device: Device of parameters and buffers.
        dtype: Type of parameters and buffers.
        share: What all norms share, `'none'`, `'statistics'` or `'statistics-of-main'`, see `convert_split_norm`.
    """
    plain_type = aux_type = nn.BatchNorm1d

    def _check_input_dim(self, input: torch.Tensor) -> None:
        torch._assert(input.dim() == 2 or input.dim() == 3, 'expected 2D or 3D input')


class SplitBatchNorm2d(SplitBatchNorm):
    """`nn.BatchNorm2d` with auxiliary norms, for inputs [N, C, H, W]. Takes the arguments of `SplitBatchNorm1d`."""
    plain_type = aux_type = nn.BatchNorm2d

    def _check_input_dim(self, input: torch.Tensor) -> None:
        torch._assert(input.dim() == 4, 'expected 4D input')


class SplitBatchNormAct2d(_ActMixin, SplitBatchNorm2d):
    """timm's `BatchNormAct2d` with auxiliary norms; the activation is shared by all routes. Inputs [N, C, H, W].

    Args:
        num_features: Channels C.
        num_aux: Number of auxiliary norms, at least 1.
        share: What all norms share, see `SplitBatchNorm1d`.
        **kwargs: Arguments of timm's `BatchNormAct2d`.
    """
    plain_type = BatchNormAct2d


class SplitSyncBatchNorm(SplitBatchNorm):
    """`nn.SyncBatchNorm` with auxiliary norms: each route's statistics are taken over all processes.

    Made by `convert_sync_batchnorm` from split norms, or by `convert_split_norm` from `nn.SyncBatchNorm`.
    """
    plain_type = aux_type = nn.SyncBatchNorm
    process_group = None

    def _check_input_dim(self, input: torch.Tensor) -> None:
        torch._assert(input.dim() >= 2, 'expected at least 2D input')

    def _check_non_zero_input_channels(self, input: torch.Tensor) -> None:
        torch._assert(input.size(1) > 0, 'expected at least one channel')

    def _normalize(self, input: torch.Tensor) -> torch.Tensor:
        return nn.SyncBatchNorm.forward(self, input)  # pyright: ignore[reportArgumentType]

    def _normalize_with(
            self,
            input: torch.Tensor,
            weight: Optional[torch.Tensor],
            bias: Optional[torch.Tensor],
            track: bool,
    ) -> torch.Tensor:
        return nn.SyncBatchNorm.forward(_WithAffine(self, weight, bias, track), input)  # pyright: ignore[reportArgumentType]

    def _copy_main_norm(self) -> nn.Module:
        copy: Any = super()._copy_main_norm()
        copy.process_group = self.process_group
        return copy


class _WithAffine:
    # A batch norm with another weight and bias: torch's synchronised norm takes them from the module alone.
    def __init__(self, norm: nn.Module, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor], track: bool):
        self.norm, self.weight, self.bias, self.track_running_stats = norm, weight, bias, track

    def __getattr__(self, name: str) -> Any:
        return getattr(self.norm, name)


class SplitSyncBatchNormAct(_ActMixin, SplitSyncBatchNorm):
    """timm's `SyncBatchNormAct` with auxiliary norms, see `SplitSyncBatchNorm`."""
    plain_type = SyncBatchNormAct


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module normalises by statistics of its batch, split or not."""
    return isinstance(module, _BatchNorm) or getattr(module, 'running_var', None) is not None


def split_batch_norm_type(module: nn.Module) -> Optional[Type[SplitNorm]]:
    """The split norm that takes the place of a batch norm, None for any other module."""
    return _SPLIT_TYPES.get(type(module))


def synchronise(norm: nn.Module, process_group: Optional[Any] = None) -> None:
    """Let a split batch norm take its statistics over processes, in place.

    Args:
        norm: The norm; nothing happens to another kind.
        process_group: Processes to synchronise over, all by default.
    """
    if not isinstance(norm, SplitBatchNorm):
        return
    norm.__class__ = _SYNC_TYPES.get(type(norm), type(norm))  # pyright: ignore[reportAttributeAccessIssue]
    norm.process_group = process_group  # pyright: ignore[reportArgumentType]
    for aux in norm.aux_bn:
        aux.__class__ = nn.SyncBatchNorm
        aux.process_group = process_group


_SYNC_TYPES = {
    SplitBatchNorm1d: SplitSyncBatchNorm,
    SplitBatchNorm2d: SplitSyncBatchNorm,
    SplitBatchNormAct2d: SplitSyncBatchNormAct,
}
_SPLIT_TYPES = {split.plain_type: split for split in (*_SYNC_TYPES, *_SYNC_TYPES.values())}
for _split in _SPLIT_TYPES.values():
    register_notrace_module(_split)
