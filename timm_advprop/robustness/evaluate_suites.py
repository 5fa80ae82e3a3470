"""A robustness run: the cells of its suites, for one model on one route after another. It goes on where it stopped."""
import logging
import time
from typing import Sequence

from ..engine.eval_settings import EvalSettings
from ..engine.interrupts import deferred_ctrl_c, stop_if_asked
from ..engine.tested_model import TestedModel, open_tested_model
from ..output import duration
from .cells import Cell, Measured, cell_name, complete_rows
from .kept_results import KeptResults
from .suites import check_model, is_attacked, suite_cells

__all__ = ['SuiteEvaluation']

_logger = logging.getLogger(__name__)


class SuiteEvaluation:
    """Evaluates models on suites.

    Args:
        suites: Suites as `--suite` takes them, `NAME` or `NAME=DIR`.
        settings: Settings of the run; whatever its model.
        kept: Keeps each cell as soon as it is finished; what it has is not measured again.
        num_runs: Number of models on routes that will be evaluated, for the ETA.

    Raises:
        InputError: A folder or a library is missing.
    """

    def __init__(self, suites: Sequence[str], settings: EvalSettings, kept: KeptResults, num_runs: int = 1):
        self.cells, self.kept = suite_cells(settings, suites), kept
        self.suites = suites
        self.left, self.measured, self.start = num_runs * len(self.cells), 0, time.monotonic()

    def __call__(self, settings: EvalSettings) -> None:
        """Evaluate a model on a route.

        Raises:
            InputError: Settings do not go together, or something they name is missing.
        """
        tested = open_tested_model(settings, is_attacked(self.suites))
        check_model(self.suites, tested.num_classes)
        with deferred_ctrl_c():
            for cell in self.cells:
                self._finish(tested, cell)
                stop_if_asked()

    def _finish(self, tested: TestedModel, cell: Cell) -> None:
        if self.kept.ask_for(cell_name(tested, cell)):
            self.left -= 1
            return
        rows = complete_rows(tested, cell, cell.measure(tested))
        self.kept.add(rows)
        self._tell(tested, cell, rows)

    def _tell(self, tested: TestedModel, cell: Cell, rows: Measured) -> None:
        self.left -= 1
        self.measured += 1
        eta = (time.monotonic() - self.start) / self.measured * self.left
        model = tested.settings.model
        _logger.info(f'{model.checkpoint or model.model} {model.route}  {cell.describe()}: '
                     f'top1 {rows[-1]["top1"]:.3f}  ({self.left} cells left, ETA {duration(max(0, eta))})')
