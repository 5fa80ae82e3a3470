"""The `--regime` and `--adv-*` command-line flags, shared by training, validation and `wrap`."""
import argparse
import math
from typing import Any, Callable, Dict

from ..attacks import ATTACKS, NORMS
from .adversary import AMP_DTYPES, NORM_STATS, TARGETS
from .registry import REGIMES

__all__ = ['add_regime_arguments', 'add_attack_arguments', 'attack_kwargs', 'number']

_SETTINGS = ('attack', 'eps', 'alpha', 'steps', 'target', 'random_start', 'norm', 'norm_stats', 'amp_dtype', 'weight',
             'generator')


def add_regime_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--regime` and the flags of the training attack."""
    group = parser.add_argument_group('AdvProp parameters')
    group.add_argument('--regime', choices=tuple(REGIMES), default=None,
                       help='training regime (default: advprop where the model has split norms, else vanilla)')
    group.add_argument('--adv-attack', choices=tuple(ATTACKS), default=None, help='attack (default: pgd)')
    group.add_argument('--adv-eps', type=number(0), nargs='+', default=None, metavar='PX',
                       help='attack strength in 0-255 pixels; several train one aux norm each '
                            '(default: 4, fast-advprop: 1)')
    _add_attack_settings(
        group, target='random, madry and fast-advprop: none', random_start='0.8, madry: 1')
    group.add_argument('--adv-weight', type=number(0), default=None, metavar='W',
                       help='weight of the adversarial loss (default: 1, fast-advprop: 0.5)')
    group.add_argument('--adv-generator', default=None, metavar='NAME',
                       help='other images for the aux norm than an attack\'s: gaussian-noise of standard deviation '
                            '--adv-eps, or package.module:name of a callable from (images, target) to (images, target)')


def add_attack_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of an attack at test time."""
    group = parser.add_argument_group('Attack parameters')
    group.add_argument('--adv-attack', choices=('none', *ATTACKS), default='none',
                       help='attack the images, and report adv_top1 and adv_top5 too (default: none)')
    group.add_argument('--adv-eps', type=number(0), default=4., metavar='PX',
                       help='attack strength in 0-255 pixels (default: 4)')
    _add_attack_settings(group, target='none', random_start='1')
    parser.set_defaults(adv_alpha=1., adv_target='none', adv_random_start=1., adv_norm='linf', adv_norm_stats='eval')


def attack_kwargs(args: argparse.Namespace) -> Dict[str, Any]:
    """Keyword arguments of an attack, as a regime's task and `Adversary` take them, from the flags that were given.

    Args:
        args: Parsed flags, or any namespace with some of them.
    """
    given = {name: getattr(args, f'adv_{name}', None) for name in _SETTINGS}
    kwargs = {name: value for name, value in given.items() if value is not None}
    if isinstance(kwargs.get('eps'), list) and len(kwargs['eps']) == 1:
        kwargs['eps'] = kwargs['eps'][0]
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


def _add_attack_settings(group, target: str, random_start: str) -> None:
    # Without defaults: a regime's task has its own.
    group.add_argument('--adv-alpha', type=number(0), default=None, metavar='PX',
                       help='size of an attack step in 0-255 pixels (default: 1)')
    group.add_argument('--adv-steps', type=number(1, kind=int), default=None, metavar='N',
                       help='attack steps (default: eps + 1, and 1 where eps is at most 1)')
    group.add_argument('--adv-target', choices=TARGETS, default=None,
                       help=f'random wrong label, or none: away from the true one (default: {target})')
    group.add_argument('--adv-random-start', type=number(0, 1), default=None, metavar='P',
                       help=f'probability of a random start, for each sample (default: {random_start})')
    group.add_argument('--adv-norm', choices=NORMS, default=None,
                       help='norm of the perturbation; for l2, strength and step size are lengths of a whole image\'s '
                            '(default: linf)')
    group.add_argument('--adv-norm-stats', choices=NORM_STATS, default=None,
                       help='statistics the attack\'s forward uses (default: eval)')
    group.add_argument('--adv-amp-dtype', choices=AMP_DTYPES, default=None,
                       help='precision of the attack alone (default: as the training step)')
