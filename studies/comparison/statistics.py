"""Measured values by row of the study."""
import statistics
from typing import Any, Dict, List, Sequence, Tuple

__all__ = ['Result', 'by_row', 'mean_and_deviation', 'mean_and_error', 'paired_difference']

Result = Dict[str, Any]


def by_row(results: Sequence[Result], column: str) -> Dict[str, List[float]]:
    """Values of a column for each row of the study, in the order of the results; rows without it are left out.

    Args:
        results: Results of all jobs.
        column: Name of a measurement.
    """
    values: Dict[str, List[float]] = {}
    for result in results:
        if column in result:
            values.setdefault(result['name'], []).append(result[column])
    return values


def mean_and_deviation(values: Sequence[float]) -> Tuple[float, float]:
    """Mean and sample standard deviation, 0 for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.


def mean_and_error(values: Sequence[float]) -> Tuple[float, float]:
    """Mean and its standard error, 0 for a single value."""
    mean, deviation = mean_and_deviation(values)
    return mean, deviation / len(values) ** 0.5


def paired_difference(results: Sequence[Result], name: str, other: str, column: str) -> Tuple[float, float]:
    """Mean and standard error, over seeds, of what a row has more than another of the same seed.

    Args:
        results: Results of all jobs.
        name: The row.
        other: The row that it is compared with.
        column: Name of a measurement.
    """
    by_seed = [{result['seed']: result[column] for result in results if result['name'] == row and column in result}
               for row in (name, other)]
    seeds = by_seed[0].keys() & by_seed[1].keys()
    return mean_and_error([by_seed[0][seed] - by_seed[1][seed] for seed in sorted(seeds)])
