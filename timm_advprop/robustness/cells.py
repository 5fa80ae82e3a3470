"""Cells: what is measured and kept at once, a condition of a suite for a model on a route."""
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Union

from ..engine.results_file import Results
from ..engine.tested_model import TestedModel

__all__ = ['QUIET_BATCHES', 'Cell', 'Measured', 'cell_name', 'complete_rows']

QUIET_BATCHES = 50  # a cell of more shows its progress, others are a line each

# Settings that say how fast a run is: its figures are the same without them.
_WITHOUT_EFFECT = ('batch_size', 'workers', 'pin_mem', 'no_prefetcher', 'device', 'num_gpu')
Measured = List[Results]


@dataclass(frozen=True)
class Cell:
    """A condition of a suite.

    Args:
        suite: The suite.
        measure: Measures it: rows with `top1`, `top1_err` and what else is known. Values of its own overwrite those of
            the cell.
        condition: Such as the name of a corruption, '' where the suite has one condition.
        severity: 1–5 for a corruption, the strength in pixels for an attack, '' where there is none.
        about: What else it depends on: the folder of its images, the settings of its attack.
    """
    suite: str
    measure: Callable[[TestedModel], Measured]
    condition: str = ''
    severity: Union[int, float, str] = ''
    about: str = ''

    def describe(self) -> str:
        """Its name in the log: `corruptions gaussian_noise 3`."""
        return ' '.join(str(part) for part in (self.suite, self.condition, self.severity) if part != '')


def cell_name(tested: TestedModel, cell: Cell) -> str:
    """A name for what is measured, of 12 digits: the same for the same figures, so that none is measured twice.

    It covers weights, data and every setting that has an effect, also those that come with the model, but not what is
    in the data set's files.
    """
    cell_of = (cell.suite, cell.condition, cell.severity, cell.about)
    return _digest({**_what_has_an_effect(tested), 'cell': cell_of})


def _what_has_an_effect(tested: TestedModel) -> Dict[str, Any]:
    settings = tested.settings
    groups = (settings.data, settings.model, settings.image, settings.device, settings.loader)
    values = {name: value for group in groups for name, value in group.values().items() if name not in _WITHOUT_EFFECT}
    values.update(
        data_dir=os.path.abspath(settings.data.data_dir or ''), weights=tested.weights, config=tested.config)
    return values


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=_plain).encode()).hexdigest()[:12]


def complete_rows(tested: TestedModel, cell: Cell, rows: Measured) -> Measured:
    """The rows of a cell as they are kept, with what they are of in front."""
    of = dict(
        model=tested.settings.model.model, checkpoint=tested.settings.model.checkpoint,
        route=tested.settings.model.route, suite=cell.suite, condition=cell.condition, severity=cell.severity)
    names = dict(
        weights=tested.weights, settings=_digest(_what_has_an_effect(tested)), cell=cell_name(tested, cell))
    return [{**of, **row, **names} for row in rows]


def _plain(value: Any) -> Union[Dict[str, Any], str]:
    return dict(value) if hasattr(value, 'keys') else str(value)
