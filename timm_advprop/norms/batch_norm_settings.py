"""Settings of a model's batch norms, for good or for a while; those of split norms are set on main and auxiliary."""
from contextlib import contextmanager
from typing import Iterator, List, Optional

import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from .conversion import convert_sync_batchnorm
from .split_norm import split_norms

__all__ = ['batch_statistics', 'configure_batch_norm']


def configure_batch_norm(
        model: nn.Module,
        momentum: Optional[float] = None,
        eps: Optional[float] = None,
        synchronise: bool = False,
        aux_momentum: Optional[float] = None,
) -> nn.Module:
    """Set every batch norm of a model, main and auxiliary.

    Args:
        model: A model with split or plain batch norms.
        momentum: Weight of the new batch in the running statistics; unchanged where None.
        eps: Added to the variance; unchanged where None.
        synchronise: Take the statistics over all processes.
        aux_momentum: Another momentum for the auxiliary norms.

    Returns:
        The model.

    Raises:
        ValueError: `aux_momentum` is given and there are no auxiliary statistics.
    """
    for norm in _batch_norms(model):
        norm.momentum = norm.momentum if momentum is None else momentum
        norm.eps = norm.eps if eps is None else eps
    if aux_momentum is not None:
        for norm in _aux_batch_norms(model):
            norm.momentum = aux_momentum
    return convert_sync_batchnorm(model) if synchronise else model


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let a model's batch norms normalise by each batch's own statistics and leave the running ones alone.

    Args:
        model: A model with split or plain batch norms. Each norm's own settings are restored after the block.
    """
    previous = [(norm, norm.training, norm.track_running_stats) for norm in _batch_norms(model)]
    try:
        for norm, *_ in previous:
            # in train mode without tracking, batch norm reads no running statistics and writes none
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, training, track_running_stats in previous:
            norm.training, norm.track_running_stats = training, track_running_stats


def _aux_batch_norms(model: nn.Module) -> List[_BatchNorm]:
    norms = [aux for norm in split_norms(model) for aux in norm.aux_bn if getattr(aux, 'running_var', None) is not None]
    if not norms:
        raise ValueError(f'{type(model).__name__} has no auxiliary statistics that a momentum could be of: it has no '
                         'auxiliary batch norms, or they share the statistics of the main norms.')
    return norms


def _batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in model.modules() if isinstance(module, _BatchNorm))
