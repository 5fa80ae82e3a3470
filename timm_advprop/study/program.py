"""The study's program: `python -m timm_advprop.study`, in the root of the repository."""
import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, Dict, List, Optional, Sequence

import torch

from ..arguments import ProgramParser
from ..data import FASHION_MNIST_SOURCE, write_fashion_mnist
from ..errors import InputError, exits_on_input_error
from ..evaluation.pictures import new_figure
from ..regimes.arguments import number
from .job import Job
from .measure import measure_costs
from .report import write_report
from .rows import CANDIDATES, RECIPE, ROWS

__all__ = ['main']

NUM_TRAIN, NUM_HOLDOUT, NUM_ATTACKED = 4000, 2000, 1000
CHOICE_SEED = 100  # none of those that are reported


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the study, or go on with it.

    Args:
        argv: Command line, `sys.argv[1:]` by default.
    """
    args = _parse_args(argv)
    for path in ('train.py', RECIPE):
        if not os.path.isfile(path):
            raise InputError(f'No {path} here: run the study in the root of the repository.')
    new_figure((1, 1))  # says now, not at the end, where matplotlib is missing
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # on images this small, threads wait more than they work
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    data = os.path.join(args.output, 'fashion-mnist')
    os.makedirs(args.output, exist_ok=True)
    write_fashion_mnist(data, args.source, NUM_TRAIN, NUM_HOLDOUT)
    if args.choose:
        _run_jobs([Job(name, row, CHOICE_SEED, args.output, data, 0) for name, row in CANDIDATES.items()], args.jobs)
        return
    jobs = [Job(name, row, seed, args.output, data, NUM_ATTACKED) for seed in args.seeds for name, row in ROWS.items()]
    try:
        results = _run_jobs(jobs, args.jobs)
    except KeyboardInterrupt:
        print('Interrupted. The same command goes on with what is not finished.', file=sys.stderr)
        sys.exit(130)
    costs = _measured_costs(jobs, data, os.path.join(args.output, 'costs.json'))
    write_report(args.results, results, costs, NUM_TRAIN, NUM_ATTACKED)


def _parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = ProgramParser(
        prog='python -m timm_advprop.study',
        description='Train every regime on a part of Fashion-MNIST and compare accuracy, robustness and cost. What is '
                    'finished is kept: the same command goes on where it was stopped.')
    add = parser.add_argument
    add('--output', default='output/study', metavar='DIR', help='folder of the runs (default: output/study)')
    add('--results', default='results', metavar='DIR', help='folder of the tables and pictures (default: results)')
    add('--seeds', type=number(0, kind=int), nargs='+', default=[0, 1, 2], metavar='S', help='seeds (default: 0 1 2)')
    add('--jobs', type=number(1, kind=int), default=os.cpu_count(), metavar='N',
        help='trainings at a time (default: one for each CPU)')
    add('--choose', action='store_true', help='compare settings on held-out images instead, without the test set')
    add('--source', default=FASHION_MNIST_SOURCE, metavar='FOLDER',
        help='folder of Fashion-MNIST\'s idx.gz files (default: %(default)s)')
    return parser.parse_args(argv)


def _run_jobs(jobs: Sequence[Job], num_processes: int) -> List[Dict[str, Any]]:
    results = {job.title: job.saved_result() for job in jobs}
    waiting = [job for job in jobs if results[job.title] is None]
    start = time.monotonic()
    print(f'{len(jobs) - len(waiting)} of {len(jobs)} trainings are finished already.', flush=True)
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context('spawn'), _start_process) as pool:
        futures = {pool.submit(job.run): job for job in waiting}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                job = futures[future]
                results[job.title] = future.result()
                minutes = (time.monotonic() - start) / 60
                print(f'[{len(jobs) - len(waiting) + done}/{len(jobs)}] {job.title}: {_summary(results[job.title])}  '
                      f'({minutes:.0f} min, {minutes / done * (len(waiting) - done):.0f} min left)', flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[job.title] for job in jobs]


def _start_process() -> None:
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


def _summary(result: Dict[str, Any]) -> str:
    accuracies = {name: value for name, value in result.items() if name.endswith('top1')}
    return ', '.join(f'{name} {value:.1f}' for name, value in accuracies.items())


def _measured_costs(jobs: Sequence[Job], data: str, path: str) -> Dict[str, Dict[str, float]]:
    # After the trainings, as these would disturb the clock; kept, as everything else.
    trainings = sorted({job.training_digest() for job in jobs if job.seed == jobs[0].seed})
    try:
        with open(path, encoding='utf-8') as file:
            kept = json.load(file)
    except (OSError, ValueError):
        kept = {}
    if kept.get('trainings') != trainings:
        kept = dict(trainings=trainings, costs=measure_costs(ROWS, data, rounds=15))
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(kept, file)
    return kept['costs']
