"""The table of a study: every run, kept in a file as soon as it is finished. A study goes on from it."""
import csv
import os
from typing import Any, List, Sequence

from timm_advprop.errors import InputError
from timm_advprop.output import replacing

from .job import Job, Result

__all__ = ['Table']

_ABOUT = ('holdout', 'epochs', 'seconds', 'commit', 'timm', 'torch', 'machine', 'settings')  # last columns


class Table:
    """Results of jobs in a CSV file.

    Args:
        path: The file; there is none before the first result.

    Raises:
        InputError: The file is none of a study.
    """

    def __init__(self, path: str):
        self.path = path
        self.rows: List[Result] = []
        if os.path.isfile(path):
            with open(path, newline='', encoding='utf-8') as file:
                self.rows = [{name: _value(name, value) for name, value in row.items() if value != ''}
                             for row in csv.DictReader(file)]
        if not all({'row', 'seed', 'settings'} <= row.keys() for row in self.rows):
            raise InputError(f'{path} is no table of a study: give another folder of results.')

    def results(self, jobs: Sequence[Job]) -> List[Result]:
        """Results of jobs that are finished, with their present settings; those of blends, too."""
        wanted = {(job.row, job.seed): job.settings for job in jobs}
        return [row for row in self.rows if wanted.get(_trained(row)) == row['settings']]

    def add(self, results: Sequence[Result]) -> None:
        """Keep the results of a job, in place of former ones of its row and seed. A kill leaves the old file or the
        new one."""
        done = {_trained(result) for result in results}
        self.rows = [row for row in self.rows if _trained(row) not in done]
        self.rows += [{name: _rounded(value) for name, value in result.items()} for result in results]
        measured = [name for name in dict.fromkeys(name for row in self.rows for name in row)
                    if name not in ('row', 'seed', *_ABOUT)]
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        with replacing(self.path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, ['row', 'seed', *measured, *_ABOUT])
            writer.writeheader()
            writer.writerows(self.rows)


def _trained(row: Result) -> Any:
    return row['row'].partition(', blend ')[0], row['seed']


def _value(name: str, text: str) -> Any:
    if name in ('row', 'commit', 'timm', 'torch', 'machine', 'settings'):
        return text
    return int(text) if name in ('seed', 'epochs', 'seconds') else float(text)


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
