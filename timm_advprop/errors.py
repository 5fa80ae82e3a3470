"""What a user gave is wrong: the error that programs report as one line, and how such a line is made."""
import difflib
import sys
from functools import wraps
from typing import Any, Callable, Sequence

__all__ = ['InputError', 'RunError', 'as_input_error', 'exits_on_input_error', 'near_matches', 'one_line']


class InputError(ValueError):
    """Something a user gave is wrong. The message names it and says what to do."""


class RunError(RuntimeError):
    """A run that was set up rightly cannot go on. The message says why, what is kept, and how to go on."""


def exits_on_input_error(main: Callable[..., None]) -> Callable[..., None]:
    """Let a program's main function end in one line: status 2 on an `InputError`, 1 on a `RunError` or a file that
    cannot be written, 130 on Ctrl-C."""
    @wraps(main)
    def wrapper(*args, **kwargs) -> None:
        message, status = '', 0
        try:
            main(*args, **kwargs)
        except InputError as error:
            message, status = f'error: {error}', 2
        except RunError as error:
            message, status = f'error: {error}', 1
        except OSError as error:
            if not error.filename:
                raise
            message, status = f'error: {error.filename}: {error.strerror}.', 1
        except KeyboardInterrupt:
            message, status = 'Interrupted.', 130
        if status:  # now that the error is gone, and progress bars that it kept with it
            print(message, file=sys.stderr)
            sys.exit(status)
    return wrapper


def as_input_error(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function whose ValueErrors and assertions are about what a user gave, and report them as InputErrors."""
    try:
        return function(*args, **kwargs)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(one_line(error)) from error


def one_line(error: BaseException, limit: int = 600) -> str:
    """What an error says, in one line of at most about `limit` characters."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + ' …'


def near_matches(word: str, known: Sequence[str]) -> str:
    """A hint at known words near a misspelt one, '' where there is none."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f' (did you mean {" or ".join(near)}?)' if near else ''
