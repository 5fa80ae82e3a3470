"""`curves.png`: losses and accuracies of a run, redrawn while it goes on. Needs matplotlib, and does without."""
import importlib.util
import logging
import re
import time
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ..output import replacing
from .figures import COLORS, new_figure

__all__ = ['Curves', 'draw_curves']

_logger = logging.getLogger(__name__)

_SHARE_OF_TIME = 0.02  # of a run, that drawing may take at most
_OF_FURTHER_NORMS = re.compile(r'aux\d')  # which have the colours of the first
_DISTANCE = '_distance'
_PANELS = (('loss', '_loss'), ('top-1 (%)', '_top1'), ('distance of main and aux norms', _DISTANCE))


class Curves:
    """Keeps a picture of a run's curves. It never ends a run, and takes at most a fiftieth of its time.

    Args:
        path: The PNG file.
    """

    def __init__(self, path: str):
        self.path, self.is_drawn = path, importlib.util.find_spec('matplotlib') is not None
        self._next = 0.

    def update(self, rows: Sequence[Mapping[str, Any]], last: bool = False) -> None:
        """Draw the curves anew, if it is time.

        Args:
            rows: A row of metrics for each epoch, as in `summary.csv`.
            last: It is the last time: draw them in any case.
        """
        start = time.monotonic()
        if not self.is_drawn or not rows or start < self._next and not last:
            return
        try:
            with replacing(self.path) as temporary:
                draw_curves(temporary, rows)
        except Exception as error:
            _logger.warning(f'Cannot draw {self.path}, the run goes on without it: {error}')
            self.is_drawn = False
        now = time.monotonic()
        self._next = now + (now - start) / _SHARE_OF_TIME


def draw_curves(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw losses, accuracies and norm distances by epoch: training dashed, validation solid, further norms dotted.

    Args:
        path: File to write, as PNG.
        rows: A row of metrics for each epoch; values are numbers or text, '' for none.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    panels = [(label, [name for name in columns if name.endswith(ending)]) for label, ending in _PANELS]
    panels = [(label, names) for label, names in panels if names]
    figure = new_figure((4.2 * len(panels), 3.4), dpi=100)
    colors = _colors([name for _, names in panels for name in names])
    for axis, (label, names) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels):
        for name in names:
            points = _points(rows, name)
            axis.plot(*(zip(*points) if points else ((), ())), _style(name), marker='.',
                      linewidth=1.2, markersize=4, color=colors[name], label=name.replace('_', ' '))
        _finish(axis, label)
        if len(rows) == 1:  # of which an axis would show fractions
            axis.set_xticks([int(rows[0]['epoch'])])
        if names[0].endswith(_DISTANCE):
            axis.set_ylim(bottom=0)
    figure.savefig(path, format='png')


def _colors(names: Sequence[str]) -> Dict[str, str]:
    # Of images one in all panels; of distances their own.
    colors = {}
    for of_distances in (False, True):
        kind = [name for name in names if name.endswith(_DISTANCE) == of_distances]
        images = list(dict.fromkeys(['clean', 'adv', 'aux', *map(_images_of, kind)]))
        colors.update({name: COLORS[images.index(_images_of(name)) % len(COLORS)] for name in kind})
    return colors


def _style(name: str) -> str:
    return '--' if name.startswith('train') else ':' if _OF_FURTHER_NORMS.match(name) else '-'


def _finish(axis: Any, label: str) -> None:
    axis.set_xlabel('epoch', fontsize=8)
    axis.set_ylabel(label, fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=7, frameon=False)
    axis.grid(linewidth=0.4, color='0.85')
    axis.spines[['top', 'right']].set_visible(False)


def _images_of(name: str) -> str:
    # Curves of the same images have a colour: validation of clean ones has no word for them, the sum in training none.
    part, _, metric = name.partition('_')
    images = metric.rpartition('_')[0]
    return images if images or part == 'train' else 'clean'


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> List[Tuple[int, float]]:
    return [(int(row['epoch']), float(row[name])) for row in rows if row.get(name) not in (None, '')]
