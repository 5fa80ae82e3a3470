"""One training of the study and what is measured of it, kept in a file, so that a study can be stopped and go on."""
import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from timm_advprop.engine.placement import open_placement
from timm_advprop.engine.run_settings import DeviceSettings
from timm_advprop.errors import InputError

from .accuracy import STEPS, STRENGTHS, measure_accuracy, measure_blend
from .kept import digest, keep, read_kept
from .rows import RECIPE, Row

__all__ = ['Job']


@dataclass(frozen=True)
class Job:
    """A training of the study with its measurements.

    Args:
        name: Name of the row.
        row: How to train.
        seed: Seed of the training.
        output: Folder of all runs.
        data: Folder of the data set.
        num_attacked: Number of test images to attack; 0 leaves the test set alone.
    """
    name: str
    row: Row
    seed: int
    output: str
    data: str
    num_attacked: int

    @property
    def title(self) -> str:
        """Name of the row and seed."""
        return f'{self.name}, seed {self.seed}'

    def training_digest(self) -> str:
        """A name for what the training depends on."""
        with open(RECIPE, encoding='utf-8') as file:
            return digest([file.read(), self.row.phases, self.seed])

    def saved_result(self) -> Optional[Dict[str, Any]]:
        """The result of a former run with these settings, None where there is none."""
        result = read_kept(self._path)
        return result if result.get('measurement') == self._measurement() else None

    def run(self) -> Dict[str, Any]:
        """Train and measure, whichever of it is not done yet.

        Returns:
            `name`, `seed`, `history` (rows of `summary.csv`), `checkpoint`, `holdout_top1` of the last epoch, and where
            test images are measured the accuracies of `measure_accuracy`, and under `blends` those of `measure_blend`
            for each weight.

        Raises:
            InputError: The training failed.
        """
        result = read_kept(self._path)
        if result.get('training') != self.training_digest() or not os.path.isfile(result['checkpoint']):
            result = self._train()
            keep(self._path, result)
        if self.num_attacked:
            placement = open_placement(DeviceSettings())
            result.update(
                measure_accuracy(result['checkpoint'], self.data, self.row.aux, self.num_attacked, placement))
            result['blends'] = {str(weight): measure_blend(
                result['checkpoint'], self.data, weight, self.num_attacked, placement) for weight in self.row.blends}
        keep(self._path, dict(result, measurement=self._measurement()))
        return result

    def _train(self) -> Dict[str, Any]:
        folders = [self._file(f'-{phase}') for phase in range(len(self.row.phases))]
        checkpoint = None
        for flags, folder in zip(self.row.phases, folders):
            self._run_program(flags, folder, checkpoint)
            checkpoint = os.path.join(folder, 'last.pth.tar')
        history = [row for folder in folders for row in _read_summary(folder)]
        return dict(
            name=self.name, seed=self.seed, training=self.training_digest(), history=history, checkpoint=checkpoint,
            holdout_top1=history[-1]['eval_top1'])

    def _run_program(self, flags: List[str], folder: str, initial_checkpoint: Optional[str]) -> None:
        command = [
            sys.executable, 'train.py', '--config', RECIPE, '--data-dir', self.data, '--seed', str(self.seed),
            '--output', self.output, '--experiment', os.path.basename(folder), *flags,
        ]
        if initial_checkpoint:
            command += ['--initial-checkpoint', initial_checkpoint]
        log = f'{folder}.log'
        with open(log, 'w', encoding='utf-8') as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if status:
            raise InputError(f'{" ".join(command)} failed with status {status}: see {log}.')

    @property
    def _path(self) -> str:
        return self._file('.json')

    def _file(self, ending: str) -> str:
        return os.path.join(self.output, f'{self.name}-seed{self.seed}{ending}')

    def _measurement(self) -> str:
        return digest([self.training_digest(), self.row.aux, self.row.blends, self.num_attacked, STRENGTHS, STEPS])


def _read_summary(folder: str) -> List[Dict[str, float]]:
    with open(os.path.join(folder, 'summary.csv'), newline='', encoding='utf-8') as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
