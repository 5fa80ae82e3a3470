"""Settings of a model's batch norms, for good or for a while; those of split norms are set on main and auxiliary."""
from contextlib import contextmanager
from typing import Iterator, Optional

import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from .conversion import convert_sync_batchnorm

__all__ = ['batch_statistics', 'configure_batch_norm']


def configure_batch_norm(
        model: nn.Module,
        momentum: Optional[float] = None,
        eps: Optional[float] = None,
        synchronise: bool = False,
) -> nn.Module:
    """Set every batch norm of a model, main and auxiliary.

    Args:
        model: A model with split or plain batch norms.
        momentum: Weight of the new batch in the running statistics; unchanged where None.
        eps: Added to the variance; unchanged where None.
        synchronise: Take the statistics over all processes.

    Returns:
        The model.
    """
    for norm in _batch_norms(model):
        norm.momentum = norm.momentum if momentum is None else momentum
        norm.eps = norm.eps if eps is None else eps
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


def _batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in model.modules() if isinstance(module, _BatchNorm))
