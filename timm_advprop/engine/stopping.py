"""Signals that end a run early: the update under way is finished, and a recovery checkpoint says where to go on."""
import os
import signal
from multiprocessing import parent_process
from threading import Thread
from typing import Any, Dict, Optional

from torch.distributed.distributed_c10d import _get_default_store

__all__ = ['StopSignals', 'Stopped', 'leave_signals_to_parent']

# Preemption, Slurm's --signal=USR1, Ctrl-C.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_KEY = 'timm_advprop/stop'
# Processes take part in one another's updates, but are not at the same line: all of them must see the request before
# the first one stops.
_UPDATES_AHEAD = 4


class Stopped(Exception):
    """A run was stopped by a signal, after an update; the argument is the recovery checkpoint to go on from."""


class StopSignals:
    """Turns signals into a request to stop, within a `with` block in the main thread.

    Args:
        distributed: Stop together with the other processes of the group, after the same update.
    """

    def __init__(self, distributed: bool = False):
        self.signal: Optional[int] = None
        self._store = _get_default_store() if distributed else None
        self._last_update: Optional[int] = None
        self._handlers: Dict[int, Any] = {}

    def __enter__(self) -> 'StopSignals':
        self._handlers = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def stops_after(self, update: int) -> bool:
        """Whether a run shall stop after an update.

        Args:
            update: Number of updates since the run began, the same on all processes.
        """
        if self._store is None:
            return self.signal is not None
        if self.signal is not None and self._last_update is None:
            self._store.compare_set(_KEY, '', f'{self.signal} {update + _UPDATES_AHEAD}')
        if self._last_update is None and self._store.check([_KEY]):
            self.signal, self._last_update = map(int, self._store.get(_KEY).split())
        return self._last_update is not None and update >= self._last_update

    def _request(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.signal is not None:  # asked for twice: at once
            raise KeyboardInterrupt
        self.signal = number


def leave_signals_to_parent() -> None:
    """Let a loader's process go on at signals that end a run, which still needs its images for a while.

    Whoever stops a job often tells all of its processes at once. Its parent can end this one as before, and it ends
    with its parent. Does nothing on systems that do not say who sent a signal (macOS, Windows).
    """
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        Thread(target=_end_for_parent, name='timm-advprop-signals', daemon=True).start()


def _end_for_parent() -> None:
    parent = parent_process().pid  # pyright: ignore[reportOptionalMemberAccess]
    while signal.sigwaitinfo(_SIGNALS).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler does
