"""The rows of the study: a regime each, as flags of the training program.

All attacks in training are a single untargeted step of size eps from a random start. The strength is the one that gave
AdvProp the best accuracy on held-out images (`--choose`), and it is the same for all rows.
"""
from dataclasses import dataclass
from typing import Dict, List, Tuple

__all__ = ['CANDIDATES', 'EPOCHS', 'EPS', 'RECIPE', 'ROWS', 'Row', 'attack_flags']

RECIPE = 'hparams/test_resnet_fashion_mnist.yaml'
EPOCHS = 20  # as in the recipe
EPS = 2


def attack_flags(eps: float) -> List[str]:
    """Flags of the study's attack."""
    steps = ['--adv-eps', str(eps), '--adv-alpha', str(eps), '--adv-steps', '1']
    return [*steps, '--adv-target', 'none', '--adv-random-start', '1']


@dataclass(frozen=True)
class Row:
    """A way to train.

    Args:
        phases: Flags of each training run; a run starts from the weights of the one before.
        title: Name in tables and pictures.
        aux: The model has auxiliary norms for adversarial images; number of the route through the last of them.
        blends: Shares of the auxiliary norms in plain models between the routes, which are measured, too.
    """
    phases: Tuple[List[str], ...]
    title: str
    aux: int = 0
    blends: Tuple[float, ...] = ()


_HALF = ['--epochs', str(EPOCHS // 2)]

ROWS: Dict[str, Row] = {
    'vanilla': Row((['--regime', 'vanilla'],), 'vanilla'),
    'madry': Row((['--regime', 'madry', *attack_flags(EPS)],), 'Madry'),
    'joint': Row((['--regime', 'joint', *attack_flags(EPS)],), 'joint, one norm'),
    'pretraining': Row(
        (['--regime', 'madry', *attack_flags(EPS), *_HALF], ['--regime', 'vanilla', *_HALF]),
        'adversarial pre-training',
    ),
    'advprop': Row((['--regime', 'advprop', *attack_flags(EPS)],), 'AdvProp', aux=1),
    'advprop-fine-grained': Row(
        (['--regime', 'advprop', *attack_flags(EPS), '--aug-splits', '2', '--split-bn', '--aa', 'rand-m5-inc1'],),
        'AdvProp, fine-grained', aux=2),
    'advprop-noise': Row(
        (['--regime', 'advprop', '--adv-source', 'gaussian-noise', '--adv-eps', str(2 * EPS)],),
        'Gaussian noise for AdvProp\'s attack', aux=1),
    'fast-advprop': Row(
        (['--regime', 'fast-advprop', '--adv-eps', str(EPS), '--adv-alpha', str(EPS), '--adv-random-start', '1'],),
        'Fast AdvProp', aux=1),
}

CANDIDATES: Dict[str, Row] = {
    **{f'advprop-eps{eps}': Row((['--regime', 'advprop', *attack_flags(eps)],), f'AdvProp, eps {eps}')
       for eps in (1, 2, 4)},
    **{f'vanilla-lr{lr}': Row((['--regime', 'vanilla', '--lr', lr],), f'vanilla, lr {lr}')
       for lr in ('0.05', '0.1', '0.2')},
}
