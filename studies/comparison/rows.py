"""Rows of a study: a way to train each, as flags of the training program."""
from dataclasses import dataclass
from typing import List, Tuple

__all__ = ['Row', 'attack_flags']


@dataclass(frozen=True)
class Row:
    """A way to train.

    Args:
        title: Name in tables and pictures.
        phases: Flags of each training run; a run starts from the weights of the one before.
        aux: The model has auxiliary norms; number of the route through the last of them, that of the strongest attack.
        blends: Shares of the auxiliary norms in plain models between the routes, which are measured, too.
    """
    title: str
    phases: Tuple[List[str], ...]
    aux: int = 0
    blends: Tuple[float, ...] = ()


def attack_flags(*eps: float, target: str = 'none') -> List[str]:
    """Flags of attacks of one step from a random start, as large as the ball.

    Args:
        *eps: Strengths in pixels.
        target: As `--adv-target` takes it.
    """
    alpha = ['--adv-alpha', str(eps[0])] if len(eps) == 1 else []
    return ['--adv-eps', *map(str, eps), *alpha, '--adv-steps', '1', '--adv-target', target, '--adv-random-start', '1']
