"""Checkpoints that survive a kill at any moment, and resuming from them."""
import logging
import os
import shutil
from typing import Optional

import torch
from timm.task import TrainingTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver

from ..checkpoints import explain_misfit, read_checkpoint
from ..errors import InputError

__all__ = ['AtomicCheckpointSaver', 'resume', 'resume_ema']

_logger = logging.getLogger(__name__)


class AtomicCheckpointSaver(CheckpointSaver):
    """timm's saver, without the moment in which `last` or `model_best` is unlinked and not yet replaced.

    Takes the arguments of `timm.utils.CheckpointSaver` and writes the same files.
    """

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)

    def _duplicate(self, src: str, dst: str) -> None:
        copy = f'{dst}.tmp'
        if os.path.exists(copy):
            os.remove(copy)
        try:
            os.link(src, copy)
        except (OSError, NotImplementedError):  # no hard links on this file system
            shutil.copy2(src, copy)
        os.replace(copy, dst)

    def restore_history(self, checkpoint_path: str) -> None:
        """Take up the ranking of a run that continues in the same folder.

        Args:
            checkpoint_path: The checkpoint the run continues from.
        """
        same_folder = os.path.dirname(os.path.abspath(checkpoint_path)) == os.path.abspath(self.checkpoint_dir)
        if not same_folder:
            return
        if hasattr(self, 'load_state_dict_from_checkpoint'):  # timm ≥ 1.0.31
            self.load_state_dict_from_checkpoint(checkpoint_path)
            return
        best = os.path.join(self.checkpoint_dir, f'model_best{self.extension}')
        if os.path.isfile(best):
            with torch.serialization.safe_globals(_namespace()):
                checkpoint = torch.load(best, map_location='cpu', weights_only=True)
            self.best_metric, self.best_epoch = checkpoint.get('metric'), checkpoint.get('epoch')


def resume(task: TrainingTask, path: str, optimizer=None, loss_scaler=None, verbose: bool = True) -> Optional[int]:
    """Load a training checkpoint into a task and, where given, its optimizer and loss scaler.

    Args:
        task: The task to continue.
        path: A checkpoint of a training run.
        optimizer: Optimizer to restore.
        loss_scaler: Loss scaler to restore.
        verbose: Log what is loaded.

    Returns:
        The epoch to continue with, None where the checkpoint does not say.

    Raises:
        InputError: There is no such file, it is not a checkpoint, or it does not fit the model or the optimizer.
    """
    read_checkpoint(path)
    try:
        return resume_task_checkpoint(task, path, optimizer, loss_scaler, log_info=verbose)
    except (KeyError, RuntimeError, ValueError) as error:
        message = explain_misfit(error) if isinstance(error, RuntimeError) else ' '.join(str(error).split())[:400]
        raise InputError(f'{path} does not fit this model and optimizer: {message}') from error


def resume_ema(task: TrainingTask, path: str) -> None:
    """Load a checkpoint's averaged weights, or its plain ones where it has none, into a task's average."""
    load_task_ema_checkpoint(task, path)


def _namespace():
    from argparse import Namespace
    return [Namespace]
