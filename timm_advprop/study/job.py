"""One training of the study and what is measured of it, kept in a file, so that a study can be stopped and go on."""
import csv
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional

import torch

from ..errors import InputError
from ..inputs import available_device
from .measure import STEPS, STRENGTHS, measure_accuracy
from .rows import RECIPE, Row

__all__ = ['Job']


@dataclass
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

    def saved_result(self) -> Optional[Dict[str, Any]]:
        """The result of a former run with these settings, None where there is none."""
        try:
            with open(self._result_path, encoding='utf-8') as file:
                result = json.load(file)
        except (OSError, ValueError):
            return None
        return result if result.get('settings') == self._settings() else None

    def run(self) -> Dict[str, Any]:
        """Train and measure.

        Returns:
            `name`, `seed`, `history` (rows of `summary.csv`), `checkpoint`, `holdout_top1` of the last epoch, and where
            test images are measured the accuracies of `measure_accuracy`.

        Raises:
            InputError: The training failed.
        """
        folders = [os.path.join(self.output, f'{self.name}-seed{self.seed}-{i}') for i in range(len(self.row.phases))]
        checkpoint = None
        for flags, folder in zip(self.row.phases, folders):
            self._train(flags, folder, checkpoint)
            checkpoint = os.path.join(folder, 'last.pth.tar')
        history = [row for folder in folders for row in _read_summary(folder)]
        result = dict(
            name=self.name, seed=self.seed, settings=self._settings(), history=history, checkpoint=checkpoint,
            holdout_top1=history[-1]['eval_top1'])
        if self.num_attacked:
            device = torch.device(available_device('cuda'))
            result.update(measure_accuracy(checkpoint, self.data, self.row.aux, self.num_attacked, device))
        with open(f'{self._result_path}.tmp', 'w', encoding='utf-8') as file:
            json.dump(result, file)
        os.replace(f'{self._result_path}.tmp', self._result_path)
        return result

    def _train(self, flags: List[str], folder: str, initial_checkpoint: Optional[str]) -> None:
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
    def _result_path(self) -> str:
        return os.path.join(self.output, f'{self.name}-seed{self.seed}.json')

    def _settings(self) -> str:
        with open(RECIPE, encoding='utf-8') as file:
            settings = [file.read(), asdict(self.row), self.seed, self.num_attacked, STRENGTHS, STEPS]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _read_summary(folder: str) -> List[Dict[str, float]]:
    with open(os.path.join(folder, 'summary.csv'), newline='', encoding='utf-8') as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
