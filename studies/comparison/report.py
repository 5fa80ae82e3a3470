"""The study's table, its figures as CSV, and what they say about the paper's claims."""
import csv
import os
from typing import List, Sequence, Tuple

import torch

from timm_advprop.output import markdown_table, replacing

from .accuracy import STEPS, STRENGTHS, attacked_top1
from .charts import draw_study
from .costs import Costs
from .rows import EPOCHS, EPS, ROWS
from .values import Result, by_row, mean_and_deviation

__all__ = ['T_95', 'write_report']

ROUTES = ('main', 'aux')
TABLE_STRENGTHS = (2, 8)
# A claim of the paper about clean accuracy: row, its comparison, text. The first is said to be above the second.
_CLAIMS = (
    ('vanilla', 'madry', 'Adversarial images alone lower clean accuracy'),
    ('vanilla', 'joint', 'Adversarial images in the same norm lower clean accuracy'),
    ('advprop', 'joint', 'Auxiliary norms are better than one norm'),
    ('advprop', 'vanilla', 'AdvProp improves clean accuracy'),
    ('pretraining', 'vanilla', 'Adversarial pre-training improves clean accuracy'),
    ('advprop', 'pretraining', 'AdvProp is better than adversarial pre-training'),
    ('advprop-fine-grained', 'advprop', 'Fine-grained AdvProp is better than AdvProp'),
    ('fast-advprop', 'vanilla', 'Fast AdvProp improves clean accuracy at vanilla cost'),
)

# Student's t, two-sided, by degrees of freedom
T_95 = dict(enumerate((12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18), 1))


def write_report(folder: str, results: Sequence[Result], costs: Costs, num_train: int, num_attacked: int) -> None:
    """Write `fashion_mnist.csv`, `fashion_mnist.md` and the pictures, and print the table.

    Args:
        folder: Folder to write to.
        results: Results of all jobs.
        costs: Cost of each row, see `measure_costs`.
        num_train: Number of training images.
        num_attacked: Number of test images that were attacked.
    """
    os.makedirs(folder, exist_ok=True)
    _write_csv(os.path.join(folder, 'fashion_mnist.csv'), results, costs)
    seeds = len({result['seed'] for result in results})
    text = '\n'.join([
        f'Fashion-MNIST, {num_train} training images, test_resnet, {EPOCHS} epochs, {seeds} seeds; top-1 in percent, '
        f'mean ± standard deviation over seeds. Clean accuracy through the main norms on all 10000 test images, '
        f'PGD-{STEPS} (untargeted, random start, step eps/8) on {num_attacked} of them. Cost: time of the whole '
        f'training relative to vanilla, steps timed in turn, on {torch.get_num_threads()} CPU threads or a GPU. All '
        f'attacks in training are a single untargeted step, eps {EPS}/255; fine-grained AdvProp augments by timm\'s '
        f'rand-m5-inc1.',
        '',
        _table(results, costs),
        '',
        'The papers\' claims about clean accuracy, at this scale: difference of the means over seeds, ± its standard '
        'error; within noise where a t-test at 95 % cannot tell it from none.',
        '',
        _claims(results),
    ])
    with open(os.path.join(folder, 'fashion_mnist.md'), 'w', encoding='utf-8') as file:
        file.write(f'{text}\n')
    print(text)
    for path in draw_study(folder, results):
        print(f'Picture: {path}')


def _write_csv(path: str, results: Sequence[Result], costs: Costs) -> None:
    measured = [attacked_top1(eps, route) for route in ROUTES for eps in STRENGTHS]
    columns = ['regime', 'seed', 'holdout_top1', 'clean_top1', *measured, 'cost', 'arithmetic']
    with replacing(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns, extrasaction='ignore')
        writer.writeheader()
        for result in results:
            row = dict(result, regime=result['name'], **costs[result['name']])
            writer.writerow({name: f'{value:.3f}' if isinstance(value, float) else value
                             for name, value in row.items()})


def _table(results: Sequence[Result], costs: Costs) -> str:
    attacked = {f'PGD, eps {eps}/255, {route}': attacked_top1(eps, route)
                for route in ROUTES for eps in TABLE_STRENGTHS}
    columns = {title: by_row(results, column) for title, column in {'clean': 'clean_top1', **attacked}.items()}
    rows = [['regime', *columns, 'cost', 'arithmetic']]
    for name, row in ROWS.items():
        cells = ['{:.1f} ± {:.1f}'.format(*mean_and_deviation(values[name])) if name in values else '–'
                 for values in columns.values()]
        rows.append([row.title, *cells, *(f'{costs[name][kind]:.2f}' for kind in ('cost', 'arithmetic'))])
    return markdown_table(rows)


def _claims(results: Sequence[Result]) -> str:
    clean = by_row(results, 'clean_top1')
    rows: List[Sequence[str]] = [('claim', 'difference', 'here')]
    for better, worse, text in _CLAIMS:
        difference, error, verdict = _compare(clean[better], clean[worse])
        rows.append((text, f'{difference:+.2f} ± {error:.2f}', verdict))
    return markdown_table(rows)


def _compare(better: Sequence[float], worse: Sequence[float]) -> Tuple[float, float, str]:
    # The difference of the means, its standard error, and what a t-test says of it.
    (a, a_deviation), (b, b_deviation) = mean_and_deviation(better), mean_and_deviation(worse)
    error = (a_deviation ** 2 / len(better) + b_deviation ** 2 / len(worse)) ** 0.5
    if min(len(better), len(worse)) < 2:
        return a - b, error, 'one seed'
    if abs(a - b) <= T_95.get(len(better) + len(worse) - 2, 2.) * error:
        return a - b, error, 'within noise'
    return a - b, error, 'reproduced' if a > b else 'the opposite'
