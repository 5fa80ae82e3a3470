"""Rows of a study: a way to train each, as flags of the training program."""
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Sequence, Tuple

__all__ = ['Rate', 'Rates', 'Row', 'attack_flags', 'rows_of_rates']

Rate = Tuple[str, str]  # learning rate and weight decay
_OF_ONE_LOSS = ('vanilla', 'madry', 'fast-advprop')


@dataclass(frozen=True)
class Row:
    """A way to train.

    Args:
        title: Name in tables and pictures.
        phases: Flags of each training run; a run starts from the weights of the one before.
        aux: The model has auxiliary norms; number of the route through the last of them, that of the strongest attack.
        blends: Shares of the auxiliary norms in plain models between the routes, which are measured, too.
        start: Row of the study's pre-training from whose weights, of the same seed, the first run starts; '' for none.
    """
    title: str
    phases: Tuple[List[str], ...]
    aux: int = 0
    blends: Tuple[float, ...] = ()
    start: str = ''


@dataclass(frozen=True)
class Rates:
    """Rates and decays by regime: a sum of losses may want others than one loss.

    Args:
        one_loss: Of regimes of one loss.
        summed: Of those that sum a clean and an adversarial one.
    """
    one_loss: Rate
    summed: Rate

    def flags(self, regime: str, *flags: str) -> List[str]:
        """Flags of a training run with the regime's rate."""
        return ['--regime', regime, *_rate_flags(self.one_loss if regime in _OF_ONE_LOSS else self.summed), *flags]

    def row(self, title: str, regime: str, *flags: str, **about: Any) -> Row:
        """A row of one training run; further arguments as of `Row`."""
        return Row(title, (self.flags(regime, *flags),), **about)

    def advprop(self, title: str, *flags: str, aux: int = 1, **about: Any) -> Row:
        """A row of AdvProp."""
        return self.row(title, 'advprop', *flags, aux=aux, **about)


def rows_of_rates(name: str, row: Row, rates: Sequence[Rate]) -> Dict[str, Row]:
    """A row with several rates and decays, to choose from.

    Args:
        name: Beginning of the rows' names.
        row: The row, whose runs name no rate.
        rates: The rates and decays.
    """
    return {f'{name}-lr{rate}-wd{decay}': replace(
        row, title=f'{row.title}, rate {rate}, decay {decay}',
        phases=tuple([*flags, *_rate_flags((rate, decay))] for flags in row.phases)) for rate, decay in rates}


def attack_flags(*eps: float, target: str = 'none') -> List[str]:
    """Flags of attacks of one step from a random start, as large as the ball.

    Args:
        *eps: Strengths in pixels.
        target: As `--adv-target` takes it.
    """
    alpha = ['--adv-alpha', str(eps[0])] if len(eps) == 1 else []
    return ['--adv-eps', *map(str, eps), *alpha, '--adv-steps', '1', '--adv-target', target, '--adv-random-start', '1']


def _rate_flags(rate: Rate) -> List[str]:
    return ['--lr', rate[0], '--weight-decay', rate[1]]
