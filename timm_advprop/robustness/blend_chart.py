"""What blends of main and auxiliary norms trade: clean accuracy against accuracy on other images. Needs matplotlib."""
from collections import defaultdict
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from ..engine.figures import COLORS, new_figure
from ..engine.results_file import Results
from ..engine.route_names import route_share
from .summary import evaluated, headline, is_summary, number

__all__ = ['Blend', 'Curves', 'blends_in', 'draw_blends', 'rows_of_blends']

_SIZE = 8
_CLEAN = 'clean'
_LEAST_RANGE = 4.  # of an axis, in percent
_LABEL_SIZE = (0.12, 0.04)  # of a label, as shares of the panel


class Blend(NamedTuple):
    """A point of a curve.

    Args:
        weight: Share of the first auxiliary norms, from 0 for the main route to 1 for the first auxiliary one.
        route: The route, as `--route` takes it.
        top1: Top-1 accuracy in percent, by kind of images; `'clean'` is one.
    """
    weight: float
    route: str
    top1: Dict[str, float]


Curves = Mapping[Tuple[str, str], Sequence[Blend]]


def blends_in(rows: Sequence[Results]) -> Curves:
    """The curve of each model that was evaluated on blends of its norms: three routes or more, one of them a blend, all
    on the same kinds of images beside clean ones.

    Args:
        rows: Rows of the results file, summaries among them.

    Returns:
        Points of rising weight, by model and checkpoint.
    """
    top1: Dict[Tuple[str, ...], Dict[str, float]] = defaultdict(dict)
    for row in rows:
        if route_share(row['route']) is not None and _is_drawn(row):
            top1[evaluated(row)][headline(row)] = number(row, 'top1')  # pyright: ignore[reportArgumentType]
    curves: Dict[Tuple[str, str], List[Blend]] = defaultdict(list)
    for (model, checkpoint, route), of_route in top1.items():
        if _CLEAN in of_route and len(of_route) > 1:
            curves[model, checkpoint].append(Blend(route_share(route), route, of_route))  # pyright: ignore[reportArgumentType]
    return {key: sorted(curve) for key, curve in curves.items()
            if len(curve) > 2 and any(0 < blend.weight < 1 for blend in curve) and _others(curve)}


def rows_of_blends(curves: Curves) -> List[Results]:
    """The points of the curves, a row each, with a column for each kind of images."""
    return [dict(model=model, checkpoint=checkpoint, route=blend.route, weight=blend.weight,
                 **{f'{images} top1': value for images, value in blend.top1.items()})
            for (model, checkpoint), curve in curves.items() for blend in curve]


def draw_blends(path: str, curves: Curves, names: Mapping[Tuple[str, ...], str]) -> None:
    """Draw accuracy on attacked and corrupted images against clean accuracy, a row for each model, a panel for each
    kind of images, points in the order of their weights.

    Args:
        path: File to write.
        curves: See `blends_in`.
        names: A name for each model on a route.

    Raises:
        InputError: matplotlib is not installed.
    """
    panels = list(dict.fromkeys(_panel_of(images) for curve in curves.values() for images in _others(curve)))
    figure = new_figure((4.2 * len(panels), 3.6 * len(curves)))
    grid = figure.subplots(len(curves), len(panels), squeeze=False)
    for axes, (key, curve) in zip(grid, curves.items()):
        for axis, panel in zip(axes, panels):
            kinds = [images for images in _others(curve) if _panel_of(images) == panel]
            if not kinds:  # another model has them
                axis.set_axis_off()
                continue
            _draw_panel(axis, curve, kinds)
            axis.set_title(f'{panel}: {names[(*key, "main")]}' if (*key, 'main') in names else panel, fontsize=_SIZE)
    figure.savefig(path)


def _is_drawn(row: Mapping[str, Any]) -> bool:
    return headline(row) is not None and (not is_summary(row) or headline(row) == row['suite'])


def _others(curve: Sequence[Blend]) -> List[str]:
    # Kinds of images that every point has
    return [images for images in curve[0].top1 if images != _CLEAN and all(images in each.top1 for each in curve)]


def _panel_of(images: str) -> str:
    # attacks of one kind at several strengths share a panel
    return images.rpartition(' ')[0] if images.endswith('/255') else images


def _draw_panel(axis: Any, curve: Sequence[Blend], kinds: Sequence[str]) -> None:
    clean = [blend.top1[_CLEAN] for blend in curve]
    values = {images: [blend.top1[images] for blend in curve] for images in kinds}
    axis.set_xlim(*_limits(clean))
    axis.set_ylim(*_limits([value for of_kind in values.values() for value in of_kind]))
    for images, color in zip(kinds, COLORS * len(kinds)):
        axis.plot(clean, values[images], marker='o', markersize=4, linewidth=1.2, color=color, label=images,
                  clip_on=False)
        for place, names in _labels(axis, curve, list(zip(clean, values[images]))).items():
            axis.annotate(', '.join(names), place, (5, 3), textcoords='offset points', fontsize=_SIZE - 1.5,
                          color=color)
    axis.set_xlabel('clean top-1 (%)', fontsize=_SIZE)
    axis.set_ylabel('top-1 (%)', fontsize=_SIZE)
    axis.tick_params(labelsize=_SIZE - 1)
    axis.grid(linewidth=0.4, color='0.88')
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)
    if len(kinds) > 1:  # beside the panel, where no line can be
        axis.legend(fontsize=_SIZE - 1, frameon=False, loc='upper left', bbox_to_anchor=(1, 1))


def _limits(values: Sequence[float]) -> Tuple[float, float]:
    # Of an axis: differences of a few images shall not fill it.
    middle, width = (min(values) + max(values)) / 2, max(_LEAST_RANGE, 1.25 * (max(values) - min(values)))
    return max(0., middle - width / 2), min(100., middle + width / 2)


def _labels(axis: Any, curve: Sequence[Blend], places: Sequence[Tuple[float, float]]) -> Dict[Any, List[str]]:
    # Names of points by where they stand; those of points that lie on each other stand together.
    labels: Dict[Any, List[str]] = {}
    scales = [high - low for low, high in (axis.get_xlim(), axis.get_ylim())]
    for blend, place in zip(curve, places):
        near = (other for other in labels if all(
            abs(a - b) < share * scale for a, b, share, scale in zip(place, other, _LABEL_SIZE, scales)))
        labels.setdefault(next(near, place), []).append(
            blend.route if blend.route in ('main', 'aux') else f'{blend.weight:g}')
    return labels
