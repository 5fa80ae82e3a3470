"""Progress of a long loop: a bar on a terminal, lines of the log elsewhere."""
import logging
import sys
from contextlib import contextmanager
from typing import Iterator

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

__all__ = ['Progress', 'show_progress']

_logger = logging.getLogger(__name__)

_VALUES_OF_A_BAR = 2  # which fit a terminal


class Progress:
    """Shows how far a loop is. Made by `show_progress`.

    Args:
        bar: The bar; a disabled one where there is no terminal.
    """

    def __init__(self, bar: tqdm):
        self.bar = bar

    def advance(self) -> None:
        """A step of the loop is done."""
        self.bar.update()

    def tell(self, name: str, values: str, rest: str = '', last: bool = False) -> None:
        """Tell what was measured: beside the bar, or in a line, which the last one always is.

        Args:
            name: Where the loop is.
            values: What was measured, two spaces between values.
            rest: What a bar shows by itself.
            last: It is the end.
        """
        self.bar.set_postfix_str('  '.join(values.split('  ')[:_VALUES_OF_A_BAR]), refresh=False)
        if last or self.bar.disable:
            _logger.info(f'{name}  {values}  {rest}')


@contextmanager
def show_progress(name: str, total: int, initial: int = 0, shown: bool = True) -> Iterator[Progress]:
    """Show the progress of a loop while the block runs; lines of the log stand above its bar.

    Args:
        name: Its name.
        total: Number of its steps.
        initial: Steps that were done before.
        shown: Whether this process shows it.
    """
    terminal = shown and sys.stderr.isatty()
    with tqdm(desc=name, total=total, initial=initial, disable=not terminal, leave=False, dynamic_ncols=True) as bar:
        if not terminal:
            yield Progress(bar)
            return
        with logging_redirect_tqdm():
            yield Progress(bar)
