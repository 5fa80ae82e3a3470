"""What a training run leaves beside its checkpoints: args.yaml and summary.csv, in timm's format."""
import csv
import os
from typing import Any, Dict, Mapping, Optional

import yaml

from ..output import replacing
from ..weights.downloads import redact

__all__ = ['RunLog']


class RunLog:
    """Writes a run's arguments and one row of metrics for each epoch.

    Args:
        folder: Output folder of the run, which exists.
        arguments: The run's arguments, of types that YAML knows.
        first_epoch: Epoch the run starts with. Rows of a former run at or after it are dropped.
        wandb_run: A Weights & Biases run that gets the same rows.
    """

    def __init__(
            self,
            folder: str,
            arguments: Mapping[str, Any],
            first_epoch: int = 0,
            wandb_run: Optional[Any] = None,
    ):
        self.summary_path = os.path.join(folder, 'summary.csv')
        self.wandb_run = wandb_run
        with replacing(os.path.join(folder, 'args.yaml')) as path, open(path, 'w', encoding='utf-8') as file:
            file.write(redact(yaml.safe_dump(dict(arguments), default_flow_style=False)))
        self._rows = [row for row in self._read() if int(row['epoch']) < first_epoch]

    def add_epoch(
            self,
            epoch: int,
            train_metrics: Dict[str, float],
            eval_metrics: Optional[Dict[str, float]] = None,
            lr: Optional[float] = None,
    ) -> None:
        """Add the row of an epoch.

        Args:
            epoch: Epoch, from 0.
            train_metrics: Metrics of training, written as `train_<name>`.
            eval_metrics: Metrics of validation, written as `eval_<name>`.
            lr: Learning rate.
        """
        row: Dict[str, Any] = {'epoch': epoch}
        row.update({f'train_{name}': value for name, value in train_metrics.items()})
        row.update({f'eval_{name}': value for name, value in (eval_metrics or {}).items()})
        row['lr'] = lr
        self._rows.append(row)
        self._write()
        if self.wandb_run is not None:
            self.wandb_run.log(row)

    def _read(self):
        if not os.path.isfile(self.summary_path):
            return []
        with open(self.summary_path, newline='', encoding='utf-8') as file:
            return list(csv.DictReader(file))

    def _write(self) -> None:
        # the whole file, so that columns agree and a kill leaves the old or the new one
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with replacing(self.summary_path) as path, open(path, 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, fieldnames=columns)
            writer.writeheader()
            writer.writerows(self._rows)
