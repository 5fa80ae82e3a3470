"""Checkpoints that survive a kill at any moment, and resuming from them."""
import glob
import logging
import math
import os
import re
import shutil
import time
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

import torch
from timm.models import clean_state_dict
from timm.scheduler import PlateauLRScheduler
from timm.task import TrainingTask
from timm.utils import unwrap_model

from ..errors import InputError, one_line
from ..norms import num_aux_in, num_aux_norms, share_of
from ..output import counted, replacing
from ..weights import Checkpoint, explain_misfit, open_checkpoint
from .background import Background, copy_to_host

__all__ = ['CheckpointKeeper', 'Position', 'has_checkpoints', 'newest_checkpoint', 'resume', 'resume_ema',
           'resume_plateau', 'resume_share', 'share_of_process']

_logger = logging.getLogger(__name__)

_EXTENSION = '.pth.tar'
_STRAYS = ('*.tmp', f'tmp{_EXTENSION}', f'recovery_tmp{_EXTENSION}')  # the last two are timm's
_RANKED = re.compile(rf'checkpoint-\d+{re.escape(_EXTENSION)}')
_RECOVERIES_KEPT = 2

_BUFFERS = ('buffers', 'averaged_buffers')

Share = Dict[str, Any]


@dataclass(frozen=True)
class Position:
    """Where a run goes on.

    Args:
        epoch: Epoch, from 0.
        update: Updates of it that were made.
    """
    epoch: int = 0
    update: int = 0


