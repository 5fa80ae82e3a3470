"""Runs the jobs of a study, several at a time."""
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Collection, Iterator, Sequence, Tuple

import torch

from timm_advprop.errors import InputError
from timm_advprop.output import duration

from .job import Job, Result
from .table import Table

__all__ = ['run_jobs']


def run_jobs(jobs: Sequence[Job], table: Table, num_processes: int) -> None:
    """Run what is not in the table, and add it; a line for each.

    Args:
        jobs: The jobs of a study, in the order in which they begin.
        table: Its table.
        num_processes: How many run at a time.

    Raises:
        InputError: A training failed, or a process was killed. What is finished is in the table.
        KeyboardInterrupt: The same.
    """
    finished = {(result['row'], result['seed']) for result in table.results(jobs)}
    waiting = [job for job in jobs if (job.row, job.seed) not in finished]
    print(f'{len(jobs) - len(waiting)} of {len(jobs)} trainings are finished already.', flush=True)
    starts = {(start.row, start.seed): start for job in waiting if (start := job.start)}
    start_process()
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context('spawn'), _start_worker) as pool:
        try:
            _pretrain(pool, list(starts.values()))
            _collect(pool, waiting, table, len(jobs))
        except BrokenProcessPool as error:
            raise InputError('A process was killed, perhaps as memory ran out: try fewer at a time (--jobs). The same '
                             'command goes on with what is not finished.') from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def start_process() -> None:
    """One thread: on images this small, threads wait more than they work."""
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


def _pretrain(pool: ProcessPoolExecutor, jobs: Sequence[Job]) -> None:
    # What several jobs start from is there before any of them.
    futures = {pool.submit(job.checkpoint): job for job in jobs}
    for done, future, times in _finished(futures):
        future.result()
        print(f'[{done}/{len(jobs)}] pre-training, {futures[future].title}  {times}', flush=True)


def _collect(pool: ProcessPoolExecutor, waiting: Sequence[Job], table: Table, num_jobs: int) -> None:
    futures = {pool.submit(job.run): job for job in waiting}
    for done, future, times in _finished(futures):
        results = future.result()
        table.add(results)
        print(f'[{num_jobs - len(waiting) + done}/{num_jobs}] {futures[future].title}: {_summary(results[0])}  {times}',
              flush=True)


def _finished(futures: Collection[Future]) -> Iterator[Tuple[int, Future, str]]:
    # Futures as they finish, with their number, and the time until then and until the last one.
    start = time.monotonic()
    for done, future in enumerate(as_completed(futures), 1):
        elapsed = time.monotonic() - start
        yield done, future, f'({duration(elapsed)}, {duration(elapsed / done * (len(futures) - done))} left)'


def _start_worker() -> None:
    start_process()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and the training that it waits for
    threading.Thread(target=_stop_with_parent, daemon=True).start()


def _stop_with_parent() -> None:
    # One that is killed cannot tell its workers, and a training that goes on would be in the way of the next run.
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _summary(result: Result) -> str:
    shown = ('holdout', 'clean', 'corruption', 'pgd8_main', 'pgd8_aux', 'autoattack_main', 'autoattack_aux')
    return ', '.join(f'{name} {result[name]:.1f}' for name in shown if name in result)
