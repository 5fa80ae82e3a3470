"""The tables of what was proposed after the paper: each way to train beside AdvProp."""
import csv
import os
from typing import Any, Dict, List, Sequence, Tuple

import torch

from timm_advprop.corruptions import GROUPS
from timm_advprop.output import markdown_table, replacing

from .accuracy import STEPS, STRENGTHS, attacked_top1
from .beyond import BEYOND
from .costs import Costs
from .report import T_95
from .rows import EPOCHS, EPS
from .values import Result, by_row, mean_and_error, paired_difference

__all__ = ['write_beyond_report']

_EPS = STRENGTHS[1]
_COLUMNS = {
    'clean': 'clean_top1', 'corruptions': 'corruption_top1',
    **{f'PGD, eps {_EPS}/255, {route}': attacked_top1(_EPS, route) for route in ('main', 'aux')},
}
_REFERENCE = 'advprop'


def write_beyond_report(
        folder: str,
        results: Sequence[Result],
        costs: Costs,
        num_train: int,
        num_attacked: int,
) -> None:
    """Write `fashion_mnist_beyond.md` and `.csv`, and print the tables.

    Args:
        folder: Folder to write to.
        results: Results of all jobs.
        costs: Costs of the rows.
        num_train: Number of training images.
        num_attacked: Number of test images that were attacked, and corrupted.
    """
    os.makedirs(folder, exist_ok=True)
    results = _with_blends(results)
    _write_csv(os.path.join(folder, 'fashion_mnist_beyond.csv'), results, costs)
    seeds = len({result['seed'] for result in results})
    text = '\n'.join([
        f'Fashion-MNIST, {num_train} training images, test_resnet, {EPOCHS} epochs, {seeds} seeds; top-1 in percent, '
        f'mean ± standard error over seeds. Clean accuracy through the main norms on all 10000 test images, the mean '
        f'of 15 corruptions × 5 severities through the main norms and PGD-{STEPS} (untargeted, random start, step '
        f'eps/8) on {num_attacked} of them. Cost: time of the whole training relative to vanilla, steps timed in turn, '
        f'on {torch.get_num_threads()} CPU threads or a GPU. AdvProp attacks by a single untargeted step, eps '
        f'{EPS}/255.',
        '',
        _table(results, costs),
        '',
        f'Difference to AdvProp, paired by seed, ± its standard error; **bold** where a paired t-test at 95 % can tell '
        f'it from none. Of {_num_comparisons(results)} such tests, some are bold by chance.',
        '',
        _differences(results),
    ])
    with open(os.path.join(folder, 'fashion_mnist_beyond.md'), 'w', encoding='utf-8') as file:
        file.write(f'{text}\n')
    print(text)


def _with_blends(results: Sequence[Result]) -> List[Result]:
    # A row for each blend behind all rows that were trained.
    blends = [dict(found, name=f'{result["name"]}, blend {weight}', seed=result['seed'])
              for result in results for weight, found in result.get('blends', {}).items()]
    return [*results, *blends]


def _title(name: str) -> str:
    trained, _, blend = name.partition(', blend ')
    return f'{BEYOND[trained].title}, {float(blend):.0%} of aux blended in' if blend else BEYOND[trained].title


def _cost_of(name: str, costs: Costs) -> Dict[str, float]:
    return costs[name.partition(', blend ')[0]]


def _write_csv(path: str, results: Sequence[Result], costs: Costs) -> None:
    groups = [f'{group}_top1' for group in GROUPS if group != 'extra']
    attacked = [attacked_top1(eps, route) for route in ('main', 'aux') for eps in STRENGTHS]
    columns = ['row', 'seed', 'holdout_top1', 'clean_top1', 'corruption_top1', *groups, *attacked, 'cost', 'arithmetic']
    with replacing(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns, extrasaction='ignore')
        writer.writeheader()
        for result in results:
            row: Dict[str, Any] = dict(result, row=result['name'], **_cost_of(result['name'], costs))
            writer.writerow({name: f'{value:.3f}' if isinstance(value, float) else value
                             for name, value in row.items()})


def _table(results: Sequence[Result], costs: Costs) -> str:
    columns = {title: by_row(results, column) for title, column in _COLUMNS.items()}
    rows = [['', *columns, 'cost', 'arithmetic']]
    for name in columns['clean']:
        cells = ['{:.1f} ± {:.1f}'.format(*mean_and_error(values[name])) if name in values else '–'
                 for values in columns.values()]
        cost = _cost_of(name, costs)
        rows.append([_title(name), *cells, *(f'{cost[kind]:.2f}' for kind in ('cost', 'arithmetic'))])
    return markdown_table(rows)


def _differences(results: Sequence[Result]) -> str:
    rows = [['', *_COLUMNS]]
    for name in by_row(results, 'clean_top1'):
        if name != _REFERENCE:
            rows.append([_title(name), *(_difference(results, name, column) for column in _COLUMNS.values())])
    return markdown_table(rows)


def _difference(results: Sequence[Result], name: str, column: str) -> str:
    if name not in by_row(results, column):
        return '–'
    difference, error = paired_difference(results, name, _REFERENCE, column)
    text, num_seeds = f'{difference:+.1f} ± {error:.1f}', len(by_row(results, column)[name])
    return f'**{text}**' if num_seeds > 1 and abs(difference) > T_95.get(num_seeds - 1, 2.) * error else text


def _num_comparisons(results: Sequence[Result]) -> int:
    columns: List[Tuple[str, ...]] = [tuple(by_row(results, column)) for column in _COLUMNS.values()]
    return sum(len(names) - (_REFERENCE in names) for names in columns)