@dataclass
class CheckpointKeeper:
    """Keeps the checkpoints of a run, the files that `timm.utils.CheckpointSaver` keeps.

    `last` is the one file that is replaced at the end of an epoch, and it holds the ranking of all epochs, its own
    included: which `checkpoint-<epoch>` there are and which is `model_best` follows from it. A run that was killed
    before the others were made gets them when it is resumed. One that goes on from an earlier epoch leaves the later
    ones to be replaced.

    Inside of `in_background` the run goes on while files are written, from a copy of the state in host memory, as large
    as a checkpoint. A file that could not be written is told at the next one, or at the end of the block.

    Args:
        folder: Output folder of the run, which exists.
        task: What is trained.
        optimizer: Its optimizer.
        args: Arguments of the run, with `model`.
        loss_scaler: timm loss scaler, for fp16.
        lr_scheduler: timm scheduler.
        decreasing: A lower metric is better.
        max_history: Number of `checkpoint-<epoch>` to keep.
        label_names: Names of the classes, in the order of labels, None where they are not known.
    """
    folder: str
    task: TrainingTask
    optimizer: torch.optim.Optimizer
    args: Namespace
    loss_scaler: Optional[Any] = None
    lr_scheduler: Optional[Any] = None
    decreasing: bool = False
    max_history: int = 10
    label_names: Optional[List[str]] = None
    ranking: List[Tuple[int, float]] = field(default_factory=list)  # epoch and metric, the best first
    _left: Set[int] = field(default_factory=set, repr=False)  # epochs whose files go when the next `last` is there
    _best_made: Optional[int] = field(default=None, repr=False)  # epoch of `model_best`, None where it is not known
    _background: Background = field(default_factory=Background, repr=False)
    _waited: float = 0.

    @property
    def best(self) -> Tuple[Optional[float], Optional[int]]:
        """The best metric and its epoch, None before the first checkpoint."""
        return self.ranking[0][::-1] if self.ranking else (None, None)  # pyright: ignore[reportReturnType]

    def save_checkpoint(self, epoch: int, metric: Optional[float]) -> Tuple[Optional[float], Optional[int]]:
        """Save the state after an epoch.

        Args:
            epoch: The epoch.
            metric: Ranks it; of equal ones the earlier epoch is better. None where it was not measured: the state is
                saved as the last one alone.

        Returns:
            The best metric and its epoch, None before there is one.
        """
        with self._timed():
            self._background.wait()  # it goes by the ranking
            # the epoch may be trained once more: --start-epoch
            others = [entry for entry in self.ranking if entry[0] != epoch]
            measured: List[Tuple[int, float]] = [] if metric is None else [(epoch, metric)]
            ranking = sorted([*others, *measured], key=self._rank)
            kept = ranking[:self.max_history]
            known = self._left.union(old for old, _ in (*self.ranking, *ranking))
            dropped = sorted(known - {old for old, _ in kept})
            self.ranking, self._left = kept, set()
            content = self._content(epoch=epoch, metric=metric, dropped=dropped)
            self._background.do(partial(self._write_epoch, content, epoch, dropped))
        return self.best

    def save_recovery(self, epoch: int, update: int, shares: Sequence[Share]) -> str:
        """Save the state within an epoch.

        Args:
            epoch: The epoch.
            update: Updates of it that were made.
            shares: What each process has of its own.

        Returns:
            The file.
        """
        path = self._path(f'recovery-{epoch}-{update - 1}')  # timm counts from 0
        with self._timed():
            self._background.wait()  # else there would be two copies
            content = self._content(epoch=epoch, position=dict(epoch=epoch, update=update), shares=list(shares))
            self._background.do(partial(self._write_recovery, path, content))
        return path

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Inside of a `with` block, let the run go on while files are written; after it all of them are."""
        try:
            with self._background:
                yield
                self.wait()
        finally:
            if self._background.seconds:
                waited = self._waited + self._background.seconds_of_forks
                _logger.info(f'Writing checkpoints took {self._background.seconds:.1f} s, training waited for them '
                             f'for {waited:.1f} s.')

    def clean(self) -> None:
        """Remove what a killed run left half-written in the folder."""
        for pattern in _STRAYS:
            for path in glob.glob(os.path.join(glob.escape(self.folder), pattern)):
                os.remove(path)

    def take_up(self, checkpoint: Checkpoint, start_epoch: int) -> None:
        """Take up the ranking of a run that continues in the same folder, and make the files that are missing.

        Epochs from the first on that is trained now are of a branch that is left. They are ranked no more; their files
        go when the next `last` is there, so that a kill before it leaves the old branch whole.

        Args:
            checkpoint: What the run goes on from.
            start_epoch: The epoch that it goes on with.
        """
        if os.path.dirname(os.path.abspath(checkpoint.path)) != os.path.abspath(self.folder):
            return
        metric, now = (getattr(args, 'eval_metric', 'top1') for args in (Namespace(**checkpoint.args), self.args))
        if metric != now:
            _logger.warning(f'{checkpoint.path} ranks epochs by {metric}: the best by {now} is sought from here on.')
        elif checkpoint.raw.get('saver') is not None:
            self._take_up_ranking(checkpoint)
        else:  # of a timm before 1.0.31
            best = self._path('model_best')
            run = open_checkpoint(best).raw if os.path.isfile(best) else {}
            self.ranking = [(run['epoch'], run['metric'])] if 'metric' in run else []
        self._leave(start_epoch)

    def _take_up_ranking(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.raw['saver']
        epochs: List[Any] = [
            (_epoch_of(name), metric) for name, metric in saved['checkpoint_files'] if metric is not None]
        epoch, metric = saved.get('pending') or (None, None)
        if 'dropped' not in saved and metric is not None:  # timm's own saver ranks after it has saved
            epochs.append((epoch, metric))
        self.ranking = sorted(epochs, key=self._rank)[:self.max_history]
        last = self._path('last')
        if os.path.isfile(last) and os.path.samefile(checkpoint.path, last):
            self._settle(checkpoint.epoch, saved.get('dropped', ()))  # pyright: ignore[reportArgumentType]

    def _leave(self, start_epoch: int) -> None:
        files = {_epoch_of(name) for name in os.listdir(self.folder) if _RANKED.fullmatch(name)}
        self._left = {epoch for epoch in files.union(epoch for epoch, _ in self.ranking) if epoch >= start_epoch}
        if self._left:  # their branch may have removed files that were ranked before it
            self.ranking = [entry for entry in self.ranking if entry[0] in files - self._left]
            _logger.info(f'Epochs from {start_epoch} on are trained anew: the checkpoints of the old ones go when the '
                         'first new one is there.')

    def _rank(self, entry: Tuple[int, float]) -> float:
        metric = entry[1] if self.decreasing else -entry[1]
        return math.inf if math.isnan(metric) else metric

    def wait(self) -> None:
        """Wait until all files are written."""
        with self._timed():
            self._background.wait()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - start

    def _write_epoch(self, content: Mapping[str, Any], epoch: int, dropped: Sequence[int]) -> None:
        _write(self._path('last'), content)
        self._settle(epoch, dropped)

    def _write_recovery(self, path: str, content: Mapping[str, Any]) -> None:
        _write(path, content)
        for old in _newest_first(self.folder, 'recovery-*')[_RECOVERIES_KEPT:]:
            os.remove(old)

    def _content(
            self,
            epoch: int,
            metric: Optional[float] = None,
            dropped: Any = (),
            **others: Any,
    ) -> Dict[str, Any]:
        best_metric, best_epoch = self.best
        content: Dict[str, Any] = dict(
            epoch=epoch, arch=self.args.model, args=self.args, version=2, optimizer=self.optimizer.state_dict(),
            saver=dict(
                checkpoint_files=[(f'checkpoint-{epoch}{_EXTENSION}', metric) for epoch, metric in self.ranking],
                best_epoch=best_epoch, best_metric=best_metric, pending=(epoch, metric), dropped=list(dropped)),
            **self.task.get_checkpoint_state(), **self.task.get_checkpoint_state(ema=True), **others)
        if metric is not None:
            content['metric'] = metric
        if self.label_names is not None:
            content['label_names'] = self.label_names
        if self.loss_scaler is not None:
            content[self.loss_scaler.state_dict_key] = self.loss_scaler.state_dict()
        if isinstance(self.lr_scheduler, PlateauLRScheduler):  # all others follow from the number of the epoch
            content['plateau'] = dict(
                restore_lr=self.lr_scheduler.restore_lr, scheduler=self.lr_scheduler.lr_scheduler.state_dict(),
                lr=[group['lr'] for group in self.optimizer.param_groups])
        return copy_to_host(content) if self._background.is_open else content

    def _settle(self, epoch: int, dropped: Any) -> None:
        # The other files, as the ranking in `last`, which is of this epoch, wants them.
        if epoch in (kept for kept, _ in self.ranking):
            _duplicate(self._path('last'), self._path(f'checkpoint-{epoch}'))
        self._make_best(epoch)
        unwanted = [f'checkpoint-{old}' for old in dropped]
        if dropped and not self.ranking:
            unwanted.append('model_best')
        for path in map(self._path, unwanted):
            if os.path.isfile(path):
                os.remove(path)

    def _make_best(self, epoch: int) -> None:
        best = self.best[1]
        source = self._path(f'checkpoint-{best}')
        if os.path.isfile(source) and (best == epoch or best != self._best_made):
            _duplicate(source, self._path('model_best'))
            self._best_made = best

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, f'{name}{_EXTENSION}')


def has_checkpoints(folder: str) -> bool:
    """Whether a run's folder has any checkpoint."""
    return bool(_newest_first(folder, '*'))


