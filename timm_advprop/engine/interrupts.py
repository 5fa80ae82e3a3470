"""Ctrl-C that waits for a good moment."""
import signal
import threading
from contextlib import contextmanager
from typing import Any, Iterator, List

__all__ = ['deferred_ctrl_c', 'stop_if_asked']

_asked: List[int] = []


@contextmanager
def deferred_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C wait for the next `stop_if_asked` or the block's end; pressed again it comes at once.

    Python drops exceptions where a process forks, so one that comes while a loader starts its processes would be lost.
    These processes inherit the handler and leave Ctrl-C to this one.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is _ask:
        yield  # the main thread alone may, and an outer block does already
        return
    previous = signal.signal(signal.SIGINT, _ask)
    try:
        yield
        stop_if_asked()
    finally:
        signal.signal(signal.SIGINT, previous)
        _asked.clear()


def stop_if_asked() -> None:
    """Let a Ctrl-C come that has waited.

    Raises:
        KeyboardInterrupt: There was one.
    """
    if _asked:
        raise KeyboardInterrupt


def _ask(number: int, frame: Any) -> None:
    stop_if_asked()
    _asked.append(number)
