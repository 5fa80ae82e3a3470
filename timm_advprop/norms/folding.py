"""Batch norms of fixed statistics as a part of the convolutions before them.

While an attack runs, a batch norm in eval mode is a constant factor and shift of each channel, and a convolution takes
both into its weights: its output needs no second pass, nor does its gradient. Which norm follows which convolution says
the graph of a forward pass.
"""
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import torch
import torch.nn as nn
from timm.layers import BatchNormAct2d, Conv2dSame, SyncBatchNormAct
from torch.nn.modules.conv import _ConvNd

from .batch_norm import SplitBatchNorm, fixed_factor_and_shift

__all__ = ['folded', 'is_compiled']

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame)
_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct)

Modules = Dict[str, Any]  # their kinds have attributes that nn.Module does not know


class _Pair(NamedTuple):
    conv: str
    norm: str
    num_values: float  # of the convolution's output, for each image


class _Found(NamedTuple):
    kinds: Tuple[Tuple[str, type], ...]  # of the model's modules
    pairs: List[_Pair]


_found: 'WeakKeyDictionary[nn.Module, _Found]' = WeakKeyDictionary()


@contextmanager
def folded(model: nn.Module, images: torch.Tensor, num_passes: int) -> Iterator[None]:
    """Inside of a `with` block, let convolutions do what the batch norms behind them would.

    Of norms that normalise by fixed statistics, on the route that they are on, and whose weights require no gradients.
    A convolution with more weights than it makes values inside of the block is left: folding would cost more than it
    saves. Left as it is, too, is a model with hooks, which would see something else, and one that is compiled, whose
    graphs are of its modules as they are. After the block parameters are the same objects as before, also after an
    exception. The first block of a model takes a forward pass more, which shows the norms that follow a convolution
    alone.

    Args:
        model: A model, not wrapped in DDP, in eval mode.
        images: Images [N, C, H, W] such as those that will pass it.
        num_passes: How many batches of them will pass it.

    Raises:
        RuntimeError: Images passed a folded norm on another route than that which it was on.
    """
    modules: Modules = dict(model.named_modules())
    unchanged = is_compiled(modules.values()) or any(map(_is_observed, modules.values()))
    pairs = [] if unchanged else _pairs_of(model, modules, images)
    num_images = len(images) * num_passes
    with ExitStack() as stack:
        for conv, norm in ((modules[pair.conv], modules[pair.norm]) for pair in pairs
                           if modules[pair.conv].weight.numel() <= pair.num_values * num_images):
            stack.enter_context(_one_folded(conv, norm))
        yield


def is_compiled(modules: Iterable[nn.Module]) -> bool:
    """Whether modules are compiled, or replicated, so that they must not be changed for a while.

    Args:
        modules: All modules of a model.
    """
    return torch.compiler.is_compiling() or any(
        isinstance(module, (torch._dynamo.OptimizedModule, nn.DataParallel)) or module._compiled_call_impl is not None
        for module in modules)


@contextmanager
def _one_folded(conv: _ConvNd, norm: nn.Module) -> Iterator[None]:
    constants = fixed_factor_and_shift(norm)
    if constants is None or type(conv.weight) is not nn.Parameter:
        yield
        return
    kept = dict(conv._parameters)
    try:
        conv._parameters.update(zip(('weight', 'bias'), _fold(conv, *constants)))  # pyright: ignore[reportCallIssue, reportArgumentType]
        norm.forward = _rest_of(norm)
        yield
    finally:
        conv._parameters.update(kept)
        vars(norm).pop('forward', None)


@torch.inference_mode(False)  # autograd takes no tensors made in inference mode
@torch.no_grad()
def _fold(conv: _ConvNd, factor: torch.Tensor, shift: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    # In the precision of autocast at once, which would round the weights in each pass.
    weight = conv.weight * factor.view(-1, *(1,) * (conv.weight.ndim - 1))
    bias = shift if conv.bias is None else torch.addcmul(shift, conv.bias, factor)
    dtype = _dtype_of_autocast(weight.device.type) or conv.weight.dtype
    return weight.to(dtype), bias.to(dtype)


def _dtype_of_autocast(device_type: str) -> Optional[torch.dtype]:
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def _rest_of(norm: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    # What of a norm is left: its activation.
    if isinstance(norm, (BatchNormAct2d, SyncBatchNormAct)):
        return lambda x: norm.act(norm.drop(x))  # pyright: ignore[reportCallIssue]
    if not isinstance(norm, SplitBatchNorm):
        return lambda x: x
    route = norm.route

    def activate(x: torch.Tensor) -> torch.Tensor:
        if norm.route != route:
            raise RuntimeError('The route of a norm was changed while it was folded: choose it before.')
        return norm._activate(x)
    return activate


def _is_norm(module: nn.Module) -> bool:
    return type(module) in _PLAIN_NORMS or isinstance(module, SplitBatchNorm)


def _is_observed(module: nn.Module) -> bool:
    # Somebody wants to see what it computes.
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)


def _pairs_of(model: nn.Module, modules: Modules, images: torch.Tensor) -> List[_Pair]:
    if not any(type(module) in _CONVOLUTIONS for module in modules.values()) or not any(
            fixed_factor_and_shift(norm) for norm in filter(_is_norm, modules.values())):
        return []
    kinds, found = tuple((name, type(module)) for name, module in modules.items()), _found.get(model)
    if found is None or found.kinds != kinds:
        _found[model] = found = _Found(kinds, _find(model, modules, images))
    return found.pairs


def _find(model: nn.Module, modules: Modules, images: torch.Tensor) -> List[_Pair]:
    made: Dict[str, List[Any]] = {}  # nodes of the graph: an operation in place makes a new one of the same tensor
    taken: Dict[str, List[torch.Tensor]] = {}
    hooks = []
    for name, module in modules.items():
        if type(module) in _CONVOLUTIONS:
            hooks.append(module.register_forward_hook(
                lambda _, __, output, name=name: made.setdefault(name, []).append(output.grad_fn)))  # pyright: ignore[reportArgumentType]
        elif _is_norm(module):
            hooks.append(module.register_forward_pre_hook(
                lambda _, inputs, name=name: taken.setdefault(name, []).append(inputs[0])))  # pyright: ignore[reportArgumentType]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            output = model(images.detach().clone().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    if not made or not isinstance(output, torch.Tensor) or output.grad_fn is None:
        return []
    return _pairs(_num_takers(output.grad_fn), made, taken, len(images))


def _pairs(num_takers, made, taken, num_images) -> List[_Pair]:
    # Convolutions and norms that run once, where nothing but the norm takes what the convolution makes.
    makers = {nodes[0]: name for name, nodes in made.items() if len(nodes) == 1}
    single = {norm: inputs[0] for norm, inputs in taken.items() if len(inputs) == 1}
    return [_Pair(makers[x.grad_fn], norm, x.numel() / num_images) for norm, x in single.items()
            if x.grad_fn in makers and num_takers.get(x.grad_fn) == 1]


def _num_takers(root: Any) -> Dict[Any, int]:
    # For each node of a graph how many others take its output.
    num_takers: Dict[Any, int] = {}
    nodes = [root]
    while nodes:
        for node in (node for node, _ in nodes.pop().next_functions if node is not None):
            if node not in num_takers:
                nodes.append(node)
            num_takers[node] = num_takers.get(node, 0) + 1
    return num_takers