def newest_checkpoint(folder: str) -> Optional[Checkpoint]:
    """The newest checkpoint of a run's folder that can be read, None where there is none.

    Raises:
        InputError: There are some, but none can be read.
    """
    paths = _newest_first(folder, '*')
    for path in paths:
        try:
            checkpoint = open_checkpoint(path, use_ema=False)
        except InputError as error:
            _logger.warning(f'{error} Taking the one before.')
            continue
        if checkpoint.epoch is not None:
            return checkpoint
    if paths:
        raise InputError(f'No checkpoint in {folder} can be read: --resume auto has nothing to go on from.')
    return None


def resume(
        task: TrainingTask,
        checkpoint: Checkpoint,
        optimizer: Optional[torch.optim.Optimizer] = None,
        loss_scaler: Optional[Any] = None,
) -> Optional[Position]:
    """Load a training checkpoint into a task and, where given, its optimizer and loss scaler.

    Returns:
        Where the run goes on, None where the checkpoint does not say.

    Raises:
        InputError: It does not fit the model or the optimizer.
    """
    raw = checkpoint.raw
    _check_number_of_norms(task, checkpoint, exact=optimizer is not None and 'optimizer' in raw)
    try:
        _load(task, checkpoint, ('state_dict', 'model'))
        _check_norms(task, checkpoint)
        if optimizer is not None and 'optimizer' in raw:
            _load_optimizer(optimizer, raw['optimizer'])
        if loss_scaler is not None and loss_scaler.state_dict_key in raw:
            loss_scaler.load_state_dict(raw[loss_scaler.state_dict_key])
    except (KeyError, RuntimeError, ValueError) as error:
        message = explain_misfit(error) if isinstance(error, RuntimeError) else one_line(error, limit=400)
        raise InputError(f'{checkpoint.path} does not fit this model and optimizer: {message}') from error
    if 'position' in raw:
        return Position(**raw['position'])
    if 'epoch' not in raw:
        return None
    return Position(raw['epoch'] + 1 if raw.get('version', 1) > 1 else raw['epoch'])  # the first version counted ahead


