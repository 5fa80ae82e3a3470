"""The regimes by name, their flags, and the task that a name stands for."""
from dataclasses import replace
from operator import attrgetter
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Type

import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..norms import SHARES, configure_batch_norm, convert_split_norm, has_split_norm, share_of, split_norms
from ..settings import Setting
from .advprop import AdvPropTask
from .attack import Attack
from .fast_advprop import FastAdvPropTask
from .model_attack import ModelAttack
from .named_sources import source_names
from .one_norm import JointTask, MadryTask
from .pairing import PAIRINGS
from .regime_settings import BUDGETS, NO_PAIRING, RegimeSettings
from .task import RegimeTask
from .trades import TradesTask
from .vanilla import VanillaTask

__all__ = ['REGIMES', 'attacks_of', 'create_task', 'lacks_regime', 'regime_flags', 'regime_of', 'split_for_regime',
           'unused_flags']

REGIMES: Dict[str, Type[RegimeTask]] = {
    task.name: task for task in (VanillaTask, MadryTask, JointTask, TradesTask, AdvPropTask, FastAdvPropTask)
}


def regime_of(settings: RegimeSettings, is_split: bool) -> Type[RegimeTask]:
    """The task of the regime that was asked for, by default AdvProp for a model with split norms, else vanilla.

    Args:
        settings: What was asked for.
        is_split: Whether the model has split norms.

    Raises:
        ValueError: The regime is unknown, or has no use for what was asked for.
    """
    name = settings.regime or (AdvPropTask if is_split else VanillaTask).name
    if name not in REGIMES:
        raise ValueError(f'Unknown regime {name!r}: give one of {", ".join(REGIMES)}.')
    REGIMES[name].check(settings)
    return REGIMES[name]


def unused_flags(settings: RegimeSettings) -> Set[str]:
    """Names of the flags given, such as `adv_steps`, that the regime or its sources have no use for.

    Args:
        settings: What was asked for. The regime is AdvProp where it was not named.

    Raises:
        ValueError: There is no such source.
    """
    task_type = REGIMES[settings.regime or AdvPropTask.name]
    return {*(settings.given & task_type.no_use_for.keys()), *settings.unused_by_sources()}


def attacks_of(settings: RegimeSettings, is_split: bool) -> List[ModelAttack]:
    """The attacks on the model of the regime that was asked for.

    Args:
        settings: What was asked for.
        is_split: Whether the model has split norms.

    Raises:
        ValueError: The regime is unknown, or a setting is out of range.
    """
    return _attacks_among(regime_of(settings, is_split).arguments(settings))


def create_task(
        settings: RegimeSettings,
        model: nn.Module,
        criterion: Optional[Callable] = None,
        **kwargs: Any,
) -> RegimeTask:
    """Create the training task of a regime.

    Args:
        settings: What was asked for.
        model: The model to train. A plain model that needs split norms is converted in place.
        criterion: Maps (logits, target) to a scalar.
        **kwargs: `mean` and `std` of the inputs, and keyword arguments of `timm.task.ClassificationTask`.

    Raises:
        ValueError: The regime is unknown, or the model or a setting does not fit it.
    """
    is_split = has_split_norm(model)
    task_type = regime_of(settings, is_split)
    if lacks_regime(settings, model):
        raise ValueError(f'{type(model).__name__} has no split norms: say which regime the attack is for (--regime).')
    model, arguments = split_for_regime(settings, model), task_type.arguments(settings)
    for attack in _attacks_among(arguments):
        attack = attack if criterion is None else attack.against(criterion)
        attack.check_classes(getattr(model, 'num_classes', 2))
    return task_type(model, criterion, **arguments, **kwargs)


def lacks_regime(settings: RegimeSettings, model: nn.Module) -> bool:
    """Whether no regime was named for a plain model, for which other images than clean ones were asked for.

    Args:
        settings: What was asked for.
        model: Any model.
    """
    return settings.regime is None and not has_split_norm(model) and bool(
        settings.attack or settings.strengths or settings.named or settings.pairing or settings.match_masks)


