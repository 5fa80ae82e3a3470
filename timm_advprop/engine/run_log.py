"""What a training run leaves beside its checkpoints: args.yaml and summary.csv, in timm's format."""
import csv
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Type

import yaml

from ..errors import InputError
from ..output import replacing
from ..regimes import MadeImages
from ..weights.downloads import redact
from .curves import Curves
from .pictures import CHANNELS_OF_PICTURES, save_made_images
from .trackers import Tracker

__all__ = ['RunLog']


class RunLog:
    """Writes a run's arguments and one row of metrics for each epoch.

    Args:
        folder: Output folder of the run, which exists.
        arguments: The run's arguments, of types that YAML knows.
        first_epoch: Epoch the run starts with. Rows of a former run at or after it are dropped.
        trackers: Get the same rows. Where there are none, `curves.png` is drawn.

    Raises:
        InputError: There is a `summary.csv` that is not that of a run.
    """

    def __init__(
            self,
            folder: str,
            arguments: Mapping[str, Any],
            first_epoch: int = 0,
            trackers: Sequence[Tracker] = (),
    ):
        self.folder, self.summary_path = folder, os.path.join(folder, 'summary.csv')
        self._rows = self._read(first_epoch)
        self.trackers = list(trackers)
        self.curves = None if self.trackers else Curves(os.path.join(folder, 'curves.png'))
        with replacing(os.path.join(folder, 'args.yaml')) as path, open(path, 'w', encoding='utf-8') as file:
            file.write(redact(yaml.safe_dump(dict(arguments), default_flow_style=False)))

    def add_epoch(
            self,
            epoch: int,
            train_metrics: Dict[str, float],
            eval_metrics: Optional[Dict[str, float]] = None,
            lr: Optional[float] = None,
            further: Optional[Mapping[str, float]] = None,
            made: Optional[MadeImages] = None,
    ) -> None:
        """Add the row of an epoch.

        Args:
            epoch: Epoch, from 0.
            train_metrics: Metrics of training, written as `train_<name>`.
            eval_metrics: Metrics of validation, written as `eval_<name>`.
            lr: Learning rate.
            further: What else is known, written by its name.
            made: What was made of images, of which trackers get a picture.
        """
        row: Dict[str, Any] = {'epoch': epoch}
        row.update({f'train_{name}': value for name, value in train_metrics.items()})
        row.update({f'eval_{name}': value for name, value in (eval_metrics or {}).items()})
        row['lr'] = lr
        row.update(further or {})
        self._rows.append(row)
        self._write()
        picture = self._draw(made) if self.trackers and made is not None else None
        for tracker in self.trackers:
            tracker.log_row(epoch, _for_trackers(row))
            if picture is not None:
                tracker.log_picture(epoch, picture)
        if self.curves is not None:
            self.curves.update(self._rows)

    def _draw(self, made: MadeImages) -> Optional[str]:
        # The file of a picture, None where the images have channels that no picture has.
        if made.images.shape[1] not in CHANNELS_OF_PICTURES:
            return None
        path = os.path.join(self.folder, 'train-attack.jpg')
        save_made_images(path, made)
        return path

    def __enter__(self) -> 'RunLog':
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], *error: Any) -> None:
        self.close(finished=kind is None)  # what went wrong is told without delay

    def close(self, finished: bool = True) -> None:
        """Draw the curves for the last time where the run is finished, close the trackers."""
        if self.curves is not None and finished:
            self.curves.update(self._rows, last=True)
        for tracker in self.trackers:
            tracker.close()

    def _read(self, first_epoch: int) -> List[Dict[str, Any]]:
        # Rows of a former run before an epoch.
        if not os.path.isfile(self.summary_path):
            return []
        try:
            with open(self.summary_path, newline='', encoding='utf-8') as file:
                return [row for row in csv.DictReader(file, restval='') if int(row['epoch']) < first_epoch]
        except (KeyError, ValueError, csv.Error) as error:
            raise InputError(f'{self.summary_path} is not that of a run, or damaged: move it away, or give another '
                             '--experiment.') from error

    def _write(self) -> None:
        # the whole file, so that columns agree and a kill leaves the old or the new one
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with replacing(self.summary_path) as path, open(path, 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, fieldnames=columns)
            writer.writeheader()
            writer.writerows(self._rows)


def _for_trackers(row: Mapping[str, Any]) -> Dict[str, float]:
    # What was measured, and how often the attack succeeded: adversarial training images that were answered wrongly,
    # whether or not the clean ones were, which would take a forward pass more.
    numbers = {name: value for name, value in row.items() if name != 'epoch' and value is not None}
    if 'train_adv_top1' in numbers:
        numbers['train_attack_success'] = 100 - numbers['train_adv_top1']
    return numbers