def resume_ema(task: TrainingTask, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's averaged weights, or its plain ones where it has none, into a task's average."""
    _load(task, checkpoint, ('state_dict_ema', 'model_ema', 'state_dict', 'model'), ema=True)


def resume_share(task: TrainingTask, checkpoint: Checkpoint, rank: int) -> Mapping[str, Tuple[float, int]]:
    """Load what a process had of its own, see `share_of_process`.

    Args:
        task: The task, wrapped for DDP, which makes all processes equal when it is.
        checkpoint: The checkpoint.
        rank: Number of the process.

    Returns:
        The sums of metrics, empty where the checkpoint is of the end of an epoch.
    """
    shares = checkpoint.raw.get('shares')
    if not shares:
        return {}
    share = shares[min(rank, len(shares) - 1)]
    for ema in (False, True)[:1 + task.has_ema()]:
        unwrap_model(task.get_trainable_module(ema=ema)).load_state_dict(share.get(_BUFFERS[ema], {}), strict=False)
    return share['totals']


def share_of_process(task: TrainingTask, totals: Mapping[str, Tuple[float, int]], distributed: bool) -> Share:
    """What a process has of its own within an epoch: sums of metrics, running statistics and their averages.

    Weights and optimizer are equal on all processes. Running statistics are those of the process until the next forward
    pass through DDP, and an attack comes before it.
    """
    share: Share = dict(totals=dict(totals))
    for ema in (False, True)[:1 + task.has_ema()] if distributed else ():
        buffers = unwrap_model(task.get_trainable_module(ema=ema)).named_buffers()
        share[_BUFFERS[ema]] = {name: value.cpu() for name, value in buffers}
    return share


def resume_plateau(scheduler: PlateauLRScheduler, checkpoint: Checkpoint) -> None:
    """Let a schedule that follows the metric go on where it was; nothing where the checkpoint does not say."""
    saved = checkpoint.raw.get('plateau')
    if saved is None:
        return
    scheduler.restore_lr = saved['restore_lr']
    scheduler.lr_scheduler.load_state_dict(saved['scheduler'])
    for group, lr in zip(scheduler.optimizer.param_groups, saved['lr']):
        group['lr'] = lr


def _load(task: TrainingTask, checkpoint: Checkpoint, keys: Any, ema: bool = False) -> None:
    key = next((key for key in keys if checkpoint.raw.get(key) is not None), None)
    state_dict = clean_state_dict(checkpoint.raw[key]) if key else checkpoint.state_dict
    task_state = checkpoint.raw.get(key.replace('state_dict', 'task_state')) if key and 'state_dict' in key else None
    task.load_checkpoint_state(state_dict, task_state, ema=ema)
    _logger.info(f'Loaded {key or "weights"} of {checkpoint.path}{" into the average" if ema else ""}.')


def _check_number_of_norms(task: TrainingTask, checkpoint: Checkpoint, exact: bool) -> None:
    # The weights of fewer norms load; the state of an optimizer is of as many.
    saved, now = num_aux_in(checkpoint.state_dict), num_aux_norms(unwrap_model(task.get_trainable_module()))
    if saved > now or exact and saved != now:
        raise InputError(f'{checkpoint.path} has {counted(saved, "auxiliary norm")} for each norm, this run '
                         f'{now} (--model, --adv-eps, --adv-source): give the same number.')


def _check_norms(task: TrainingTask, checkpoint: Checkpoint) -> None:
    # Shared statistics load into norms that share none, for another training than that of the checkpoint.
    if checkpoint.share not in (None, 'none') and share_of(unwrap_model(task.get_trainable_module())) == 'none':
        raise ValueError(f'its norms share statistics: give --adv-share {checkpoint.share}, or begin another run with '
                         '--initial-checkpoint.')


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Dict[str, Any]) -> None:
    rates = [group['lr'] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, lr in zip(optimizer.param_groups, rates):  # a rate that is asked for now holds, schedules start from it
        group['lr'] = group['initial_lr'] = lr


def _write(path: str, content: Mapping[str, Any]) -> None:
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, at closing what could not be written
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _duplicate(source: str, target: str) -> None:
    with replacing(target) as copy:
        try:
            os.link(source, copy)
        except (OSError, NotImplementedError):  # no hard links on this file system
            shutil.copy2(source, copy)


def _newest_first(folder: str, names: str) -> List[str]:
    paths = glob.glob(os.path.join(glob.escape(folder), f'{names}{_EXTENSION}'))
    # where a run stopped before its best epochs, which may look newer in a copy of the folder, and may be links to it
    best = ('checkpoint-', 'model_best')
    return sorted(paths, key=lambda path: (not os.path.basename(path).startswith(best), os.stat(path).st_mtime_ns),
                  reverse=True)


def _epoch_of(name: str) -> int:
    return int(name[len('checkpoint-'):-len(_EXTENSION)])
