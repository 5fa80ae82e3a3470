"""A study: what is compared, on which data, with how many seeds."""
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from .measures import Measures
from .rows import Row

__all__ = ['Claim', 'Study']


@dataclass(frozen=True)
class Claim:
    """A claim that a row is above another one in a column.

    Args:
        text: The claim.
        row: The row that is said to be above.
        other: The other row.
        column: Name of a measurement.
        margin: The smallest difference that would be worth its cost, in percent: where the interval says that it is
            smaller, the claim is not reproduced.
    """
    text: str
    row: str
    other: str
    column: str
    margin: float = 0.2


@dataclass(frozen=True)
class Study:
    """A comparison of ways to train.

    Args:
        name: Its name on the command line; underscores for dashes in the names of its files.
        about: Data, network and schedule, in a sentence, for the head of its tables.
        recipe: Recipe of the training program.
        write_data: Writes the data set to a folder; takes `source`, the folder of its files.
        data: Name of the data set's folder.
        rows: The ways to train.
        seeds: Seeds of each row; the same split, initialisation and order of images for all rows.
        measures: What is measured.
        columns: Titles of the table's columns, by name of a measurement.
        panels: Columns of the picture of differences.
        curves: Rows of the picture of accuracy over strength.
        reference: The row that others are compared with.
        claims: What is tested, together: the more claims, the more each of them has to show.
        flags: Flags of the training program for all rows.
        pretraining: The study of whose rows some rows here start, on a data set of its own. Its trainings are made once
            for each seed, and cost nothing here.
    """
    name: str
    about: str
    recipe: str
    write_data: Callable[..., Any]
    data: str
    rows: Mapping[str, Row]
    seeds: Tuple[int, ...]
    measures: Measures
    columns: Mapping[str, str]
    panels: Tuple[str, ...] = ()
    curves: Tuple[str, ...] = ()
    reference: str = 'vanilla'
    claims: Sequence[Claim] = ()
    flags: Tuple[str, ...] = ()
    pretraining: Optional['Study'] = None

    @property
    def file_name(self) -> str:
        """Beginning of its files' names."""
        return self.name.replace('-', '_')

    @property
    def with_pretraining(self) -> List['Study']:
        """It and what it starts from, each with a data set of its own."""
        return [self, *([self.pretraining] if self.pretraining else [])]

    def commands(self, row: str) -> Tuple[Tuple[str, ...], ...]:
        """Flags of the training program for each run of a row, but for data, seed and output."""
        return tuple(('--config', self.recipe, *self.flags, *flags) for flags in self.rows[row].phases)

    def title(self, row: str) -> str:
        """Name of a row, or of a blend of one, in tables and pictures."""
        trained, _, blend = row.partition(', blend ')
        title = self.rows[trained].title
        return f'{title}, {float(blend):.0%} of aux blended in' if blend else title

    def only(self, rows: Sequence[str], seeds: Sequence[int]) -> 'Study':
        """The part of it that has these rows and seeds; all where none are given."""
        chosen: Dict[str, Row] = {name: self.rows[name] for name in rows} if rows else dict(self.rows)
        return replace(self, rows=chosen, seeds=tuple(dict.fromkeys(seeds)) or self.seeds)
