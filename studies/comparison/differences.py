"""Differences of rows that are paired by seed, and what they say of a claim."""
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Dict, List, Mapping, Optional, Sequence

from scipy.stats import t as student

from .job import Result
from .study import Claim

__all__ = ['Difference', 'Tested', 'difference', 'holm_levels', 'test_claims', 'values_of']

_LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, of which a t-test asks whether it is zero.

    Args:
        values: A difference for each pair, two or more.
    """
    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Their mean."""
        return fmean(self.values)

    def margin(self, level: float = _LEVEL) -> float:
        """Half the width of the interval in which the true mean lies with probability 1 - level."""
        return float(student.ppf(1 - level / 2, len(self.values) - 1)) * self._error

    @property
    def p(self) -> float:
        """How probable a mean as far from zero would be if there were no difference."""
        if self._error == 0:
            return 1. if self.mean == 0 else 0.
        return float(2 * student.sf(abs(self.mean) / self._error, len(self.values) - 1))

    @property
    def _error(self) -> float:
        return stdev(self.values) / len(self.values) ** 0.5


@dataclass(frozen=True)
class Tested:
    """A claim and what was found.

    Args:
        claim: The claim.
        difference: What its row has more than the other; None where there are fewer than two pairs.
        level: The level it was tested at, by Holm's method.
    """
    claim: Claim
    difference: Optional[Difference]
    level: float = _LEVEL

    @property
    def verdict(self) -> str:
        """`'reproduced'` where the interval is above zero, `'not reproduced'` where it is below the smallest difference
        that is worth its cost, else `'cannot tell at this scale'`."""
        if self.difference is None:
            return 'not measured'
        low, high = (self.difference.mean + sign * self.difference.margin(self.level) for sign in (-1, 1))
        if low > 0:
            return 'reproduced'
        return 'not reproduced' if high < self.claim.margin else 'cannot tell at this scale'


def values_of(results: Sequence[Result], row: str, column: str) -> Dict[int, float]:
    """Values of a column by seed.

    Args:
        results: Results of a study.
        row: Name of the row.
        column: Name of a measurement.
    """
    return {result['seed']: result[column] for result in results if result['row'] == row and column in result}


def difference(results: Sequence[Result], row: str, other: str, column: str) -> Optional[Difference]:
    """What a row has more than another one with the same seeds; None where these are fewer than two.

    Args:
        results: Results of a study.
        row: Name of the row.
        other: Name of the other row.
        column: Name of a measurement.
    """
    ours, theirs = values_of(results, row, column), values_of(results, other, column)
    seeds = sorted(ours.keys() & theirs.keys())
    return Difference([ours[seed] - theirs[seed] for seed in seeds]) if len(seeds) > 1 else None


def test_claims(results: Sequence[Result], claims: Sequence[Claim]) -> List[Tested]:
    """Test claims together: the chance that one of them is wrongly found true, or its opposite, is 5 % at most."""
    found = {i: difference(results, claim.row, claim.other, claim.column) for i, claim in enumerate(claims)}
    levels = holm_levels({i: value.p for i, value in found.items() if value is not None})
    return [Tested(claim, found[i], levels.get(i, _LEVEL)) for i, claim in enumerate(claims)]


def holm_levels(p: Mapping[int, float], level: float = _LEVEL) -> Dict[int, float]:
    """The level of each of several tests: Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, Scandinavian
    Journal of Statistics 1979.

    The smallest p is tested at level / m, the next one at level / (m - 1) and so on; from the first that fails on, all
    at the level that it had.

    Args:
        p: By test, how probable what was found is without a difference.
        level: Level of all tests together.
    """
    levels, failed = {}, None
    for rank, test in enumerate(sorted(p, key=p.get)):
        levels[test] = failed or level / (len(p) - rank)
        if failed is None and p[test] > levels[test]:
            failed = levels[test]
    return levels


test_claims.__test__ = False  # no test of pytest's
