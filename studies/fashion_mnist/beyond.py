"""The rows of `python -m studies.fashion_mnist --rows beyond`: what was proposed after the paper, beside AdvProp.

All attacks in training are a single untargeted step as in `rows`, but those that are defined by several steps.
"""
from typing import Dict, List

from .rows import EPS, ROWS, Row, attack_flags

__all__ = ['BEYOND']

_ADVPROP = ROWS['advprop'].phases[0]


def _advprop(title: str, *flags: str, **about: int) -> Row:
    return Row(([*_ADVPROP, *flags],), title, aux=1, **about)


def _source(title: str, source: str) -> Row:
    return Row((['--regime', 'advprop', '--adv-source', source],), title, aux=1)


# As strong as the attack where all scales agree, and as cheap.
_PYRAMID = f'pyramid eps={EPS / 4:g} alpha={EPS / 4:g} steps=1 scales=[14,4,1] weights=[1,1,2] target=none'


def _trades(model: List[str], title: str, aux: int) -> Row:
    # the KL is lowest at the image itself: its attack takes the steps of the paper's rule
    return Row((['--regime', 'trades', *attack_flags(EPS)[:2], '--adv-alpha', '1', '--adv-steps', '2', *model],),
               title, aux=aux)


BEYOND: Dict[str, Row] = {
    'vanilla': ROWS['vanilla'],
    'advprop': Row(ROWS['advprop'].phases, ROWS['advprop'].title, aux=1, blends=(0.25, 0.5, 0.75)),
    'share-statistics': _advprop('shared statistics', '--adv-share', 'statistics'),
    'share-statistics-of-main': _advprop('shared statistics of main', '--adv-share', 'statistics-of-main'),
    'pairing-alp': _advprop('logits paired (ALP)', '--adv-pairing', 'alp'),
    'pairing-kl': _advprop('KL between routes', '--adv-pairing', 'kl'),
    'pairing-js': _advprop('Jensen–Shannon between routes', '--adv-pairing', 'js'),
    'trades': _trades([], 'TRADES, one norm', aux=0),
    'trades-split': _trades(['--model', 'test_resnet_ap'], 'TRADES, split norms', aux=1),
    'gaussian-noise': _source('Gaussian noise', f'gaussian-noise eps={2 * EPS}'),
    'augmix': _source('AugMix', 'augmix'),
    'corruption': _source('corruptions of the test', 'corruption'),
    'amplitude-mix': _source('amplitude mix', 'amplitude-mix'),
    'augmax': _source('AugMax', 'augmax steps=2'),
    'pyramid': _source('PyramidAT', _PYRAMID),
    'joint-pyramid': Row((['--regime', 'joint', '--adv-source', _PYRAMID],), 'PyramidAT, one norm'),
}
