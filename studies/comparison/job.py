"""One training of a study and what is measured of it. A training that is finished is kept, until it is measured."""
import csv
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Dict, List, Optional, Sequence, Tuple

import timm
import torch
import yaml

from timm_advprop.cli.train import parse_args
from timm_advprop.engine.placement import open_placement
from timm_advprop.engine.run_settings import DeviceSettings
from timm_advprop.errors import InputError

from .kept import digest, keep, read_kept
from .study import Study

__all__ = ['Job', 'Result', 'asked_for', 'study_jobs']

Result = Dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A training of a study with its measurements.

    Args:
        study: The study.
        row: Name of the row.
        seed: Seed of the training.
        output: Folder of all runs; the data set is in it.
    """
    study: Study
    row: str
    seed: int
    output: str

    @property
    def title(self) -> str:
        """Name of the row and seed."""
        return f'{self.row}, seed {self.seed}'

    @property
    def start(self) -> Optional['Job']:
        """The pre-training whose weights it starts from, with a new classifier."""
        name = self.study.rows[self.row].start
        return Job(self.study.pretraining, name, self.seed, self.output) if name else None

    @property
    def data(self) -> str:
        """Folder of the data set."""
        return os.path.join(self.output, self.study.data)

    @property
    def settings(self) -> str:
        """A name for what the results depend on, but for the code."""
        return digest([self._training(), self.study.rows[self.row].aux, self.study.rows[self.row].blends,
                       repr(self.study.measures)])[:12]

    def run(self) -> List[Result]:
        """Train and measure, whichever of it is not done yet.

        Returns:
            A result for the row, and one for each of its blends: `row`, `seed`, `settings`, `holdout` (accuracy on
            held-out images after the last epoch), what is measured, `epochs`, `seconds` of the training, and what made
            it: `commit`, `timm`, `torch`, `machine`.

        Raises:
            InputError: The training failed.
        """
        training = self._finished_training()
        measured = self.study.measures(
            training['checkpoint'], self.data, self.study.rows[self.row], open_placement(DeviceSettings()))
        of_training = {name: training[name] for name in ('holdout', 'epochs', 'seconds', 'commit', 'timm', 'torch',
                                                         'machine')}
        return [dict(row=f'{self.row}{blend}', seed=self.seed, settings=self.settings, **values, **of_training)
                for blend, values in measured.items()]

    def checkpoint(self) -> str:
        """The checkpoint of the training, which is done where it is not there.

        Raises:
            InputError: The training failed.
        """
        return self._finished_training()['checkpoint']

    def _finished_training(self) -> Dict[str, Any]:
        training = read_kept(f'{self._folder}.json')
        if training.get('training') != self._training() or not os.path.isfile(training['checkpoint']):
            training = self._train()
            keep(f'{self._folder}.json', training)
        return training

    def _training(self) -> str:
        # A name for what the training depends on.
        parts = [*map(asked_for, self.study.commands(self.row)), self.seed, self.study.data]
        return digest([*parts, self.start._training()] if self.start else parts)

    def _train(self) -> Dict[str, Any]:
        weights = ['--pretrained-path', self.start.checkpoint()] if self.start else []  # a new classifier
        start, commit, epochs = time.monotonic(), _commit(), 0
        for phase, flags in enumerate(self.study.commands(self.row)):
            folder = f'{self._folder}-{phase}'
            self._run_program([*flags, *weights], folder)
            checkpoint = os.path.join(folder, 'last.pth.tar')
            weights = ['--initial-checkpoint', checkpoint]
            last = _last_epoch(folder)
            epochs += int(last['epoch']) + 1
        return dict(
            training=self._training(), checkpoint=checkpoint, holdout=float(last['eval_top1']), epochs=epochs,
            seconds=round(time.monotonic() - start), commit=commit, timm=timm.__version__, torch=torch.__version__,
            machine=_machine())

    def _run_program(self, flags: Sequence[str], folder: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        command = [
            sys.executable, 'train.py', *flags, '--data-dir', self.data, '--seed', str(self.seed), '--output',
            os.path.dirname(folder), '--experiment', os.path.basename(folder)]
        log = f'{folder}.log'
        with open(log, 'w+', encoding='utf-8') as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
            file.seek(0)
            last = file.read().rstrip().rpartition('\n')[2]
        if status:
            reason = last.removeprefix('error: ').rstrip('.')
            raise InputError(f'{reason}. {" ".join(command)} failed with status {status}: see {log}.')

    @property
    def _folder(self) -> str:
        # of its files, without their endings; studies of the same trainings share them
        return os.path.join(self.output, f'{self._training()[:8]}-{self.row}-seed{self.seed}')


def study_jobs(study: Study, output: str = '') -> List[Job]:
    """All jobs of a study, in the order in which they begin.

    Args:
        study: The study.
        output: Folder of all runs, for jobs that are run.
    """
    return [Job(study, row, seed, output) for seed in study.seeds for row in study.rows]


@lru_cache(maxsize=None)
def asked_for(flags: Tuple[str, ...]) -> str:
    """What a recipe and flags of the training program say, where flags overrule; defaults of the program are code.

    Args:
        flags: The flags, with `--config` and the recipe's path.
    """
    with open(flags[flags.index('--config') + 1], encoding='utf-8') as file:
        names = {*yaml.safe_load(file), *(flag[2:] for flag in flags if flag.startswith('--') and flag != '--config')}
    given = parse_args(list(flags)).given
    return repr({name: given[name.replace('-', '_')] for name in sorted(names)})


def _last_epoch(folder: str) -> Dict[str, str]:
    # its row in the summary, which has none of epochs that were not validated
    with open(os.path.join(folder, 'summary.csv'), newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))[-1]


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            return next(line.partition(': ')[2].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration):
        return 'CPU'


def _commit() -> str:
    # The repository's commit, with a + where files differ from it.
    def git(*command: str) -> str:
        return subprocess.run(['git', *command], capture_output=True, text=True, check=False).stdout.strip()
    changed = git('status', '--porcelain', '--untracked-files=no', '--', '.', ':!results')  # which the study writes
    return git('rev-parse', '--short', 'HEAD') + '+' * bool(changed)
