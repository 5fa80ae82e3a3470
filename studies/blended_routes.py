"""Blends of main and auxiliary norms, with statistics that are mixed or taken again from training images.

Run it in the repository's root, with checkpoints of the same training under several seeds:
`python -m studies.blended_routes DATA RUN.pth.tar …` prints the table of docs/methods/blended_routes.md and writes
results/blended_routes.csv and the picture.
"""
import argparse
import csv
import os
from collections import defaultdict
from statistics import fmean, stdev
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Subset

from timm_advprop import blend_routes
from timm_advprop.engine.datasets import channel_normalisation
from timm_advprop.engine.evaluation import evaluate
from timm_advprop.engine.figures import new_figure
from timm_advprop.engine.placement import open_placement
from timm_advprop.engine.recalibration import Recalibration
from timm_advprop.engine.run_settings import DataSettings, DeviceSettings, LoaderSettings
from timm_advprop.errors import as_input_error, exits_on_input_error
from timm_advprop.output import markdown_table, replacing
from timm_advprop.regimes import Attack

from .trained import Trained, check_root, open_trained

__all__ = ['Measured', 'main', 'render_table']

WEIGHTS = (0., 0.25, 0.5, 0.75, 1.)  # of the auxiliary norms
STRENGTHS, STEPS = (4, 8), 10
NUM_ATTACKED, NUM_RECALIBRATION = 1000, 1000
SPLIT = 'holdout'  # to recalibrate with: training images have a margin to be shifted in, and would be seen smaller
RESULTS = 'results/blended_routes'
MIXED, RECALIBRATED = 'mixed', 'recalibrated'
_BATCH_SIZE = 250
_COLORS = {MIXED: '#0072B2', RECALIBRATED: '#D55E00'}  # Okabe and Ito
_Means = Dict[Tuple[float, str, str], List[float]]


class Measured(NamedTuple):
    """An accuracy of a blend.

    Args:
        run: The checkpoint.
        weight: Share of the auxiliary norms.
        statistics: `'mixed'` or `'recalibrated'`.
        images: `'clean'`, or the attack.
        top1: Top-1 accuracy in percent.
    """
    run: str
    weight: float
    statistics: str
    images: str
    top1: float


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure blends of each run."""
    parser = argparse.ArgumentParser(prog='python -m studies.blended_routes', description=__doc__.splitlines()[0])
    parser.add_argument('data', metavar='DATA', help='folder of the data set')
    parser.add_argument('--results', default=RESULTS, metavar='PATH', help='files to write, without their endings')
    parser.add_argument('runs', metavar='RUN', nargs='+', help='checkpoints with auxiliary norms, a seed each')
    args = parser.parse_args(argv)
    check_root('the study', 'pyproject.toml')
    new_figure((1, 1))  # says now, not at the end, where matplotlib is missing
    measured = [each for run in args.runs for each in _measure_run(run, args.data)]
    table, picture = f'{args.results}.csv', f'{args.results}.png'
    os.makedirs(os.path.dirname(os.path.abspath(table)), exist_ok=True)
    with replacing(table) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([Measured._fields, *measured])
    _draw(picture, measured)
    print(render_table(measured))
    print(f'\nWritten: {table}, {picture}')


def render_table(measured: Sequence[Measured]) -> str:
    """A Markdown table of mean ± standard error over runs: mixed, recalibrated, and the mean of their differences."""
    images = list(dict.fromkeys(each.images for each in measured))
    values = _by_blend(measured)
    rows: List[Sequence[str]] = [('weight', 'statistics', *images)]
    for weight in sorted({each.weight for each in measured}):
        pairs = [[values[weight, statistics, name] for statistics in (MIXED, RECALIBRATED)] for name in images]
        cells = {MIXED: [mixed for mixed, _ in pairs], RECALIBRATED: [again for _, again in pairs],
                 'difference': [[b - a for a, b in zip(*pair)] for pair in pairs]}
        rows += [(f'{weight:g}', name, *(_text(of_images, sign='+' if name == 'difference' else '')
                                         for of_images in row)) for name, row in cells.items()]
    return markdown_table(rows)


def _measure_run(run: str, data: str) -> Iterator[Measured]:
    trained, placement = open_trained(run), open_placement(DeviceSettings())
    again = Recalibration(DataSettings(data_dir=data), SPLIT, NUM_RECALIBRATION, trained.config)
    again.check_split()
    for weight in WEIGHTS:
        blend = placement.place(as_input_error(blend_routes, trained.model, weight)).eval()
        for statistics in (MIXED, RECALIBRATED):
            model = blend if statistics == MIXED else again(blend, placement, LoaderSettings(workers=0))
            top1 = _accuracies(model, trained, data, placement)
            print(f'{run} {weight:g} {statistics}: ' + ', '.join(f'{name} {v:.1f}' for name, v in top1.items()),
                  flush=True)
            yield from (Measured(run, weight, statistics, name, round(value, 4)) for name, value in top1.items())


def _accuracies(model: nn.Module, trained: Trained, data: str, placement) -> Dict[str, float]:
    dataset = trained.images(data)
    clean = evaluate(model, DataLoader(dataset, _BATCH_SIZE), placement, log_name=None)
    attacked = Subset(dataset, range(0, len(dataset), max(1, len(dataset) // NUM_ATTACKED)))
    top1 = {'clean': clean['top1']}
    for eps in STRENGTHS:
        attack = Attack(eps_px=eps, alpha_px=eps / 4, steps=STEPS, target='none', random_start=1.).normalised_by(
            *channel_normalisation(trained.config))
        torch.manual_seed(0)
        found = evaluate(model, DataLoader(attacked, _BATCH_SIZE), placement, attack=attack, log_name=None)
        top1[f'PGD-{STEPS} {eps}/255'] = found['adv_top1']
    return top1


def _by_blend(measured: Sequence[Measured]) -> _Means:
    values: _Means = defaultdict(list)
    for each in measured:
        values[each.weight, each.statistics, each.images].append(each.top1)
    return values


def _text(values: Sequence[float], sign: str = '') -> str:
    error = f' ± {_standard_error(values):.1f}' if len(values) > 1 else ''
    return f'{fmean(values):{sign}.1f}{error}'


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.


def _draw(path: str, measured: Sequence[Measured]) -> None:
    values, attacks = _by_blend(measured), [name for name in dict.fromkeys(each.images for each in measured)][1:]
    figure = new_figure((3.2 * len(attacks), 3.2))
    for axis, attack in zip(figure.subplots(1, len(attacks), squeeze=False)[0], attacks):
        for statistics, color in _COLORS.items():
            x, y = ([values[weight, statistics, images] for weight in WEIGHTS] for images in ('clean', attack))
            axis.errorbar(
                [*map(fmean, x)], [*map(fmean, y)], [*map(_standard_error, y)], [*map(_standard_error, x)],
                marker='o', markersize=3.5, linewidth=1.2, elinewidth=0.7, color=color, label=statistics)
        for weight in WEIGHTS:
            place = [fmean(values[weight, MIXED, images]) for images in ('clean', attack)]
            axis.annotate(f'{weight:g}', place, (5, 5), textcoords='offset points', fontsize=7, color=_COLORS[MIXED])
        axis.set_xlabel('clean top-1 (%)', fontsize=8)
        axis.set_ylabel(f'top-1 under {attack} (%)', fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(linewidth=0.4, color='0.9')
        axis.spines[['top', 'right']].set_visible(False)
    axis.legend(fontsize=7, frameon=False, title='statistics', title_fontsize=7)
    figure.savefig(path)


if __name__ == '__main__':
    main()
