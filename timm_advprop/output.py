"""What programs write: files that are whole or not there, Markdown tables, durations."""
import os
from contextlib import contextmanager
from typing import Any, Iterator, Sequence

__all__ = ['duration', 'markdown_table', 'replacing']


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """Write a file beside its place and move it there when the block ends: a kill leaves the old one or the new one.

    Args:
        path: The file. Where the block raises, it stays as it was.

    Yields:
        Path of the temporary file, in the same folder.
    """
    if os.path.abspath(path).startswith('/dev/') or os.path.exists(path) and not os.path.isfile(path):
        yield path  # a device or a pipe is there to be written to, not to be replaced
        return
    path = os.path.realpath(path)  # a link stays one
    temporary = f'{path}.tmp'
    _remove(temporary)  # of a run that was killed
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.remove(path)


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = (f'| {" | ".join(map(str, row))} |' for row in rows)
    return '\n'.join([head, '|' + '---|' * len(rows[0]), *body])


def duration(seconds: float) -> str:
    """A duration as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
