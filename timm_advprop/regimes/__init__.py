"""Training regimes: which images train a model, through which norms, and how their losses add up.

One file a family. A new regime is a `timm.task.TrainingTask` in a file of its own and a line in `REGIMES`.
"""
from typing import Any, Callable, Dict, Optional

import torch.nn as nn
from timm.task import ClassificationTask, TrainingTask

from ..norms import convert_split_norm, has_split_norm, set_norm_route, train_aux
from .adversary import Adversary, default_steps
from .advprop import AdvPropTask

__all__ = ['AdvPropTask', 'Adversary', 'REGIMES', 'create_task', 'default_regime', 'default_steps']


def _create_vanilla(model: nn.Module, criterion: Optional[Callable], attack: Dict[str, Any], **kwargs) -> TrainingTask:
    if has_split_norm(model):
        set_norm_route(model, 'clean')
        train_aux(model, False)
    return ClassificationTask(model, criterion, **kwargs)


def _create_advprop(model: nn.Module, criterion: Optional[Callable], attack: Dict[str, Any], **kwargs) -> TrainingTask:
    if not has_split_norm(model):
        eps = attack.get('eps', 4)
        convert_split_norm(model, num_aux=len(eps) if isinstance(eps, (list, tuple)) else 1)
    train_aux(model)
    return AdvPropTask(model, criterion, **attack, **kwargs)


REGIMES = {
    'vanilla': _create_vanilla,
    'advprop': _create_advprop,
}


def default_regime(model: nn.Module) -> str:
    """`'advprop'` for a model with split norms, else `'vanilla'`."""
    return 'advprop' if has_split_norm(model) else 'vanilla'


def create_task(
        regime: Optional[str],
        model: nn.Module,
        criterion: Optional[Callable] = None,
        attack: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
) -> TrainingTask:
    """Create the training task of a regime.

    Args:
        regime: A name in `REGIMES`; None for `default_regime(model)`.
        model: The model to train. A plain model that needs split norms is converted in place.
        criterion: Maps (logits, target) to a scalar.
        attack: Keyword arguments of the regime's task that describe its attack, see `AdvPropTask`.
        **kwargs: Keyword arguments of `timm.task.ClassificationTask`.

    Raises:
        ValueError: The regime is unknown, or the model or an argument does not fit it.
    """
    regime = regime or default_regime(model)
    if regime not in REGIMES:
        raise ValueError(f'Unknown regime {regime!r}: give one of {", ".join(REGIMES)}.')
    return REGIMES[regime](model, criterion, attack=dict(attack or {}), **kwargs)
