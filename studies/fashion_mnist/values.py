"""Measured values by row of the study."""
import statistics
from typing import Any, Dict, List, Sequence, Tuple

from .rows import ROWS

__all__ = ['Result', 'by_row', 'mean_and_deviation']

Result = Dict[str, Any]


def by_row(results: Sequence[Result], column: str) -> Dict[str, List[float]]:
    """Values of a column for each row of the study, in the order of the rows; rows without it are left out.

    Args:
        results: Results of all jobs.
        column: Name of a measurement.
    """
    values = {name: [result[column] for result in results if result['name'] == name and column in result]
              for name in ROWS}
    return {name: entries for name, entries in values.items() if entries}


def mean_and_deviation(values: Sequence[float]) -> Tuple[float, float]:
    """Mean and sample standard deviation, 0 for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.
