"""The regimes by name, and what their names and flags mean."""
import inspect
from typing import Any, Callable, Dict, List, Optional

import torch.nn as nn
from timm.task import TrainingTask

from ..norms import convert_split_norm, has_split_norm
from .adversary import default_steps
from .advprop import AdvPropTask, num_aux_needed
from .fast_advprop import FastAdvPropTask
from .generators import GENERATORS
from .one_norm import JointTask, MadryTask
from .vanilla import VanillaTask

__all__ = [
    'REGIMES', 'attack_settings', 'create_task', 'default_regime', 'images_of_aux_norms', 'num_aux_of_regime',
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
    if regime != 'advprop' and isinstance(attack.get('eps'), (list, tuple)):
        raise ValueError(f'Regime {regime} takes one attack strength, got {attack["eps"]} (--adv-eps).')
    not_of_generators = sorted(set(attack) - {'generator', 'eps', 'weight', 'aug_splits', 'mean', 'std'})
    if attack.get('generator') is not None and not_of_generators:
        raise ValueError(f'A generator takes the place of the attack: leave {", ".join(not_of_generators)} out.')
    return {**settings, **attack}


def images_of_aux_norms(regime: str, attack: Dict[str, Any]) -> List[Dict[str, Any]]:
    """What each auxiliary norm of a regime is trained on.

    Args:
        regime: A name in `REGIMES`.
        attack: Keyword arguments of the regime's task.

    Returns:
        For each norm `trained_on`, and for adversarial images `attack`, `eps_px`, `alpha_px` (in 0–255 pixels),
        `steps`, `target` and `random_start`.

    Raises:
        ValueError: The regime has no use for one of the arguments.
    """
    if not num_aux_of_regime(regime, attack):
        return []
    settings = attack_settings(regime, attack)
    images = [dict(trained_on='augmented images')] * (settings.get('aug_splits', 1) - 1)
    eps = settings['eps']
    strengths = eps if isinstance(eps, (list, tuple)) else [eps]
    generator = settings.get('generator')
    if generator is not None:
        name = generator if isinstance(generator, str) else getattr(generator, '__name__', type(generator).__name__)
        if name not in GENERATORS:
            return [*images, dict(trained_on=f'images of {name}')]
        return images + [dict(trained_on=name, eps_px=strength) for strength in strengths]
    common = {name: settings[name] for name in ('attack', 'target', 'random_start')}
    return images + [dict(
        trained_on='adversarial images',
        **common,
        alpha_px=settings['alpha'],
        eps_px=strength,
        steps=1 if regime == 'fast-advprop' else settings['steps'] or default_steps(strength),
        **(dict(norm=settings['norm']) if settings['norm'] != 'linf' else {}),
    ) for strength in strengths]


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
    attack = dict(attack or {})
    if regime is None and default_regime(model) == 'vanilla' and set(attack) - {'mean', 'std'}:
        raise ValueError(f'{type(model).__name__} has no split norms: say which regime the attack is for (--regime).')
    regime = regime or default_regime(model)
    if regime not in REGIMES:
        raise ValueError(f'Unknown regime {regime!r}: give one of {", ".join(REGIMES)}.')
    attack = attack_settings(regime, attack) if regime != 'vanilla' else {}
    num_aux = num_aux_of_regime(regime, attack)
    if num_aux and not has_split_norm(model):
        convert_split_norm(model, num_aux)
    return REGIMES[regime](model, criterion, **attack, **kwargs)
