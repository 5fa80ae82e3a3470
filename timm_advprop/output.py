"""What programs write: whole files or none, Markdown tables, numbers, durations, names without folders."""
import os
import re
from contextlib import contextmanager
from typing import Any, Iterator, Sequence

__all__ = ['counted', 'duration', 'markdown_table', 'replacing', 'without_folders']

# What may stand before a path: a reader or a source, as in hfds//data/digits, local-dir:/model and wds/file:///data.
# The host of an address is no folder.
_BEFORE_PATH = re.compile(r'(?:[\w-]+(?:/|:(?!//)|://(?=/)))*')
_OF_A_MACHINE = ('./', '../', '~/')
_FOLDERS = re.compile(r'(?<![\w/.])/(?!/)(?:[^/\s]+/)+')  # of an absolute path in a text


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """Write a file beside its place and move it there when the block ends.

    A kill, a full disk or a power cut leave the old file or the new one, whole.

    Args:
        path: The file. Where the block raises, it stays as it was.

    Yields:
        Path of the temporary file, in the same folder.

    Raises:
        OSError: It cannot be written; the error's `filename` says which.
    """
    if os.path.abspath(path).startswith('/dev/') or os.path.exists(path) and not os.path.isfile(path):
        yield path  # a device or a pipe is there to be written to, not to be replaced
        return
    path = os.path.realpath(path)  # a link stays one
    temporary = f'{path}.tmp'
    try:
        _remove(temporary)  # of a run that was killed
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = path  # a full disk does not say it
        raise
    finally:
        _remove(temporary)


def _sync(path: str) -> None:
    # The name may get to the disk before what is in the file: after a power cut the new file would be empty, the old
    # one gone.
    with open(path, 'rb') as file:
        os.fsync(file.fileno())


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.remove(path)


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first row is its head. A bar in a cell does not end the cell."""
    escaped = [[str(cell).replace('|', r'\|') for cell in row] for row in rows]
    head, *body = (f'| {" | ".join(row)} |' for row in escaped)
    return '\n'.join([head, '|' + '---|' * len(rows[0]), *body])


def counted(number: int, noun: str) -> str:
    """A number of things: `1 image`, `2,000 images`."""
    return f'{number:,} {noun}{"" if number == 1 else "s"}'


def duration(seconds: float) -> str:
    """A duration as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def without_folders(text: str) -> str:
    """A text for others: of a path of this machine it keeps the last name, of an absolute path within it likewise.

    Names relative to where a program runs, names on the Hub and addresses stay.
    """
    path_at = _BEFORE_PATH.match(text).end()  # pyright: ignore[reportOptionalMemberAccess]
    path = text[path_at:]
    if os.path.isabs(path) or path.startswith(_OF_A_MACHINE):
        return text[:path_at] + os.path.basename(os.path.normpath(path))
    return _FOLDERS.sub('', text)
