"""The `--regime` and `--adv-*` command-line flags, shared by training, validation and `wrap`."""
import argparse
import math
from typing import Any, Callable, Dict, Optional

from ..attacks import ATTACKS
from . import REGIMES
from .adversary import AMP_DTYPES, NORM_STATS, TARGETS

__all__ = ['add_regime_arguments', 'add_attack_arguments', 'attack_kwargs']


def add_regime_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--regime` and the flags of the training attack."""
    group = parser.add_argument_group('AdvProp parameters')
    group.add_argument('--regime', choices=tuple(REGIMES), default=None,
                       help='training regime (default: advprop where the model has split norms, else vanilla)')
    group.add_argument('--adv-attack', choices=tuple(ATTACKS), default='pgd', help='attack (default: pgd)')
    group.add_argument('--adv-eps', type=number(0), nargs='+', default=[4.], metavar='PX',
                       help='attack strength in 0-255 pixels; several train one aux norm each (default: 4)')
    _add_attack_settings(group, target='random', random_start=0.8)
    group.add_argument('--adv-weight', type=number(0), default=1., metavar='W',
                       help='weight of the adversarial loss (default: 1)')


def add_attack_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of an attack at test time."""
    group = parser.add_argument_group('Attack parameters')
    group.add_argument('--adv-attack', choices=('none', *ATTACKS), default='none',
                       help='attack the images, and report adv_top1 and adv_top5 too (default: none)')
    group.add_argument('--adv-eps', type=number(0), default=4., metavar='PX',
                       help='attack strength in 0-255 pixels (default: 4)')
    _add_attack_settings(group, target='none', random_start=1.)


def attack_kwargs(args: argparse.Namespace) -> Dict[str, Any]:
    """Keyword arguments of an attack, as `AdvPropTask` and `Adversary` take them, from parsed flags."""
    eps = args.adv_eps
    kwargs = dict(
        attack=args.adv_attack,
        eps=eps[0] if isinstance(eps, list) and len(eps) == 1 else eps,
        alpha=args.adv_alpha,
        steps=args.adv_steps,
        target=args.adv_target,
        random_start=args.adv_random_start,
        norm_stats=args.adv_norm_stats,
        amp_dtype=args.adv_amp_dtype,
    )
    if hasattr(args, 'adv_weight'):
        kwargs['weight'] = args.adv_weight
    return kwargs


def number(low: float, high: float = math.inf, kind: Callable[[str], Any] = float) -> Callable[[str], Any]:
    """An argparse type: a number from `low` to `high`."""
    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high or not math.isfinite(value):
            limits = f'at least {low:g}' if high == math.inf else f'from {low:g} to {high:g}'
            raise argparse.ArgumentTypeError(f'must be {limits}, got {text}')
        return value
    parse.__name__ = kind.__name__  # argparse names the type when the text is no number
    return parse


def _add_attack_settings(group, target: str, random_start: Optional[float]) -> None:
    group.add_argument('--adv-alpha', type=number(0), default=1., metavar='PX',
                       help='size of an attack step in 0-255 pixels (default: 1)')
    group.add_argument('--adv-steps', type=number(1, kind=int), default=None, metavar='N',
                       help='attack steps (default: eps + 1, and 1 where eps is at most 1)')
    group.add_argument('--adv-target', choices=TARGETS, default=target,
                       help=f'random wrong label, or none: away from the true one (default: {target})')
    group.add_argument('--adv-random-start', type=number(0, 1), default=random_start, metavar='P',
                       help=f'probability of a random start, for each sample (default: {random_start:g})')
    group.add_argument('--adv-norm-stats', choices=NORM_STATS, default='eval',
                       help='statistics the attack\'s forward uses (default: eval)')
    group.add_argument('--adv-amp-dtype', choices=AMP_DTYPES, default=None,
                       help='precision of the attack alone (default: as the training step)')
