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
from torch.autograd.graph import get_gradient_edge
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
    casts: bool  # autocast rounds the convolution's weights


class _Found(NamedTuple):
    kinds: Tuple[Tuple[str, type], ...]  # of the model's modules
    pairs: List[_Pair]


_found: 'WeakKeyDictionary[nn.Module, Dict[Optional[torch.dtype], _Found]]' = WeakKeyDictionary()  # by autocast


@contextmanager
def folded(model: nn.Module, images: torch.Tensor, num_passes: int) -> Iterator[None]:
    """Inside of a `with` block, let convolutions do what the batch norms behind them would.

    Of norms that normalise by fixed statistics, on the route that they are on, and whose weights require no gradients.
    A convolution with more weights than it makes values inside of the block is left: folding would cost more than it
    saves. Left as it is, too, is a model with hooks, which would see something else, and one that is compiled, whose
    graphs are of its modules as they are. After the block parameters are the same objects as before, also after an
    exception. The first block of a model, in each precision of autocast, takes a forward pass more, which shows the
    norms that follow a convolution alone, and weights that nothing but their convolution reads.

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
        for pair in pairs:
            if modules[pair.conv].weight.numel() <= pair.num_values * num_images:
                stack.enter_context(_one_folded(modules[pair.conv], modules[pair.norm], pair.casts))
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
def _one_folded(conv: _ConvNd, norm: nn.Module, casts: bool) -> Iterator[None]:
    constants = fixed_factor_and_shift(norm)
    if constants is None or type(conv.weight) is not nn.Parameter:
        yield
        return
    kept = dict(conv._parameters)
    try:
        conv._parameters.update(zip(('weight', 'bias'), _fold(conv, *constants, casts)))  # pyright: ignore[reportCallIssue, reportArgumentType]
        norm.forward = _rest_of(norm)
        yield
    finally:
        conv._parameters.update(kept)
        vars(norm).pop('forward', None)


@torch.inference_mode(False)  # autograd takes no tensors made in inference mode
@torch.no_grad()
def _fold(
        conv: _ConvNd,
        factor: torch.Tensor,
        shift: torch.Tensor,
        casts: bool,
) -> Tuple[torch.Tensor, torch.Tensor]:
    # In the precision of autocast at once, which would round the weights in each pass: but not where a model turns it
    # off.
    weight = conv.weight * factor.view(-1, *(1,) * (conv.weight.ndim - 1))
    bias = shift if conv.bias is None else torch.addcmul(shift, conv.bias, factor)
    dtype = casts and _dtype_of_autocast(weight.device.type) or conv.weight.dtype
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
    kinds = tuple((name, type(module)) for name, module in modules.items())
    found, dtype = _found.setdefault(model, {}), _dtype_of_autocast(images.device.type)
    if dtype not in found or found[dtype].kinds != kinds:
        found[dtype] = _Found(kinds, _find(model, modules, images))
    return found[dtype].pairs


def _find(model: nn.Module, modules: Modules, images: torch.Tensor) -> List[_Pair]:
    made: Dict[str, List[Any]] = {}  # nodes of the graph: an operation in place makes a new one of the same tensor
    taken: Dict[str, List[torch.Tensor]] = {}
    convs = {name: module for name, module in modules.items()
             if type(module) in _CONVOLUTIONS and type(module.weight) is nn.Parameter}
    with ExitStack() as stack:
        for name, conv in convs.items():
            stack.callback(conv.register_forward_hook(
                lambda _, __, output, name=name: made.setdefault(name, []).append(output.grad_fn)).remove)  # pyright: ignore[reportArgumentType]
        for name, norm in modules.items():
            if _is_norm(norm):
                stack.callback(norm.register_forward_pre_hook(
                    lambda _, inputs, name=name: taken.setdefault(name, []).append(inputs[0])).remove)  # pyright: ignore[reportArgumentType]
        leaves = {name: stack.enter_context(_leaves_of(conv)) for name, conv in convs.items()}
        with torch.inference_mode(False), torch.enable_grad():
            output = model(images.detach().clone().requires_grad_())
    if not made or not isinstance(output, torch.Tensor) or output.grad_fn is None:
        return []
    takers = _takers(output.grad_fn)
    # Convolutions and norms that run once, where nothing but the norm takes what the convolution makes.
    makers = {nodes[0]: name for name, nodes in made.items() if len(nodes) == 1
              and all(_takes_alone(nodes[0], leaf, takers) for leaf in leaves[name])}
    single = {norm: inputs[0] for norm, inputs in taken.items() if len(inputs) == 1}
    return [_Pair(makers[x.grad_fn], norm, x.numel() / len(images), x.dtype != convs[makers[x.grad_fn]].weight.dtype)
            for norm, x in single.items() if x.grad_fn in makers and len(takers.get(x.grad_fn, ())) == 1]


@contextmanager
def _leaves_of(conv: _ConvNd) -> Iterator[List[Any]]:
    # Nodes that stand for the parameters of a convolution in a graph. Whoever else has them, as another module, keeps
    # his own.
    kept = dict(conv._parameters)
    with torch.inference_mode(False), torch.enable_grad():
        stand_ins = {name: nn.Parameter(value.detach()) for name, value in kept.items() if value is not None}
        conv._parameters.update(stand_ins)
        try:
            yield [get_gradient_edge(value).node for value in stand_ins.values()]
        finally:
            conv._parameters.update(kept)


def _takes_alone(taker: Any, node: Any, takers: Dict[Any, List[Any]]) -> bool:
    # Whether a node, past casts, has one taker.
    while node is not taker:
        if len(takers.get(node, ())) != 1:
            return False
        node, = takers[node]
    return True


def _takers(root: Any) -> Dict[Any, List[Any]]:
    # For each node of a graph those that take its output.
    takers: Dict[Any, List[Any]] = {}
    nodes = [root]
    while nodes:
        taker = nodes.pop()
        for node in (node for node, _ in taker.next_functions if node is not None):
            if node not in takers:
                nodes.append(node)
            takers.setdefault(node, []).append(taker)
    return takers
