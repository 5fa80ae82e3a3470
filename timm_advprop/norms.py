"""Split batch norms: one main norm for clean images and auxiliary norms for the others.

AdvProp keeps clean and adversarial images apart by giving each its own batch-norm statistics and affine parameters
("auxiliary batch norm", Xie et al., *Adversarial Examples Improve Image Recognition*, CVPR 2020, arXiv:1911.09665,
section 4). A split norm is a batch norm whose own parameters are the main norm, so its state-dict keys are those of
the plain layer; the auxiliary norms sit below it as `aux_bn.<i>`. A *route* says which of them an image passes:

* `'clean'` (0): the main norm. The default: the model behaves exactly as the plain one.
* `'aux'` (1), or `i`: the i-th auxiliary norm.
* `'split'`: training only. The batch is divided along dimension 0, the first part goes through the main norm, part
  i through auxiliary norm i. In eval mode a norm on this route uses its main norm.
"""
import re
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Type, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from timm.layers import convert_sync_batchnorm as convert_plain_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm

try:
    from timm.layers import register_notrace_module
except ImportError:  # older timm
    from timm.layers._fx import register_notrace_module

__all__ = [
    'SplitBatchNorm1d', 'SplitBatchNorm2d', 'SplitBatchNormAct2d', 'SplitSyncBatchNorm', 'SplitSyncBatchNormAct',
    'convert_split_norm', 'convert_sync_batchnorm', 'has_split_norm', 'num_aux_norms', 'num_aux_in', 'set_norm_route',
    'norm_route', 'batch_statistics', 'train_aux', 'split_norms', 'strip_aux', 'split_state_dict',
]

CLEAN, AUX, SPLIT = 0, 1, -1
_NAMED_ROUTES = {'clean': CLEAN, 'aux': AUX, 'split': SPLIT}
_NORM_TENSORS = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
_AUX_KEY = re.compile(r'(^|\.)aux_bn\.(\d+)\.')

Route = Union[str, int]


class AuxNorms(nn.ModuleList):
    """The auxiliary norms of one split norm.

    Converters that know nothing of split norms (torch's and timm's `convert_sync_batchnorm`, timm's
    `freeze_batch_norm_2d` and `convert_splitbn_model`) rebuild the main norm and replace the norms below it one by one.
    They would leave the auxiliary norms unused without a word, so replacing one is refused here.
    """

    def add_module(self, name: str, module: Optional[nn.Module]) -> None:
        present = self._modules.get(name)
        if present is not None and module is not present:
            raise TypeError(
                f'Replacing an auxiliary {type(present).__name__} by another {type(module).__name__} would drop the '
                f'split norms. Use timm_advprop.convert_sync_batchnorm(model) for synchronised split norms, '
                f'timm_advprop.strip_aux(model) for a plain model that other converters can take.')
        super().add_module(name, module)


