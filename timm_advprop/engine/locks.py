"""Locks of files that one process alone may write."""
import os
from contextlib import contextmanager
from typing import Iterator

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ['locked']


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold a lock while the block runs; it ends with the process.

    Args:
        path: File of the lock, which is made. Whoever removes it does so within the block.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: The file cannot be written.
    """
    while True:
        with open(path, 'w') as file:
            if fcntl is not None:
                _lock(file)
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                yield
                return


def _lock(file) -> None:
    try:
        # a lock of the process: the loader's workers, which may outlive it for a moment, do not inherit it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # pyright: ignore[reportOptionalMemberAccess]
    except PermissionError as error:  # what some systems say of it
        raise BlockingIOError(*error.args) from error
