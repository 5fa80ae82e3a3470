"""The error that the command-line programs report as one line."""
import sys
from functools import wraps
from typing import Callable

__all__ = ['InputError', 'exits_on_input_error']


class InputError(ValueError):
    """Something a user gave is wrong. The message names it and says what to do."""


def exits_on_input_error(main: Callable[..., None]) -> Callable[..., None]:
    """Let a program's main function end with status 2 and one line on an `InputError`."""
    @wraps(main)
    def wrapper(*args, **kwargs) -> None:
        message = None
        try:
            main(*args, **kwargs)
        except InputError as error:
            message = str(error)
        if message is not None:  # now that the error is gone, and progress bars that it kept with it
            print(f'error: {message}', file=sys.stderr)
            sys.exit(2)
    return wrapper
