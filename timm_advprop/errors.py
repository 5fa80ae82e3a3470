"""What a user gave is wrong: the error that programs report as one line, and how such a line is made."""
import difflib
import os
import sys
import traceback
from functools import wraps
from typing import Any, Callable, Optional, Sequence

__all__ = ['DEBUG_FLAG', 'InputError', 'as_input_error', 'exits_on_input_error', 'near_matches', 'one_line']

DEBUG_FLAG, _DEBUG_VARIABLE = '--debug', 'TIMM_ADVPROP_DEBUG'


class InputError(ValueError):
    """Something a user gave is wrong. The message names it and says what to do."""


def exits_on_input_error(main: Callable[..., None]) -> Callable[..., None]:
    """Let a program's main function, of its command line, end with status 2 and one line on an `InputError`.

    With `--debug` among its flags, or `TIMM_ADVPROP_DEBUG=1`, the traceback comes before that line.
    """
    @wraps(main)
    def wrapper(argv: Optional[Sequence[str]] = None) -> None:
        message = None
        try:
            main(argv)
        except InputError as error:
            message = str(error)
            if DEBUG_FLAG in (sys.argv if argv is None else argv) or os.environ.get(_DEBUG_VARIABLE, '0') != '0':
                traceback.print_exc()
        if message is not None:  # now that the error is gone, and progress bars that it kept with it
            print(f'error: {message}', file=sys.stderr)
            sys.exit(2)
    return wrapper


def as_input_error(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
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
