"""The study's table, its figures as CSV, and what they say about the paper's claims."""
import csv
import os
from typing import Any, Dict, List, Sequence

import torch

from .measure import STEPS, STRENGTHS
from .pictures import draw_study
from .rows import EPOCHS, EPS, ROWS
from .values import by_row, mean_and_deviation

__all__ = ['write_report']

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

_T_95 = {2: 4.30, 4: 2.78, 6: 2.45, 8: 2.31, 10: 2.23, 12: 2.18}  # Student's t, two-sided, by degrees of freedom

Result = Dict[str, Any]


def write_report(
        folder: str,
        results: Sequence[Result],
        costs: Dict[str, Dict[str, float]],
        num_train: int,
        num_attacked: int,
) -> None:
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
        *_table(results, costs),
        '',
        'The papers\' claims about clean accuracy, at this scale: difference of the means over seeds, ± its standard '
        'error; within noise where a t-test at 95 % cannot tell it from none.',
        '',
        *_claims(results),
    ])
    with open(os.path.join(folder, 'fashion_mnist.md'), 'w', encoding='utf-8') as file:
        file.write(f'{text}\n')
    print(text)
    for path in draw_study(folder, results):
        print(f'Picture: {path}')


def _write_csv(path: str, results: Sequence[Result], costs: Dict[str, Dict[str, float]]) -> None:
    measured = [f'pgd_eps{eps}_{route}_top1' for route in ('main', 'aux') for eps in STRENGTHS]
    columns = ['regime', 'seed', 'holdout_top1', 'clean_top1', *measured, 'cost', 'arithmetic']
    with open(f'{path}.tmp', 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns, extrasaction='ignore')
        writer.writeheader()
        for result in results:
            row = dict(result, regime=result['name'], **costs[result['name']])
            writer.writerow({name: f'{value:.3f}' if isinstance(value, float) else value
                             for name, value in row.items()})
    os.replace(f'{path}.tmp', path)


def _table(results: Sequence[Result], costs: Dict[str, Dict[str, float]]) -> List[str]:
    columns = ['clean_top1', *(f'pgd_eps{eps}_{route}_top1' for route in ('main', 'aux') for eps in TABLE_STRENGTHS)]
    titles = ['clean', *(f'PGD, eps {eps}/255, {route}' for route in ('main', 'aux') for eps in TABLE_STRENGTHS)]
    lines = [f'| regime | {" | ".join(titles)} | cost | arithmetic |', '|---' * (len(titles) + 3) + '|']
    values = {column: by_row(results, column) for column in columns}
    for name, row in ROWS.items():
        cells = ['{:.1f} ± {:.1f}'.format(*mean_and_deviation(values[column][name])) if name in values[column] else '–'
                 for column in columns]
        cost = costs[name]
        lines.append(f'| {row.title} | {" | ".join(cells)} | {cost["cost"]:.2f} | {cost["arithmetic"]:.2f} |')
    return lines


def _claims(results: Sequence[Result]) -> List[str]:
    clean = by_row(results, 'clean_top1')
    lines = ['| claim | difference | here |', '|---|---|---|']
    for better, worse, text in _CLAIMS:
        (a, a_deviation), (b, b_deviation) = (mean_and_deviation(clean[name]) for name in (better, worse))
        counts = len(clean[better]), len(clean[worse])
        error = (a_deviation ** 2 / counts[0] + b_deviation ** 2 / counts[1]) ** 0.5
        verdict = 'one seed' if min(counts) < 2 else 'within noise'
        if min(counts) > 1 and abs(a - b) > _T_95.get(sum(counts) - 2, 2.) * error:
            verdict = 'reproduced' if a > b else 'the opposite'
        lines.append(f'| {text} | {a - b:+.2f} ± {error:.2f} | {verdict} |')
    return lines