def split_for_regime(settings: RegimeSettings, model: nn.Module) -> nn.Module:
    """Convert a plain model in place where the regime that was asked for needs split norms, and set their momentum.

    Args:
        settings: What was asked for.
        model: Any model. One with split norms stays split as it is.

    Raises:
        ValueError: The regime is unknown, the model cannot be split, or its split norms share something else.
    """
    is_split = has_split_norm(model)
    task_type = regime_of(settings, is_split)
    num_aux = len(task_type.sources_of_aux_norms(settings))
    if not is_split and num_aux and task_type.splits_plain_models:
        convert_split_norm(model, num_aux, settings.share)
    _check_share(settings, model)
    return model if settings.bn_momentum is None else configure_batch_norm(model, aux_momentum=settings.bn_momentum)


def _attacks_among(arguments: Mapping[str, Any]) -> List[ModelAttack]:
    sources = (*arguments.get('sources', ()), arguments.get('attack'))
    return [source for source in sources if isinstance(source, ModelAttack)]


def _check_share(settings: RegimeSettings, model: nn.Module) -> None:
    asked = [flag for flag, value in dict(share=settings.share, bn_momentum=settings.bn_momentum).items()
             if value is not None]
    if asked and not has_split_norm(model):
        flag = f'--adv-{asked[0].replace("_", "-")}'
        raise ValueError(f'{flag} is of auxiliary norms, {type(model).__name__} has none: give its *_ap model, or '
                         f'leave {flag} out.')
    if settings.share not in (None, 'none') and not any(isinstance(norm, _BatchNorm) for norm in split_norms(model)):
        name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
        raise ValueError(f'--adv-share: {name} has no batch norms: there are no statistics to share.')
    if settings.share is not None and share_of(model) != settings.share:
        raise ValueError(f'The model has split norms of share={share_of(model)!r}, --adv-share asks for '
                         f'{settings.share}: create it with share={settings.share!r}.')


def regime_flags() -> Dict[str, Setting]:
    """The AdvProp group of the command line, by the flags' names; without defaults, as each regime has its own."""
    flags = {
        '--regime': Setting(
            'training regime', choices=tuple(REGIMES),
            default_help=f'{AdvPropTask.name} where the model has split norms, else {VanillaTask.name}'),
    }
    for name, about in Attack.declared().items():
        flag = replace(about, default=None, default_help=_defaults(f'default_attack.{name}', about.default_help))
        if name == 'eps_px':
            flag = replace(flag, nargs='+', help=f'{about.help}; several train one aux norm each')
        flags[about.flags[0]] = flag
    return {
        **flags,
        '--adv-weight': Setting(
            'weight of the adversarial loss', kind=float, low=0, metavar='W',
            default_help=_defaults('default_weight')),
        '--adv-source': Setting(
            f'what makes the images of each aux norm, in place of the attack: {", ".join(source_names())}, or '
            'package.module:name of a callable from (model, images, target) to (images, target); settings of its own '
            "in quotes, as in 'pgd eps=2 steps=1'", nargs='+', metavar='NAME'),
        '--adv-pairing': Setting(
            'loss between clean images and those of each source that show the same: adversarial logit pairing, KL '
            'divergence as in TRADES, Jensen–Shannon divergence as in AugMix', choices=(NO_PAIRING, *PAIRINGS),
            default_help=NO_PAIRING),
        '--adv-pairing-weight': Setting(
            'weight of the pairing', kind=float, low=0, metavar='W',
            default_help=', '.join(f'{name}: {weight:g}' for name, (_, weight) in PAIRINGS.items())),
        '--adv-match-masks': Setting(
            'dropout and stochastic depth drop the same of clean and adversarial images, as in pyramid adversarial '
            'training', kind=bool, default=False),
        '--adv-share': Setting(
            'what clean and adversarial images share in batch norms: none; statistics, so that the aux norms have '
            'weights and biases alone; or the same, updated by clean images alone', choices=SHARES,
            default_help='none, or what the norms of the model do'),
        '--adv-bn-momentum': Setting(
            'momentum of the aux norms\' statistics', kind=float, low=0, high=1, metavar='M',
            default_help='that of the main norms'),
        '--adv-budget': Setting(
            'train all --epochs, or as many as cost what --epochs of vanilla training do; the schedule follows',
            choices=BUDGETS, default_help=_defaults('default_budget')),
    }


def _defaults(path: str, usual_help: Optional[str] = None) -> str:
    # '4, fast-advprop: 1', what the regimes say under a name
    usual, *_ = values = {task: attrgetter(path)(task) for task in (AdvPropTask, *REGIMES.values())}
    others = [f'{task.name}: {_text(value)}' for task, value in values.items() if value != values[usual]]
    return ', '.join([usual_help or _text(values[usual]), *others])


def _text(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)
