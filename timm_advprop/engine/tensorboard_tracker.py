"""TensorBoard: event files in the folder of a run, `tensorboard --logdir output`."""
import os
from typing import Mapping

import numpy as np
from PIL import Image

from .trackers import TrackedRun, Tracker

__all__ = ['TensorBoardTracker']


class TensorBoardTracker(Tracker):
    """Writes event files to `tensorboard/` in the folder of the run."""

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter
        # epochs from the first on are those of a former run in this folder, all of them where the run begins anew
        self.writer = SummaryWriter(os.path.join(run.folder, 'tensorboard'), purge_step=run.first_epoch)

    def log_row(self, epoch: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name.replace('_', '/', 1), value, epoch)  # train/…, eval/…, aux/… are groups
        self.writer.flush()

    def log_picture(self, epoch: int, path: str) -> None:
        with Image.open(path) as picture:
            self.writer.add_image('attacked', np.asarray(picture.convert('RGB')), epoch, dataformats='HWC')

    def close(self) -> None:
        self.writer.close()
