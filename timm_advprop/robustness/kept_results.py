"""The results file of a robustness run, which holds what is finished at any moment."""
import os
from contextlib import ExitStack, contextmanager
from typing import Iterator, List, Set

from ..engine.locks import locked
from ..engine.results_file import Results, read_results, write_results
from ..errors import InputError
from .summary import summary_rows

__all__ = ['KeptResults', 'open_results']

_COLUMNS = {'model', 'checkpoint', 'route', 'suite', 'condition', 'severity', 'top1', 'cell'}  # of every row


@contextmanager
def open_results(path: str, format: str = 'csv') -> Iterator['KeptResults']:
    """Open a results file, for this process alone while the block runs. See `KeptResults`.

    Raises:
        InputError: The file is none of a robustness run, cannot be written, or another process is writing it.
    """
    if path.endswith('.md'):
        raise InputError(f'The tables are written to {path}: give a --results-file of another ending.')
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for its own end
        raise InputError(f'{path} is no file: finished cells are kept in a --results-file.')
    lock = f'{os.path.realpath(path)}.lock'
    with ExitStack() as until_end:
        try:
            until_end.enter_context(locked(lock))
        except BlockingIOError as error:
            raise InputError(f'Another run is writing {path}: give another --results-file, or wait for its end.'
                             ) from error
        except OSError as error:
            raise InputError(f'Cannot write {path}: {error.strerror}.') from error
        until_end.callback(os.remove, lock)
        yield KeptResults(path, format)


class KeptResults:
    """Rows of finished cells, on disk as soon as they are measured; what is there already is not measured again.

    Args:
        path: The results file.
        format: `'csv'` or `'json'`.

    Raises:
        InputError: The file is there and is none of a robustness run.
    """

    def __init__(self, path: str, format: str = 'csv'):
        self.path, self.format = path, format
        self.rows: List[Results] = []
        if os.path.exists(path):
            rows = read_results(path)
            if not all(_COLUMNS <= row.keys() and row['suite'] for row in rows):
                raise InputError(f'{path} has results that are not of --suite: give another --results-file.')
            self.rows = [row for row in rows if row['cell']]  # without summaries

    @property
    def cells(self) -> Set[str]:
        """Names of the finished cells."""
        return {row['cell'] for row in self.rows}

    def ask_for(self, name: str) -> bool:
        """Whether a cell is finished. Its rows become the last: reports show them where there are several alike."""
        self.rows.sort(key=lambda row: row['cell'] == name)
        return name in self.cells

    def add(self, rows: List[Results]) -> None:
        """Keep the rows of a cell."""
        self.rows += [{name: value if self.format == 'json' else str(value) for name, value in row.items()}
                      for row in rows]
        self.write(self.rows)

    def write(self, rows: List[Results]) -> None:
        """Write rows in place of what is there.

        Raises:
            OSError: They cannot be written, so no other model needs to be tried.
        """
        try:
            write_results(self.path, rows, self.format)
        except InputError as error:
            raise error.__cause__ or error from error

    def finish(self) -> List[Results]:
        """Write summaries behind the rows of each suite; returns them all."""
        rows = [*self.rows, *summary_rows(self.rows)]
        self.write(rows)
        return rows
