"""The pictures of the study. They need matplotlib."""
import os
import statistics
from typing import Any, List, Sequence, Tuple

from timm_advprop.engine.figures import new_figure
from timm_advprop.hub.card_pictures import draw_norms

from ..trained import open_trained
from .accuracy import STEPS, STRENGTHS, attacked_top1
from .rows import EPOCHS, ROWS
from .values import Result, by_row, mean_and_deviation

__all__ = ['draw_study']

_SIZE = 8
_ROUTES = {'main': ('main norms', 'tab:blue'), 'aux': ('auxiliary norms', 'tab:orange')}


def draw_study(folder: str, results: Sequence[Result]) -> List[str]:
    """Draw accuracy by regime, accuracy over epochs, strength against accuracy, and the norms of an AdvProp model.

    Args:
        folder: Folder to write to.
        results: Results of all jobs.

    Returns:
        The files written.

    Raises:
        InputError: matplotlib is not installed.
    """
    paths = []
    for name, draw in (('accuracy', _draw_accuracy), ('epochs', _draw_epochs), ('strength', _draw_strength),
                       ('norms', _draw_norms)):
        paths.append(os.path.join(folder, f'fashion_mnist_{name}.png'))
        draw(paths[-1], results)
    return paths


def _draw_norms(path: str, results: Sequence[Result]) -> None:
    checkpoint = next(result['checkpoint'] for result in results if result['name'] == 'advprop')
    draw_norms(open_trained(checkpoint).model, path)


def _draw_accuracy(path: str, results: Sequence[Result]) -> None:
    figure, (clean, attacked) = _two_panels(3.4, sharey=True)
    _draw_means(clean, results, 'clean_top1', 'main')
    for route in _ROUTES:
        _draw_means(attacked, results, attacked_top1(STRENGTHS[-1], route), route)
    for axis, title in ((clean, 'clean test images, main norms'), (attacked, f'PGD-{STEPS}, eps {STRENGTHS[-1]}/255')):
        _label(axis, title, 'top-1 (%)', grid='x')
    names = by_row(results, 'clean_top1')
    clean.set_yticks(range(len(names)), [ROWS[name].title for name in names])
    clean.invert_yaxis()
    attacked.legend(fontsize=_SIZE - 1)
    figure.savefig(path)


def _draw_means(axis: Any, results: Sequence[Result], column: str, route: str) -> None:
    # A row of the study is a place on the axis; the auxiliary norms' points are a little below the main ones'.
    values, names = by_row(results, column), list(by_row(results, 'clean_top1'))
    means, deviations = zip(*map(mean_and_deviation, values.values()))
    places = [names.index(name) + 0.25 * list(_ROUTES).index(route) for name in values]
    label, color = _ROUTES[route]
    axis.errorbar(means, places, xerr=deviations, fmt='o', color=color, label=label, capsize=2, markersize=4)


def _draw_epochs(path: str, results: Sequence[Result]) -> None:
    figure, axes = _two_panels(3.2)
    columns = {'eval_top1': 'held-out clean images, main norms',
               'train_adv_top1': 'adversarial training images, as trained'}
    for axis, (column, title) in zip(axes, columns.items()):
        for i, name in enumerate(by_row(results, 'clean_top1')):
            points = _mean_curve([result['history'] for result in results if result['name'] == name], column)
            if points:
                axis.plot(*zip(*points), color=f'C{i}', linewidth=1, label=ROWS[name].title)
        _label(axis, title, 'epoch')
        axis.set_ylabel('top-1 (%)', fontsize=_SIZE)
        axis.set_xticks(range(0, EPOCHS + 1, 5))
        axis.set_ylim(bottom=50)
    axes[0].legend(fontsize=_SIZE - 2)
    figure.savefig(path)


def _mean_curve(histories: Sequence[Sequence[Result]], column: str) -> List[Tuple[int, float]]:
    # Epochs, from 1, and means over seeds, where every seed has a value.
    curves = [[row.get(column) for row in history] for history in histories]
    return [(epoch, statistics.mean(values)) for epoch, values in enumerate(zip(*curves), 1) if None not in values]


def _draw_strength(path: str, results: Sequence[Result]) -> None:
    figure, axes = _two_panels(3.2, sharey=True)
    for axis, (route, (label, _)) in zip(axes, _ROUTES.items()):
        columns = {eps: by_row(results, attacked_top1(eps, route)) for eps in STRENGTHS}
        if route == 'main':
            columns = {0: by_row(results, 'clean_top1'), **columns}
        for i, name in enumerate(by_row(results, 'clean_top1')):
            points = [(eps, *mean_and_deviation(values[name])) for eps, values in columns.items() if name in values]
            if points:
                strengths, means, deviations = zip(*points)
                axis.errorbar(strengths, means, yerr=deviations, color=f'C{i}', marker='o', markersize=3, linewidth=1,
                              capsize=2, label=ROWS[name].title)
        _label(axis, f'through the {label}', f'eps of PGD-{STEPS} (pixels of 255)')
    axes[0].set_ylabel('top-1 (%)', fontsize=_SIZE)
    axes[0].legend(fontsize=_SIZE - 2)
    figure.savefig(path)


def _two_panels(height: float, **kwargs: Any) -> Tuple[Any, Any]:
    figure = new_figure((8, height))
    return figure, figure.subplots(1, 2, **kwargs)


def _label(axis: Any, title: str, x: str, grid: str = 'both') -> None:
    axis.set_title(title, fontsize=_SIZE)
    axis.set_xlabel(x, fontsize=_SIZE)
    axis.tick_params(labelsize=_SIZE - 1)
    axis.grid(axis=grid, linewidth=0.4)