class _SplitNorm(_BatchNorm):
    # Not a subclass of nn.BatchNorm2d, BatchNormAct2d or nn.SyncBatchNorm: timm's freeze_batch_norm_2d would
    # take it for the plain layer and lose the auxiliary norms.
    route = CLEAN
    split_sizes = None

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
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        _add_aux_norms(self, num_aux)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(input)
        if torch.jit.is_scripting():  # a scripted model is the clean route
            return self._activate(self._normalize(input))
        return self._activate(self._normalize_by_route(input))

    def _normalize(self, input: torch.Tensor) -> torch.Tensor:
        # The main norm. torch's own forward does the same, but TorchScript cannot reach it through super().
        momentum = 0. if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1. / float(self.num_batches_tracked)
        use_buffers = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            self.running_mean if use_buffers else None,
            self.running_var if use_buffers else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )

    def _activate(self, input: torch.Tensor) -> torch.Tensor:
        return input

    @torch.jit.unused
    def _normalize_by_route(self, input: torch.Tensor) -> torch.Tensor:
        if self.route == SPLIT and self.training:
            parts = input.split(self._part_sizes(input.shape[0]))
            outputs = [self._normalize(parts[0])]
            outputs.extend(norm(part) for norm, part in zip(self.aux_bn, parts[1:]))
            return torch.cat(outputs)
        if self.route > CLEAN:
            return _apply_norm(self.aux_bn[self.route - 1], input)
        return self._normalize(input)

    def _part_sizes(self, batch_size: int) -> List[int]:
        num_parts = 1 + len(self.aux_bn)
        if self.split_sizes is not None:
            if sum(self.split_sizes) != batch_size:
                raise ValueError(f'Route split was set for parts of {list(self.split_sizes)} images, '
                                 f'the batch has {batch_size}.')
            return list(self.split_sizes)
        if batch_size % num_parts:
            raise ValueError(f'Route split needs a batch divisible by {num_parts} (one equal part for each norm), '
                             f'got {batch_size}. State the parts with set_norm_route(model, \'split\', sizes=…).')
        return [batch_size // num_parts] * num_parts

    def _load_from_state_dict(
            self,
            state_dict: Dict[str, Any],
            prefix: str,
            local_metadata: Dict[str, Any],
            strict: bool,
            missing_keys: List[str],
            unexpected_keys: List[str],
            error_msgs: List[str],
    ) -> None:
        # A plain checkpoint has no auxiliary norms: each starts as a copy of the main norm. This is the one place
        # that create_model, load_checkpoint, resume and the Hub all pass through, strict or not.
        for i in range(len(self.aux_bn)):
            aux_prefix = f'{prefix}aux_bn.{i}.'
            if any(key.startswith(aux_prefix) for key in state_dict):
                continue
            for name in _NORM_TENSORS:
                if prefix + name in state_dict:
                    state_dict[aux_prefix + name] = state_dict[prefix + name].clone()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, num_aux={len(self.aux_bn)}'


class _ActMixin:
    # timm's norm + activation layer; a converted one brings its drop and act along.
    def __init__(self, num_features: int, num_aux: int = 1, **kwargs: Any):
        plain = BatchNormAct2d(num_features, **kwargs)
        super().__init__(
            num_features,
            eps=plain.eps,
            momentum=plain.momentum,
            affine=plain.affine,
            track_running_stats=plain.track_running_stats,
            num_aux=num_aux,
            device=kwargs.get('device'),
            dtype=kwargs.get('dtype'),
        )
        self.drop, self.act = plain.drop, plain.act

    def _activate(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(input))


@register_notrace_module
class SplitBatchNorm1d(_SplitNorm):
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
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        torch._assert(input.dim() == 2 or input.dim() == 3, 'expected 2D or 3D input')


@register_notrace_module
class SplitBatchNorm2d(_SplitNorm):
    """`nn.BatchNorm2d` with auxiliary norms, for inputs [N, C, H, W].

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Weight of the new batch in the running statistics, None for a cumulative average.
        affine: Learn a weight and a bias for each channel, in every norm.
        track_running_stats: Keep running statistics, in every norm.
        num_aux: Number of auxiliary norms, at least 1.
        device: Device of parameters and buffers.
        dtype: Type of parameters and buffers.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        torch._assert(input.dim() == 4, 'expected 4D input')


@register_notrace_module
class SplitBatchNormAct2d(_ActMixin, SplitBatchNorm2d):
    """timm's `BatchNormAct2d` with auxiliary norms; the activation is shared by all routes. Inputs [N, C, H, W].

    Args:
        num_features: Channels C.
        num_aux: Number of auxiliary norms, at least 1.
        **kwargs: Arguments of timm's `BatchNormAct2d`.
    """


@register_notrace_module
class SplitSyncBatchNorm(_SplitNorm):
    """`nn.SyncBatchNorm` with auxiliary norms: each route's statistics are taken over all processes.

    Made by `convert_sync_batchnorm` from split norms, or by `convert_split_norm` from `nn.SyncBatchNorm`.
    """
    process_group = None

    def _check_input_dim(self, input: torch.Tensor) -> None:
        torch._assert(input.dim() >= 2, 'expected at least 2D input')

    def _check_non_zero_input_channels(self, input: torch.Tensor) -> None:
        torch._assert(input.size(1) > 0, 'expected at least one channel')

    def _normalize(self, input: torch.Tensor) -> torch.Tensor:
        return nn.SyncBatchNorm.forward(self, input)


@register_notrace_module
class SplitSyncBatchNormAct(_ActMixin, SplitSyncBatchNorm):
    """timm's `SyncBatchNormAct` with auxiliary norms, see `SplitSyncBatchNorm`."""


_SPLIT_TYPES: Dict[Type[nn.Module], Type[_SplitNorm]] = {
    nn.BatchNorm1d: SplitBatchNorm1d,
    nn.BatchNorm2d: SplitBatchNorm2d,
    BatchNormAct2d: SplitBatchNormAct2d,
    nn.SyncBatchNorm: SplitSyncBatchNorm,
    SyncBatchNormAct: SplitSyncBatchNormAct,
}
_PLAIN_TYPES = {split: plain for plain, split in _SPLIT_TYPES.items()}
_AUX_TYPES = {
    SplitBatchNorm1d: nn.BatchNorm1d,
    SplitBatchNorm2d: nn.BatchNorm2d,
    SplitBatchNormAct2d: nn.BatchNorm2d,
    SplitSyncBatchNorm: nn.SyncBatchNorm,
    SplitSyncBatchNormAct: nn.SyncBatchNorm,
}
_SYNC_TYPES = {
    SplitBatchNorm1d: SplitSyncBatchNorm,
    SplitBatchNorm2d: SplitSyncBatchNorm,
    SplitBatchNormAct2d: SplitSyncBatchNormAct,
}


def convert_split_norm(model: nn.Module, num_aux: int = 1) -> nn.Module:
    """Give every batch norm of a model auxiliary norms, in place.

    Each auxiliary norm starts as a copy of the main norm, whose parameters, buffers, hooks and state-dict keys stay as
    they are: the model's output on the default route is unchanged bit for bit.

    Args:
        model: Any model with batch norms, or a batch norm.
        num_aux: Number of auxiliary norms for each batch norm, at least 1.

    Returns:
        The same model.

    Raises:
        ValueError: The model has no batch norms, has split norms already, or has norms with running statistics of a
            kind that cannot be split (they are named). The model is then left untouched.
    """
    if num_aux < 1:
        raise ValueError(f'num_aux must be at least 1, got {num_aux}.')
    if has_split_norm(model):
        raise ValueError('The model has split norms already.')
    norms, unknown = [], []
    for name, module in model.named_modules():
        if type(module) in _SPLIT_TYPES:
            norms.append(module)
        elif isinstance(module, _BatchNorm) or getattr(module, 'running_var', None) is not None:
            unknown.append(f'{name or "model"} ({type(module).__name__})')
    if unknown:
        raise ValueError(f'Cannot split these norms: {", ".join(unknown)}.')
    if not norms:
        raise ValueError(f'{type(model).__name__} has no batch norms to split.')
    for norm in norms:
        norm.__class__ = _SPLIT_TYPES[type(norm)]  # keeps parameters, hooks and every reference to the module
        _add_aux_norms(norm, num_aux)
    return model


def convert_sync_batchnorm(model: nn.Module, process_group: Optional[Any] = None) -> nn.Module:
    """Synchronise the batch norms of a model over processes, split norms included.

    Takes the place of torch's and timm's functions of this name, which refuse split norms.

    Args:
        model: A model with split or plain batch norms.
        process_group: Processes to synchronise over, all by default.

    Returns:
        The model; split norms are converted in place, plain ones as timm does.
    """
    if not has_split_norm(model):
        return convert_plain_sync_batchnorm(model, process_group)
    for norm in split_norms(model):
        norm.__class__ = _SYNC_TYPES.get(type(norm), type(norm))
        norm.process_group = process_group
        for aux in norm.aux_bn:
            aux.__class__ = nn.SyncBatchNorm
            aux.process_group = process_group
    return model


def split_norms(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the split norms of a model."""
    return (module for module in model.modules() if isinstance(module, _SplitNorm))


def has_split_norm(model: nn.Module) -> bool:
    """Whether a model has split norms."""
    return next(split_norms(model), None) is not None


def num_aux_norms(model: nn.Module) -> int:
    """Number of auxiliary norms of each split norm of a model, 0 for a plain model."""
    norm = next(split_norms(model), None)
    return 0 if norm is None else len(norm.aux_bn)


def num_aux_in(state_dict: Mapping[str, Any]) -> int:
    """Number of auxiliary norms of each split norm in a state dict, 0 for that of a plain model."""
    return 1 + max((int(match[2]) for match in map(_AUX_KEY.search, state_dict) if match), default=-1)


def set_norm_route(model: nn.Module, route: Route, sizes: Optional[Sequence[int]] = None) -> None:
    """Choose the norms that images pass, until the next call.

    Args:
        model: A model with split norms, wrapped (DDP, compiled) or not.
        route: `'clean'` (or 0), `'aux'` (the first auxiliary norm), i for the i-th auxiliary norm, or `'split'`.
        sizes: For `'split'`: images for the main norm, then for each auxiliary norm. Equal parts by default.

    Raises:
        ValueError: No split norms, an unknown route, or sizes that do not fit.
    """
    norms = list(split_norms(model))
    if not norms:
        raise ValueError(f'{type(model).__name__} has no split norms. Create a *_ap model, or call '
                         'timm_advprop.convert_split_norm(model) first.')
    route = _resolve_route(route, num_aux=min(len(norm.aux_bn) for norm in norms))
    if sizes is not None:
        sizes = _resolve_sizes(sizes, route, {1 + len(norm.aux_bn) for norm in norms})
    for norm in norms:
        norm.route, norm.split_sizes = route, sizes


@contextmanager
def norm_route(model: nn.Module, route: Route, sizes: Optional[Sequence[int]] = None) -> Iterator[None]:
    """Set a route inside a `with` block and restore each norm's own route after it, also after an exception.

    The backward pass of a checkpointed model runs the forward again: call `backward` inside the block, too.

    Args:
        model: A model with split norms.
        route: See `set_norm_route`.
        sizes: See `set_norm_route`.
    """
    previous = [(norm, norm.route, norm.split_sizes) for norm in split_norms(model)]
    set_norm_route(model, route, sizes)
    try:
        yield
    finally:
        for norm, old_route, old_sizes in previous:
            norm.route, norm.split_sizes = old_route, old_sizes


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let a model's batch norms normalise by each batch's own statistics and leave the running ones alone.

    Args:
        model: A model with split or plain batch norms. Each norm's own settings are restored after the block.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    previous = [(norm, norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, training, track_running_stats in previous:
            norm.training, norm.track_running_stats = training, track_running_stats


def train_aux(model: nn.Module, train: bool = True) -> None:
    """Take the auxiliary norms of a model into training, or out of it for a regime that does not use them.

    Args:
        model: Any model.
        train: Let the parameters of auxiliary norms require gradients where those of their main norm do. Otherwise none
            of them do (DDP would wait for gradients that do not come).
    """
    for norm in split_norms(model):
        for aux in norm.aux_bn:
            for name, parameter in aux.named_parameters():
                parameter.requires_grad_(train and getattr(norm, name).requires_grad)


def strip_aux(model: nn.Module) -> nn.Module:
    """Copy a model without its auxiliary norms: plain batch norms again, the model that stock timm knows.

    Args:
        model: A model with or without split norms. It is left as it is.

    Returns:
        The plain model.
    """
    plain = deepcopy(model)
    for norm in list(split_norms(plain)):
        del norm.aux_bn
        norm.__dict__.pop('route', None)
        norm.__dict__.pop('split_sizes', None)
        norm.__class__ = _PLAIN_TYPES[type(norm)]
    return plain


def split_state_dict(state_dict: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Divide a state dict into that of the plain model and that of the auxiliary norms.

    Args:
        state_dict: State dict of a model with split norms.

    Returns:
        The plain model's state dict, which stock timm loads strictly, and the auxiliary norms' entries, with their
        full keys: the union of both is the argument.
    """
    clean = {key: value for key, value in state_dict.items() if not _AUX_KEY.search(key)}
    aux = {key: value for key, value in state_dict.items() if _AUX_KEY.search(key)}
    return clean, aux


def _add_aux_norms(norm: _SplitNorm, num_aux: int) -> None:
    if num_aux < 1:
        raise ValueError(f'num_aux must be at least 1, got {num_aux}.')
    norm.aux_bn = AuxNorms(_copy_main_norm(norm) for _ in range(num_aux))


def _copy_main_norm(norm: _SplitNorm) -> nn.Module:
    reference = norm.weight if norm.affine else norm.running_mean
    aux = _AUX_TYPES[type(norm)](
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        **({} if reference is None else dict(device=reference.device, dtype=reference.dtype)),
    )
    for name in _NORM_TENSORS:
        source, copy = getattr(norm, name), getattr(aux, name)
        if source is not None:
            copy.data.copy_(source.data)
            copy.requires_grad_(source.requires_grad)
    if isinstance(aux, nn.SyncBatchNorm):
        aux.process_group = norm.process_group
    return aux.train(norm.training)


def _apply_norm(norm: nn.Module, input: torch.Tensor) -> torch.Tensor:
    # With fixed statistics and parameters that need no gradient, as in an attack, a batch norm is one multiply-add.
    # torch's batch_norm computes their gradients' sums in its backward all the same, which costs three times as much.
    fixed = not norm.training and norm.affine and norm.running_var is not None
    if fixed and torch.is_grad_enabled() and not norm.weight.requires_grad and input.dtype == norm.weight.dtype:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
        shape = (-1,) + (1,) * (input.dim() - 2)
        return torch.addcmul(shift.view(shape), input, scale.view(shape))
    return norm(input)


def _resolve_route(route: Route, num_aux: int) -> int:
    index = _NAMED_ROUTES.get(route) if isinstance(route, str) else route
    if isinstance(index, bool) or not isinstance(index, int) or (isinstance(route, int) and index < 0):
        raise ValueError(f'Unknown route {route!r}: give clean, aux, split, or 0 to {num_aux}.')
    if index > num_aux:
        raise ValueError(f'Route {index} needs {index} auxiliary norms, the model has {num_aux}.')
    return index


def _resolve_sizes(sizes: Sequence[int], route: int, num_parts: Set[int]) -> Tuple[int, ...]:
    sizes = tuple(int(size) for size in sizes)
    if route != SPLIT:
        raise ValueError('sizes belong to route split.')
    if num_parts != {len(sizes)} or min(sizes) < 1:
        parts = ' and '.join(map(str, sorted(num_parts)))
        raise ValueError(f'Route split needs {parts} sizes of at least 1, got {list(sizes)}.')
    return sizes
