"""The study's program: `python -m studies.fashion_mnist`, in the root of the repository."""
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from timm_advprop.cli.parser import ProgramParser
from timm_advprop.engine.figures import new_figure
from timm_advprop.engine.small_datasets import FASHION_MNIST_SOURCE, write_fashion_mnist
from timm_advprop.errors import exits_on_input_error
from timm_advprop.settings import Settings, setting

from ..trained import check_root
from .beyond import BEYOND
from .beyond_report import write_beyond_report
from .costs import kept_costs
from .job import Job
from .report import write_report
from .rows import CANDIDATES, RECIPE, ROWS

__all__ = ['main']

NUM_TRAIN, NUM_HOLDOUT, NUM_ATTACKED = 4000, 2000, 1000
COMPARISONS = {'paper': (ROWS, write_report), 'beyond': (BEYOND, write_beyond_report)}
CHOICE_SEED = 100  # none of those that are reported


@dataclass(frozen=True)
class ComparedSettings(Settings):
    """What is compared, and where it is kept."""
    title = 'Study parameters'
    rows: str = setting(
        'paper', 'what is trained: the regimes that the paper compares, or what was proposed since',
        choices=tuple(COMPARISONS))
    output: str = setting('output/study', 'folder of the runs', metavar='DIR')
    results: str = setting('results', 'folder of the tables and pictures', metavar='DIR')
    seeds: Tuple[int, ...] = setting((0, 1, 2), 'seeds', low=0, nargs='+', metavar='S')
    jobs: int = setting(os.cpu_count(), 'trainings at a time', low=1, metavar='N', default_help='one for each CPU')
    choose: bool = setting(False, 'compare settings on held-out images instead, without the test set')
    source: str = setting(FASHION_MNIST_SOURCE, 'folder of Fashion-MNIST\'s idx.gz files', metavar='FOLDER')


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the study, or go on with it."""
    settings = _parse_args(argv)
    check_root('the study', 'train.py', RECIPE)
    new_figure((1, 1))  # says now, not at the end, where matplotlib is missing
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # on images this small, threads wait more than they work
    _start_process()
    data = os.path.join(settings.output, 'fashion-mnist')
    os.makedirs(settings.output, exist_ok=True)
    write_fashion_mnist(data, settings.source, NUM_TRAIN, NUM_HOLDOUT)
    (rows, report), seeds, num_attacked = COMPARISONS[settings.rows], settings.seeds, NUM_ATTACKED
    if settings.choose:
        rows, seeds, num_attacked = CANDIDATES, (CHOICE_SEED,), 0
    jobs = [Job(name, row, seed, settings.output, data, num_attacked) for seed in seeds for name, row in rows.items()]
    try:
        results = _run_jobs(jobs, settings.jobs)
    except KeyboardInterrupt:
        print('Interrupted. The same command goes on with what is not finished.', file=sys.stderr)
        sys.exit(130)
    if not settings.choose:
        trainings = sorted({job.training_digest() for job in jobs if job.seed == seeds[0]})
        # after the trainings, as these would disturb the clock
        costs = kept_costs(os.path.join(settings.output, f'costs-{settings.rows}.json'), trainings, rows, data)
        report(settings.results, results, costs, NUM_TRAIN, NUM_ATTACKED)


def _parse_args(argv: Optional[Sequence[str]]) -> ComparedSettings:
    parser = ProgramParser(
        prog='python -m studies.fashion_mnist',
        description='Train every regime on a part of Fashion-MNIST and compare accuracy, robustness and cost. What is '
                    'finished is kept: the same command goes on where it was stopped.')
    parser.add_settings(ComparedSettings.title, ComparedSettings.flags())
    return ComparedSettings.from_values(vars(parser.parse_args(argv)))


def _run_jobs(jobs: Sequence[Job], num_processes: int) -> List[Dict[str, Any]]:
    results = {job.title: job.saved_result() for job in jobs}
    waiting = [job for job in jobs if results[job.title] is None]
    print(f'{len(jobs) - len(waiting)} of {len(jobs)} trainings are finished already.', flush=True)
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context('spawn'), _start_worker) as pool:
        try:
            _collect(pool, waiting, results)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return [results[job.title] for job in jobs]


def _collect(pool: ProcessPoolExecutor, waiting: Sequence[Job], results: Dict[str, Any]) -> None:
    # Fills in the results as they come, with a line for each.
    futures, start = {pool.submit(job.run): job for job in waiting}, time.monotonic()
    for done, future in enumerate(as_completed(futures), 1):
        title = futures[future].title
        results[title] = future.result()
        minutes, left = (time.monotonic() - start) / 60, len(waiting) - done
        print(f'[{len(results) - left}/{len(results)}] {title}: {_summary(results[title])}  '
              f'({minutes:.0f} min, {minutes / done * left:.0f} min left)', flush=True)


def _start_process() -> None:
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


def _start_worker() -> None:
    _start_process()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and the training that it waits for


def _summary(result: Dict[str, Any]) -> str:
    accuracies = {name: value for name, value in result.items() if name.endswith('top1')}
    return ', '.join(f'{name} {value:.1f}' for name, value in accuracies.items())
