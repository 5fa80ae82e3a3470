"""Routes: which norms of a model its images pass."""
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import gcd
from typing import Any, Iterator, List, Optional, Sequence, Set, Tuple, Union

import torch
import torch.nn as nn
from timm.utils import unwrap_model
from torch.autograd import Variable

from .split_norm import AUX, MAIN, SPLIT, SplitNorm, has_split_norm, split_norms

__all__ = ['Route', 'forward_parts', 'norm_route', 'one_route', 'set_norm_route']

Route = Union[str, int]

_NAMED_ROUTES = {'main': MAIN, 'clean': MAIN, 'aux': AUX, 'split': SPLIT}


def set_norm_route(model: nn.Module, route: Route, sizes: Optional[Sequence[int]] = None) -> None:
    """Choose the norms that images pass, until the next call.

    Args:
        model: A model with split norms, wrapped (DDP, compiled) or not.
        route: `'main'` (or 0), `'aux'` (the first auxiliary norm), i for the i-th auxiliary norm, or `'split'`, which
            divides batches while `model` is in train mode, whatever the modes of its norms: one in eval mode (frozen)
            keeps its statistics. `'clean'` is another word for `'main'`.
        sizes: For `'split'`: images for the main norm, then for each auxiliary norm. Equal parts by default. Norms that
            see tokens or windows as rows divide these in proportion.

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
        norm.split_in = (unwrap_model(model),) if route == SPLIT else None


@contextmanager
def norm_route(model: nn.Module, route: Route, sizes: Optional[Sequence[int]] = None) -> Iterator[None]:
    """Set a route inside a `with` block and restore each norm's own route after it, also after an exception.

    The backward pass of a checkpointed model runs the forward again: call `backward` inside the block, too.

    Args:
        model: A model with split norms.
        route: See `set_norm_route`.
        sizes: See `set_norm_route`.
    """
    previous: List[Any] = [(norm, norm.route, norm.split_sizes, norm.split_in) for norm in split_norms(model)]
    set_norm_route(model, route, sizes)
    try:
        yield
    finally:
        for norm, *state in previous:
            norm.route, norm.split_sizes, norm.split_in = state


def one_route(model: nn.Module, route: Route) -> AbstractContextManager:
    """As `norm_route`, for the images of one kind, and for plain models, too, whose norms are route `'main'`.

    Args:
        model: Any model.
        route: `'main'` (or 0, `'clean'`), `'aux'`, or i for the i-th auxiliary norm.

    Raises:
        ValueError: The model has no such route, or it is `'split'`.
    """
    if route == 'split':
        raise ValueError('Route split divides batches in training: give main, aux or the number of a norm.')
    if has_split_norm(model):
        if isinstance(route, str) and route not in _NAMED_ROUTES:
            raise ValueError(f'Unknown route {route!r}: give main, aux or the number of a norm.')
        return norm_route(model, route)
    if route not in ('main', 'clean', 0):
        raise ValueError(f'{type(unwrap_model(model)).__name__} has no split norms, so no route {route!r}: give main.')
    return nullcontext()


@torch.compiler.disable(recursive=False)
def forward_parts(model: nn.Module, parts: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, ...]:
    """Send parts of a batch through a model in one pass, part i through norm i, in train mode or eval mode.

    The model is on route `'main'` afterwards. The backward pass of a checkpointed model runs the forward again, and
    finds the route that this one had.

    Args:
        model: A model with split norms, wrapped (DDP, compiled) or not, whose output is one tensor.
        parts: Images [N_i, C, H, W] for the main norm, then for each auxiliary norm.

    Returns:
        The output of each part.

    Raises:
        ValueError: There are more or fewer parts than norms; or auxiliary norms alone are in eval mode.
    """
    norms, module = list(split_norms(model)), unwrap_model(model)
    _refuse_half_frozen(norms)
    sizes = _resolve_sizes([len(part) for part in parts], SPLIT, {1 + len(norm.aux_bn) for norm in norms})
    # A backward pass that fails leaves its route behind: in train mode it ends with train mode.
    state = SPLIT, _in_lowest_terms(sizes), (module,) if module.training else None

    def divide() -> None:
        for norm in norms:
            norm.route, norm.split_sizes, norm.split_in = state

    def divide_in_backward(_: torch.Tensor) -> None:
        divide()
        Variable._execution_engine.queue_callback(lambda: set_norm_route(model, 'main'))

    divide()
    try:
        output = model(torch.cat(list(parts)))
    finally:
        set_norm_route(model, 'main')
    if output.requires_grad:
        output.register_hook(divide_in_backward)
    return output.split(sizes)


def _in_lowest_terms(sizes: Tuple[int, ...]) -> Optional[Tuple[int, ...]]:
    # and equal parts not at all: a compiled model then takes batches of any size
    unit = gcd(*sizes)
    return tuple(size // unit for size in sizes) if len(set(sizes)) > 1 else None


def _refuse_half_frozen(norms: List[SplitNorm]) -> None:
    for norm in norms:
        if norm.training and not norm.frozen[1] and not all(aux.training for aux in norm.aux_bn):
            raise ValueError('Auxiliary norms are in eval mode and their main norms are not, as a freeze leaves them '
                             'that asks for nn.BatchNorm2d: ask for _BatchNorm, or call timm_advprop.freeze_norms('
                             'model), which takes main and aux apart, too.')


def _resolve_route(route: Route, num_aux: int) -> int:
    index = _NAMED_ROUTES.get(route) if isinstance(route, str) else route
    # True is an int, and -1 the number of split: neither is a route that a caller may give
    if isinstance(index, bool) or not isinstance(index, int) or (isinstance(route, int) and index < 0):
        raise ValueError(f'Unknown route {route!r}: give main, aux, split, or a whole number up to {num_aux}; between '
                         'routes there are the plain models of blend_routes.')
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
