"""How programs end: the errors that they report as one line, their status, and how such a line is made."""
import difflib
import os
import select
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from functools import wraps
from typing import Callable, Iterator, Optional, ParamSpec, Sequence, TypeVar

__all__ = [
    'DEBUG_FLAG', 'InputError', 'RunError', 'as_input_error', 'exit_at_sigterm', 'exits_on_input_error', 'near_matches',
    'one_line',
]

_Arguments = ParamSpec('_Arguments')
_Result = TypeVar('_Result')

DEBUG_FLAG, _DEBUG_VARIABLE = '--debug', 'TIMM_ADVPROP_DEBUG'


class InputError(ValueError):
    """Something a user gave is wrong. The message names it and says what to do."""


class RunError(RuntimeError):
    """A run that was set up rightly cannot go on. The message says why, what is kept, and how to go on."""


def exits_on_input_error(main: Callable[..., None]) -> Callable[..., None]:
    """Let a program's main function, of its command line, end in one line.

    The status is 2 on an `InputError`, 1 on a `RunError` or a file that cannot be written, 130 on Ctrl-C and 143 on
    SIGTERM, after what is open was closed, 141 where nobody reads the output any more. With `--debug` among its flags,
    or `TIMM_ADVPROP_DEBUG=1`, the traceback of an error comes before that line.
    """
    @wraps(main)
    def wrapper(argv: Optional[Sequence[str]] = None) -> None:
        message, status = '', 0
        try:
            with exit_at_sigterm():
                main(argv)
        except KeyboardInterrupt:
            message, status = 'Interrupted.', 130
        except BrokenPipeError:
            if not _nobody_reads():
                raise
            status = 128 + signal.SIGPIPE
        except (InputError, OSError, RunError) as error:
            if isinstance(error, OSError) and not error.filename:
                raise
            if DEBUG_FLAG in (sys.argv if argv is None else argv) or os.environ.get(_DEBUG_VARIABLE, '0') != '0':
                traceback.print_exc()
            said = f'{error.filename}: {error.strerror}.' if isinstance(error, OSError) else str(error)
            message, status = f'error: {said}', 2 if isinstance(error, InputError) else 1
        if message:  # now that the error is gone, and progress bars that it kept with it
            print(message, file=sys.stderr)
        if status:
            sys.exit(status)
    return wrapper


def _nobody_reads() -> bool:
    # Whether the reader of the output is gone, such as `head`. What is left of it then goes nowhere.
    try:
        output = sys.stdout.fileno()
    except OSError:  # it is no file
        return False
    poll = select.poll()
    poll.register(output, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


@contextmanager
def exit_at_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exit does: processes that were started and files half-written go with it."""
    if threading.current_thread() is not threading.main_thread():  # which alone may
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def as_input_error(
        function: Callable[_Arguments, _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
) -> _Result:
    """Call a function whose ValueErrors and assertions are about what a user gave, and report them as InputErrors."""
    try:
        return function(*args, **kwargs)
    except (AssertionError, ValueError) as error:
        raise InputError(one_line(error)) from error


def one_line(error: BaseException, limit: int = 600) -> str:
    """What an error says, in one line of at most about `limit` characters."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + ' …'


def near_matches(word: str, known: Sequence[str]) -> str:
    """A hint at known words near a misspelt one, '' where there is none."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f' (did you mean {" or ".join(near)}?)' if near else ''
