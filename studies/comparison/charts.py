"""Pictures of a study: differences to the reference with their intervals, what rows trade, accuracy over strength."""
from statistics import fmean, stdev
from typing import Any, Iterator, List, Sequence, Tuple

from timm_advprop.engine.figures import COLORS, new_figure

from .differences import difference, values_of
from .job import Result
from .measures import pgd_attacked
from .report import rows_in
from .study import Study

__all__ = ['draw_study']

_SIZE = 8
_BETTER, _WORSE, _UNCLEAR = COLORS[2], COLORS[1], '#777777'
_MARKERS = 'os^D'


def draw_study(path: str, study: Study, results: Sequence[Result]) -> List[str]:
    """Draw what a study found: differences to the reference with their intervals; where corruptions are measured clean
    accuracy against that under corruptions, with blends as curves; accuracy over the strength of PGD.

    Args:
        path: Beginning of the files' names.
        study: The study.
        results: Its results.

    Returns:
        The files written.

    Raises:
        InputError: matplotlib is not installed.
    """
    present = set(rows_in(study, results))
    drawn = {
        'differences': study.panels and study.reference in present and _draw_differences,
        'trade_off': study.measures.num_corrupted and _draw_trade_off,
        'strength': present.intersection(study.curves) and _draw_strengths,
    }
    paths = {f'{path}_{name}.png': draw for name, draw in drawn.items() if draw}
    for each, draw in paths.items():
        draw(each, study, results)
    return list(paths)


def _draw_differences(path: str, study: Study, results: Sequence[Result]) -> None:
    # A forest plot.
    rows = [row for row in rows_in(study, results) if row != study.reference]
    figure = new_figure((2.3 + 2.4 * len(study.panels), 0.7 + 0.22 * len(rows)))
    axes = figure.subplots(1, len(study.panels), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, study.panels):
        axis.axvline(0, color='black', linewidth=0.8)
        for place, row in enumerate(rows):
            found = difference(results, row, study.reference, column)
            if found is not None:
                axis.errorbar(found.mean, place, xerr=found.margin(), fmt='o', markersize=3.5, capsize=2, linewidth=1.2,
                              color=_color(found.mean, found.margin()))
        _label(axis, study.columns[column], f'− {study.title(study.reference)} (points)')
        axis.set_yticks(range(len(rows)), [study.title(row) for row in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
    figure.savefig(path)


def _draw_trade_off(path: str, study: Study, results: Sequence[Result]) -> None:
    # Means; rows with blends become curves through them.
    figure = new_figure((6.6, 4.6))
    axis = figure.subplots()
    means = {row: _means(results, row, ('clean', 'corruption')) for row in rows_in(study, results)}
    trained = [row for row in means if ', blend ' not in row]
    for i, row in enumerate(trained):
        axis.errorbar(*means[row], *_errors(results, row), fmt=_MARKERS[i // len(COLORS) % len(_MARKERS)],
                      color=COLORS[i % len(COLORS)], markersize=6 if row != study.reference else 9, elinewidth=0.5,
                      label=study.title(row))
        blends = [means[row], *(means[blend] for blend in means if blend.startswith(f'{row}, blend '))]
        if len(blends) > 1:
            axis.plot(*zip(*blends), color=COLORS[i % len(COLORS)], marker='.', markersize=4, linewidth=1,
                      label=f'{study.title(row)}, blends towards aux')
    _label(axis, 'means over seeds, ± standard error', study.columns['clean'])
    axis.set_ylabel(study.columns['corruption'], fontsize=_SIZE)
    figure.legend(*axis.get_legend_handles_labels(), loc='outside right center', fontsize=_SIZE - 2, frameon=False)
    figure.savefig(path)


def _draw_strengths(path: str, study: Study, results: Sequence[Result]) -> None:
    figure = new_figure((7.4, 3.3))
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, route in zip(axes, ('main', 'aux')):
        for i, row in enumerate(study.curves):
            columns = {0: 'clean' if route == 'main' else 'clean_aux',
                       **{eps: pgd_attacked(eps, route) for eps in study.measures.strengths}}
            points = {eps: fmean(found.values()) for eps, column in columns.items()
                      if (found := values_of(results, row, column))}
            if points:
                axis.plot(points.keys(), points.values(), color=COLORS[i % len(COLORS)], linewidth=1,
                          marker=_MARKERS[i // len(COLORS) % len(_MARKERS)], markersize=4, label=study.title(row))
        _label(axis, f'through the {route} norms', f'eps of PGD-{study.measures.steps} (pixels of 255)')
    axes[0].set_ylabel('accuracy (%)', fontsize=_SIZE)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', fontsize=_SIZE - 2, frameon=False)
    figure.savefig(path)


def _means(results: Sequence[Result], row: str, columns: Sequence[str]) -> Tuple[float, ...]:
    return tuple(fmean(values_of(results, row, column).values()) for column in columns)


def _errors(results: Sequence[Result], row: str) -> Iterator[float]:
    # Standard errors, upwards and to the right.
    for column in ('corruption', 'clean'):
        values = list(values_of(results, row, column).values())
        yield stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.


def _color(mean: float, margin: float) -> str:
    if abs(mean) <= margin:
        return _UNCLEAR
    return _BETTER if mean > 0 else _WORSE


def _label(axis: Any, title: str, x: str) -> None:
    axis.set_title(title, fontsize=_SIZE)
    axis.set_xlabel(x, fontsize=_SIZE)
    axis.tick_params(labelsize=_SIZE - 1)
    axis.grid(linewidth=0.3)
