"""Trackers: where the metrics of a run go beside `summary.csv`.

A new one is a file with its class, and a line in `TRACKERS`.
"""
import importlib.util
import logging
from importlib import import_module
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from ..errors import InputError, one_line

__all__ = ['TRACKERS', 'TrackedRun', 'Tracker', 'check_trackers', 'open_trackers']

_logger = logging.getLogger(__name__)

TRACKERS: Dict[str, str] = {  # the file and the class of each name, which is that of the package it needs
    'tensorboard': 'tensorboard_tracker:TensorBoardTracker',
    'trackio': 'trackio_tracker:TrackioTracker',
    'wandb': 'wandb_tracker:WandbTracker',
}


class TrackedRun(NamedTuple):
    """What a tracker may want to know of a run.

    Args:
        folder: Output folder of the run.
        name: Name of the run.
        arguments: Its arguments.
        first_epoch: Epoch it starts with, above 0 where it is resumed.
        project: Project it belongs to, None for the tracker's default.
        tags: Its tags.
        resume_id: The tracker's own name of the run to resume, '' for none.
    """
    folder: str
    name: str
    arguments: Mapping[str, Any] = {}
    first_epoch: int = 0
    project: Optional[str] = None
    tags: Tuple[str, ...] = ()
    resume_id: str = ''


class Tracker:
    """Gets a row of metrics and a picture of each epoch.

    Args:
        run: The run.
    """

    def __init__(self, run: TrackedRun):
        raise NotImplementedError

    def log_row(self, epoch: int, row: Mapping[str, float]) -> None:
        """Take the metrics of an epoch, by the names of `summary.csv`."""
        raise NotImplementedError

    def log_picture(self, epoch: int, path: str) -> None:
        """Take a picture of an epoch, a JPEG file."""
        raise NotImplementedError

    def close(self) -> None:
        """The run ends."""


class _Safe(Tracker):
    # A service that is away must not end a run.
    def __init__(self, name: str, tracker: Tracker):
        self.name, self.tracker = name, tracker

    def log_row(self, epoch: int, row: Mapping[str, float]) -> None:
        self._try('log_row', epoch, row)

    def log_picture(self, epoch: int, path: str) -> None:
        self._try('log_picture', epoch, path)

    def close(self) -> None:
        self._try('close')

    def _try(self, method: str, *args: Any) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, method)(*args)
        except Exception as error:
            _logger.warning(f'--log-to {self.name} failed, the run goes on without it: {error}')
            self.tracker = None


def check_trackers(names: Iterable[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        InputError: One is missing.
    """
    for name in names:
        if not _is_installed(name):
            raise InputError(f'--log-to {name} needs the package {name}: pip install \'timm-advprop[track]\'.')


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # else a folder of its name, as wandb makes where a run starts


def open_trackers(names: Iterable[str], run: TrackedRun) -> List[Tracker]:
    """Open the trackers of a run. One that fails later is left out with a warning.

    Args:
        names: Their names in `TRACKERS`.
        run: The run.

    Raises:
        InputError: One cannot be opened.
    """
    trackers: List[Tracker] = []
    for name in dict.fromkeys(names):
        file, cls = TRACKERS[name].split(':')
        try:
            tracker = getattr(import_module(f'.{file}', __package__), cls)(run)
        except Exception as error:  # each package has its own
            raise InputError(f'--log-to {name} cannot be opened: {one_line(error)}') from error
        trackers.append(_Safe(name, tracker))
    return trackers
