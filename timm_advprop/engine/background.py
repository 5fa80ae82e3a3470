"""Work that a run does not wait for, and copies of what it works on."""
import copy
import os
import time
from threading import Thread
from typing import Any, Callable, Dict, Optional
from weakref import WeakSet

import torch

__all__ = ['Background', 'copy_to_host']


class Background:
    """Does one thing at a time, inside of a `with` block in a thread of its own, outside of one at once.

    Before the next thing, and at the end of the block, it waits for the last one, and raises what that raised. A fork
    waits for it, too: a loader's workers would keep a half-written file open, the memory of what is written, and locks
    that nobody there gives back.

    Attributes:
        seconds: Time that all things together took.
        seconds_of_forks: Time that forks waited for them.
    """

    def __init__(self) -> None:
        self.seconds = self.seconds_of_forks = 0.
        self.is_open = False
        self._thread: Optional[Thread] = None
        self._error: Optional[BaseException] = None
        _all.add(self)

    def __enter__(self) -> 'Background':
        self.is_open = True
        return self

    def __exit__(self, *error: Any) -> None:
        self.is_open = False
        self.wait()

    def do(self, function: Callable[[], Any]) -> None:
        """Call a function. What it uses must stay as it is until it has returned: see `copy_to_host`."""
        self.wait()
        if not self.is_open:
            function()
            return
        self._thread = Thread(target=self._call, args=(function,), name='timm-advprop-background')
        self._thread.start()

    def wait(self) -> None:
        """Wait for the function under way."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _call(self, function: Callable[[], Any]) -> None:
        start = time.monotonic()
        try:
            function()
        except BaseException as error:  # raised by wait
            self._error = error
        self.seconds += time.monotonic() - start


_all: 'WeakSet[Background]' = WeakSet()


def _let_fork_wait() -> None:
    for background in [background for background in _all if background._thread is not None]:
        start = time.monotonic()
        background._thread.join()  # pyright: ignore[reportOptionalMemberAccess]
        background.seconds_of_forks += time.monotonic() - start


if hasattr(os, 'register_at_fork'):  # not on Windows; it cannot be taken back, so there is one hook for all
    os.register_at_fork(before=_let_fork_wait)


def copy_to_host(value: Any, copies: Optional[Dict[Any, torch.Tensor]] = None) -> Any:
    """A copy of dictionaries, lists and what they hold, tensors on the host, that later training does not change.

    Args:
        value: What to copy.
        copies: Copies of tensors, by their place in memory: one that has two names stays one.
    """
    copies = {} if copies is None else copies
    if isinstance(value, torch.Tensor):
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if place not in copies:
            copies[place] = value.detach().to('cpu', copy=True)
        return copies[place]
    if isinstance(value, dict):
        copied = copy.copy(value)  # of its kind, with what a state dict has beside its entries
        copied.update((key, copy_to_host(entry, copies)) for key, entry in value.items())
        return copied
    if type(value) in (list, tuple):
        return type(value)(copy_to_host(entry, copies) for entry in value)
    return copy.deepcopy(value)
