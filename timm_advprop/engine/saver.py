"""Checkpoints that survive a kill at any moment, and resuming from them."""
import logging
import os
import shutil
from typing import Any, Optional

import torch
from timm.models import clean_state_dict
from timm.task import TrainingTask
from timm.utils import CheckpointSaver

from ..errors import InputError, one_line
from ..output import replacing
from ..weights import Checkpoint, explain_misfit, open_checkpoint

__all__ = ['AtomicCheckpointSaver', 'resume', 'resume_ema']

_logger = logging.getLogger(__name__)


class AtomicCheckpointSaver(CheckpointSaver):
    """timm's saver, without the moment in which `last` or `model_best` is unlinked and not yet replaced.

    Takes the arguments of `timm.utils.CheckpointSaver` and writes the same files.
    """

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)

    def _duplicate(self, src: str, dst: str) -> None:
        with replacing(dst) as copy:
            try:
                os.link(src, copy)
            except (OSError, NotImplementedError):  # no hard links on this file system
                shutil.copy2(src, copy)

    def restore_history(self, checkpoint: Checkpoint) -> None:
        """Take up the ranking of a run that continues in the same folder."""
        if os.path.dirname(os.path.abspath(checkpoint.path)) != os.path.abspath(self.checkpoint_dir):
            return
        if 'saver' in checkpoint.raw and hasattr(self, 'load_state_dict'):  # timm ≥ 1.0.31
            self.load_state_dict(checkpoint.raw['saver'])
            return
        best = os.path.join(self.checkpoint_dir, f'model_best{self.extension}')
        if os.path.isfile(best):
            run = open_checkpoint(best).raw
            self.best_metric, self.best_epoch = run.get('metric'), run.get('epoch')


def resume(
        task: TrainingTask,
        checkpoint: Checkpoint,
        optimizer: Optional[torch.optim.Optimizer] = None,
        loss_scaler: Optional[Any] = None,
) -> Optional[int]:
    """Load a training checkpoint into a task and, where given, its optimizer and loss scaler.

    Returns:
        The epoch to continue with, None where the checkpoint does not say.

    Raises:
        InputError: It does not fit the model or the optimizer.
    """
    raw = checkpoint.raw
    try:
        _load(task, checkpoint, ('state_dict', 'model'))
        if optimizer is not None and 'optimizer' in raw:
            optimizer.load_state_dict(raw['optimizer'])
        if loss_scaler is not None and loss_scaler.state_dict_key in raw:
            loss_scaler.load_state_dict(raw[loss_scaler.state_dict_key])
    except (KeyError, RuntimeError, ValueError) as error:
        message = explain_misfit(error) if isinstance(error, RuntimeError) else one_line(error, limit=400)
        raise InputError(f'{checkpoint.path} does not fit this model and optimizer: {message}') from error
    if 'epoch' not in raw:
        return None
    return raw['epoch'] + 1 if raw.get('version', 1) > 1 else raw['epoch']  # the first version counted ahead


def resume_ema(task: TrainingTask, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's averaged weights, or its plain ones where it has none, into a task's average."""
    _load(task, checkpoint, ('state_dict_ema', 'model_ema', 'state_dict', 'model'), ema=True)


def _load(task: TrainingTask, checkpoint: Checkpoint, keys: Any, ema: bool = False) -> None:
    key = next((key for key in keys if checkpoint.raw.get(key) is not None), None)
    state_dict = clean_state_dict(checkpoint.raw[key]) if key else checkpoint.state_dict
    task_state = checkpoint.raw.get(key.replace('state_dict', 'task_state')) if key and 'state_dict' in key else None
    task.load_checkpoint_state(state_dict, task_state, ema=ema)
    _logger.info(f'Loaded {key or "weights"} of {checkpoint.path}{" into the average" if ema else ""}.')
