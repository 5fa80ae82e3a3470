"""Training regimes: which images train a model, through which norms, and how their losses add up.

One file a family. A new regime is a `RegimeTask` in a file of its own and a line in `REGIMES`.
"""
import inspect
from typing import Any, Callable, Dict, Optional

import torch.nn as nn
from timm.task import TrainingTask

from ..norms import convert_split_norm, has_split_norm
from .adversary import Adversary, default_steps
from .advprop import AdvPropTask, num_aux_needed
from .fast_advprop import FastAdvPropTask
from .generators import GENERATORS, GaussianNoise
from .one_norm import JointTask, MadryTask
from .task import RegimeTask
from .vanilla import VanillaTask

__all__ = [
    'AdvPropTask',
    'Adversary',
    'FastAdvPropTask',
    'GENERATORS',
    'GaussianNoise',
    'JointTask',
    'MadryTask',
    'REGIMES',
    'RegimeTask',
    'VanillaTask',
    'attack_settings',
    'create_task',
    'default_regime',
    'default_steps',
    'num_aux_of_regime',
]

REGIMES = {
    'vanilla': VanillaTask,
    'madry': MadryTask,
    'joint': JointTask,
    'advprop': AdvPropTask,
    'fast-advprop': FastAdvPropTask,
}


def default_regime(model: nn.Module) -> str:
    """`'advprop'` for a model with split norms, else `'vanilla'`."""
    return 'advprop' if has_split_norm(model) else 'vanilla'


def num_aux_of_regime(regime: str, attack: Dict[str, Any]) -> int:
    """Number of auxiliary norms that a regime trains, for each norm.

    Args:
        regime: A name in `REGIMES`.
        attack: Keyword arguments of the regime's task.
    """
    if regime == 'advprop':
        return num_aux_needed(**{name: attack[name] for name in ('eps', 'generator', 'aug_splits') if name in attack})
    return 1 if regime == 'fast-advprop' else 0


def attack_settings(regime: str, attack: Dict[str, Any]) -> Dict[str, Any]:
    """The attack of a regime: what is given, and the defaults of the regime's task.

    Args:
        regime: A name in `REGIMES`.
        attack: Keyword arguments of the regime's task.

    Raises:
        ValueError: The regime has no use for one of them.
    """
    parameters = inspect.signature(REGIMES[regime]).parameters.values()
    settings = {parameter.name: parameter.default for parameter in parameters
                if parameter.kind == parameter.KEYWORD_ONLY}
    unused = sorted(set(attack) - set(settings))
    if unused:
        flags = ', '.join(f'{name} (--adv-{name.replace("_", "-")})' for name in unused)
        raise ValueError(f'Regime {regime} has no use for {flags}: leave it out.')
    return {**settings, **attack}


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
        attack: Keyword arguments of the regime's task that describe its attack; `'vanilla'` ignores them.
        **kwargs: Keyword arguments of `timm.task.ClassificationTask`.

    Raises:
        ValueError: The regime is unknown, or the model or an argument does not fit it.
    """
    regime = regime or default_regime(model)
    if regime not in REGIMES:
        raise ValueError(f'Unknown regime {regime!r}: give one of {", ".join(REGIMES)}.')
    attack = attack_settings(regime, dict(attack or {})) if regime != 'vanilla' else {}
    num_aux = num_aux_of_regime(regime, attack)
    if num_aux and not has_split_norm(model):
        convert_split_norm(model, num_aux)
    return REGIMES[regime](model, criterion, **attack, **kwargs)
