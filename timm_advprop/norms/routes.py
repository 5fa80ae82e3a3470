"""Routes: which norms of a model its images pass."""
from contextlib import contextmanager
from typing import Iterator, Optional, Sequence, Set, Tuple, Union

import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from .split_norm import AUX, CLEAN, SPLIT, split_norms

__all__ = ['Route', 'batch_statistics', 'norm_route', 'set_norm_route', 'train_aux']

Route = Union[str, int]

_NAMED_ROUTES = {'clean': CLEAN, 'aux': AUX, 'split': SPLIT}


def set_norm_route(model: nn.Module, route: Route, sizes: Optional[Sequence[int]] = None) -> None:
    """Choose the norms that images pass, until the next call.

    Args:
        model: A model with split norms, wrapped (DDP, compiled) or not.
        route: `'clean'` (or 0), `'aux'` (the first auxiliary norm), i for the i-th auxiliary norm, or `'split'`.
        sizes: For `'split'`: images for the main norm, then for each auxiliary norm. Equal parts by default. Norms that
            see tokens as rows divide these in proportion.

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
                parameter.requires_grad_(train and norm.get_parameter(name).requires_grad)


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
