"""The pictures of the study. They need matplotlib."""
import os
import statistics
from typing import Any, Dict, List, Sequence

from ..evaluation.pictures import new_figure
from ..hub.pictures import draw_norms
from ..hub.release import open_release
from .measure import STEPS, STRENGTHS
from .rows import EPOCHS, ROWS
from .values import by_row, mean_and_deviation

__all__ = ['draw_study']

Result = Dict[str, Any]
_SIZE = 8


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
    paths = {name: os.path.join(folder, f'fashion_mnist_{name}.png') for name in (
        'accuracy', 'epochs', 'strength', 'norms')}
    _draw_accuracy(paths['accuracy'], results)
    _draw_epochs(paths['epochs'], results)
    _draw_strength(paths['strength'], results)
    release = open_release(next(result['checkpoint'] for result in results if result['name'] == 'advprop'))
    draw_norms(release.model, paths['norms'])
    return list(paths.values())


def _draw_accuracy(path: str, results: Sequence[Result]) -> None:
    names = list(by_row(results, 'clean_top1'))
    figure = new_figure((8, 3.4))
    axes = figure.subplots(1, 2, sharey=True)
    panels = (
        (axes[0], 'clean test images, main norms', (('clean_top1', 'tab:blue', 'main norms'),)),
        (axes[1], f'PGD-{STEPS}, eps {STRENGTHS[-1]}/255', (
            (f'pgd_eps{STRENGTHS[-1]}_main_top1', 'tab:blue', 'main norms'),
            (f'pgd_eps{STRENGTHS[-1]}_aux_top1', 'tab:orange', 'auxiliary norms'))),
    )
    for axis, title, columns in panels:
        for i, (column, color, label) in enumerate(columns):
            values = by_row(results, column)
            means, deviations = zip(*map(mean_and_deviation, values.values()))
            places = [names.index(name) + 0.25 * i for name in values]
            axis.errorbar(means, places, xerr=deviations, fmt='o', color=color, label=label, capsize=2, markersize=4)
        axis.set_title(title, fontsize=_SIZE)
        axis.set_xlabel('top-1 (%)', fontsize=_SIZE)
        axis.tick_params(labelsize=_SIZE - 1)
        axis.grid(axis='x', linewidth=0.4)
    axes[0].set_yticks(range(len(names)), [ROWS[name].title for name in names])
    axes[0].invert_yaxis()
    axes[1].legend(fontsize=_SIZE - 1)
    figure.savefig(path)


def _draw_epochs(path: str, results: Sequence[Result]) -> None:
    figure = new_figure((8, 3.2))
    axes = figure.subplots(1, 2)
    for axis, column, title in (
            (axes[0], 'eval_top1', 'held-out clean images, main norms'),
            (axes[1], 'train_adv_top1', 'adversarial training images, as trained')):
        for i, name in enumerate(by_row(results, 'clean_top1')):
            curves = [[row.get(column) for row in result['history']] for result in results if result['name'] == name]
            points = [(epoch, statistics.mean(values)) for epoch, values in enumerate(zip(*curves), 1)
                      if None not in values]
            if points:
                axis.plot(*zip(*points), color=f'C{i}', linewidth=1, label=ROWS[name].title)
        axis.set_title(title, fontsize=_SIZE)
        axis.set_xlabel('epoch', fontsize=_SIZE)
        axis.set_ylabel('top-1 (%)', fontsize=_SIZE)
        axis.set_xticks(range(0, EPOCHS + 1, 5))
        axis.set_ylim(bottom=50)
        axis.tick_params(labelsize=_SIZE - 1)
        axis.grid(linewidth=0.4)
    axes[0].legend(fontsize=_SIZE - 2)
    figure.savefig(path)


def _draw_strength(path: str, results: Sequence[Result]) -> None:
    figure = new_figure((8, 3.2))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, route in zip(axes, ('main', 'aux')):
        for i, name in enumerate(by_row(results, 'clean_top1')):
            columns = {eps: f'pgd_eps{eps}_{route}_top1' for eps in STRENGTHS}
            if route == 'main':
                columns = {0: 'clean_top1', **columns}
            strengths = [eps for eps, column in columns.items() if name in by_row(results, column)]
            if not strengths:
                continue
            values = [by_row(results, columns[eps])[name] for eps in strengths]
            means, deviations = zip(*map(mean_and_deviation, values))
            axis.errorbar(strengths, means, yerr=deviations, color=f'C{i}', marker='o', markersize=3, linewidth=1,
                          capsize=2, label=ROWS[name].title)
        axis.set_title(f'through the {"main" if route == "main" else "auxiliary"} norms', fontsize=_SIZE)
        axis.set_xlabel(f'eps of PGD-{STEPS} (pixels of 255)', fontsize=_SIZE)
        axis.tick_params(labelsize=_SIZE - 1)
        axis.grid(linewidth=0.4)
    axes[0].set_ylabel('top-1 (%)', fontsize=_SIZE)
    axes[0].legend(fontsize=_SIZE - 2)
    figure.savefig(path)
