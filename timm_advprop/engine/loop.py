"""The training loop. It knows a `timm.task.TrainingTask` and nothing of what the task does with a batch."""
import math
import os
import time
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple

import torch
import torchvision.utils
from timm.task import TrainingTask
from timm.utils import AverageMeter, dispatch_clip_grad, reduce_tensor

from ..errors import RunError
from ..output import duration
from .optimization import mean_lr
from .pending_values import PendingValues
from .pictures import save_made_images
from .placement import Placement
from .progress import Progress, show_progress
from .saver import CheckpointKeeper, Position, share_of_process
from .seeding import seed_at, seed_generators
from .stopping import Stopped, StopSignals

__all__ = ['Trainer', 'NonFiniteLoss']


class NonFiniteLoss(RunError):
    """The loss became infinite or NaN; no update was made with it."""


@dataclass
class Trainer:
    """Trains a task, one epoch at a time.

    Args:
        task: What to train; its result holds `loss`, and may hold further losses (`*_loss`) and accuracies (`*_top1`),
            which are logged.
        loader: Yields images [N, C, H, W] and targets.
        optimizer: Optimizer of the task's trainable module.
        placement: Where to train, and in which precision.
        num_epochs: Epochs of the whole run, for the time left.
        lr_scheduler: timm scheduler, stepped after each update.
        loss_scaler: timm loss scaler, for fp16.
        mixup_fn: Mixes a batch on the device, where the loader does not.
        grad_accum_steps: Batches for each update.
        clip_grad: Limit of the gradient, None for no clipping.
        clip_mode: `'norm'`, `'value'` or `'agc'`.
        keeper: Writes recovery checkpoints.
        recovery_interval: Updates between recovery checkpoints, 0 for none.
        seed: Each batch seeds all generators by it and by its place in the run. None leaves them alone.
        signals: Ask the run to stop.
        totals: Sum and number of images of each metric, over the updates before the one that the run begins with.
        log_interval: Updates between progress lines.
        synchronize: Wait for the device after each update.
        image_folder: Where to save a batch as a picture at every progress line, and what the task made of it.
    """
    task: TrainingTask
    loader: Iterable
    optimizer: torch.optim.Optimizer
    placement: Placement
    num_epochs: int = 1
    lr_scheduler: Optional[Any] = None
    loss_scaler: Optional[Callable] = None
    mixup_fn: Optional[Callable] = None
    grad_accum_steps: int = 1
    clip_grad: Optional[float] = None
    clip_mode: str = 'norm'
    keeper: Optional[CheckpointKeeper] = None
    recovery_interval: int = 0
    seed: Optional[int] = None
    signals: Optional[StopSignals] = None
    totals: Mapping[str, Tuple[float, int]] = field(default_factory=dict)
    log_interval: int = 50
    synchronize: bool = False
    image_folder: Optional[str] = None

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates in an epoch."""
        return math.ceil(len(self.loader) / self.grad_accum_steps)  # pyright: ignore[reportArgumentType]

    def train_epoch(self, epoch: int, start: Optional[Position] = None) -> Dict[str, float]:
        """Train one epoch.

        Args:
            epoch: Epoch, from 0.
            start: What of it was trained before; the loader goes on behind it.

        Returns:
            The mean `loss` over all processes, and of each further loss and accuracy of the task.

        Raises:
            NonFiniteLoss: The loss is infinite or NaN.
            Stopped: A signal asked for it. What was done is in a recovery checkpoint.
        """
        start = start or Position(epoch)
        self.task.get_trainable_module().train()  # pyright: ignore[reportOptionalMemberAccess]
        self.optimizer.zero_grad()
        meters = _Meters(self.totals if start.update else {})
        began = _Began(time.monotonic(), start.update)
        with show_progress(f'Train: {epoch}', self.updates_per_epoch, start.update, self.placement.primary) as progress:
            self._train_batches(epoch, start, meters, began, progress)
        if hasattr(self.optimizer, 'sync_lookahead'):
            self.optimizer.sync_lookahead()  # pyright: ignore[reportAttributeAccessIssue]
        return OrderedDict((name, self._mean_over_processes(meter.avg)) for name, meter in meters.items())

    def _train_batches(
            self,
            epoch: int,
            start: Position,
            meters: '_Meters',
            began: '_Began',
            progress: Progress,
    ) -> None:
        if start.update >= self.updates_per_epoch:  # timm 1.0.27 has a prefetcher that cannot be empty
            return
        num_batches = len(self.loader)  # pyright: ignore[reportArgumentType]
        for batch_idx, (images, target) in enumerate(self.loader, start.update * self.grad_accum_steps):
            self._seed(epoch, batch_idx)
            images, target = self._prepare(images, target)
            update_idx, accum_idx = divmod(batch_idx, self.grad_accum_steps)
            accum_steps = min(self.grad_accum_steps, num_batches - update_idx * self.grad_accum_steps)
            last_of_update = accum_idx == accum_steps - 1
            result = self._forward_backward(images, target, accum_steps, last_of_update, epoch, batch_idx)
            meters.update(result, images.shape[0])
            if not last_of_update:
                continue
            self._finish_update(epoch, update_idx, meters)
            progress.advance()
            if self.placement.primary and (update_idx % self.log_interval == 0 or batch_idx == num_batches - 1):
                self._log_progress(epoch, update_idx, meters, began, progress)
                self._save_images(images, update_idx)
            self._keep(epoch, update_idx + 1, meters)

    def _seed(self, epoch: int, batch_idx: int) -> None:
        if self.seed is not None:
            place = (self.seed, self.placement.rank, 'step', epoch, batch_idx)
            seed_generators(seed_at(*place), self.placement.device)

    def _prepare(self, images, target):
        images, target = self.placement.images(images), target.to(device=self.placement.device, non_blocking=True)
        if self.mixup_fn is not None:
            images, target = self.mixup_fn(images, target)
        return self.placement.in_memory_format(images), target

    def _forward_backward(self, images, target, accum_steps, last_of_update, epoch, batch_idx) -> Dict[str, float]:
        with nullcontext() if last_of_update else self.task.no_sync():
            with self.placement.autocast():
                result = self.task(images, target)
            logged = PendingValues({
                name: value for name, value in result.items() if name.split('_')[-1] in ('loss', 'top1')})
            self._backward(result['loss'] / accum_steps)
        values = logged.read()  # of the forward pass: the device is busy with the backward pass
        if not math.isfinite(values['loss']):
            raise NonFiniteLoss(
                f'The loss is {values["loss"]} in epoch {epoch}, batch {batch_idx}; no update was made with it. '
                'Take a lower --lr, --clip-grad, or leave out --amp.')
        if last_of_update:
            self._step()
        return values

    def _backward(self, loss: torch.Tensor) -> None:
        second_order = getattr(self.optimizer, 'is_second_order', False)
        if self.loss_scaler is not None:
            self.loss_scaler(loss, self.optimizer, create_graph=second_order, need_update=False)
        else:
            loss.backward(create_graph=second_order)

    def _step(self) -> None:
        # timm's scaler does it in one call with the backward pass
        scaler = self.loss_scaler and self.loss_scaler._scaler
        if self.clip_grad is not None:
            if scaler:
                scaler.unscale_(self.optimizer)
            parameters = self.task.get_clip_parameters(exclude_head='agc' in self.clip_mode)
            dispatch_clip_grad(parameters, value=self.clip_grad, mode=self.clip_mode)
        if scaler:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()

    def _finish_update(self, epoch: int, update_idx: int, meters: '_Meters') -> None:
        num_updates = epoch * self.updates_per_epoch + update_idx + 1
        self.optimizer.zero_grad()
        self.task.update_ema(step=num_updates)
        if self.synchronize and self.placement.device.type != 'cpu':
            torch.accelerator.synchronize()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step_update(num_updates=num_updates, metric=meters['loss'].avg)

    def _keep(self, epoch: int, update: int, meters: '_Meters') -> None:
        stops = self.signals is not None and self.signals.stops_after(epoch * self.updates_per_epoch + update)
        path = None
        if stops or self.recovery_interval and update % self.recovery_interval == 0:
            shares = self.placement.gather(share_of_process(self.task, meters.totals(), self.placement.distributed))
            path = self.keeper.save_recovery(epoch, update, shares) if self.keeper is not None else None
        if stops:
            raise Stopped(path)

    def _log_progress(
            self,
            epoch: int,
            update_idx: int,
            meters: '_Meters',
            began: '_Began',
            progress: Progress,
    ) -> None:
        per_update = (time.monotonic() - began.time) / (update_idx + 1 - began.update)
        left = (self.num_epochs - epoch) * self.updates_per_epoch - update_idx - 1
        images = meters['loss'].count * self.placement.world_size / (update_idx + 1)
        values = '  '.join(f'{name}: {meter.val:#.4g} ({meter.avg:#.4g})' for name, meter in meters.items())
        percent = 100 * (update_idx + 1) / self.updates_per_epoch
        progress.tell(
            f'Train: {epoch} [{update_idx:>4d}/{self.updates_per_epoch} ({percent:>3.0f}%)]',
            f'{values}  LR: {mean_lr(self.optimizer):.3e}',
            f'{images / per_update:.1f} images/s  ETA {duration(per_update * left)}',
            last=update_idx + 1 == self.updates_per_epoch)

    def _save_images(self, images: torch.Tensor, update_idx: int) -> None:
        if self.image_folder is not None:
            path = os.path.join(self.image_folder, f'train-batch-{update_idx}.jpg')
            torchvision.utils.save_image(images.float(), path, padding=0, normalize=True)
            made = getattr(self.task, 'made_images', None)
            if made is not None:
                save_made_images(os.path.join(self.image_folder, f'train-attack-{update_idx}.jpg'), made)

    def _mean_over_processes(self, value: float) -> float:
        if self.placement.world_size == 1:
            return value
        return reduce_tensor(torch.tensor([value], device=self.placement.device), self.placement.world_size).item()


class _Began(NamedTuple):
    time: float
    update: int


class _Meters(Dict[str, AverageMeter]):
    # Means over the images of an epoch, which go on from what an interrupted run had summed up.
    def __init__(self, totals: Mapping[str, Tuple[float, int]]):
        super().__init__(loss=AverageMeter())
        for name, (total, count) in totals.items():
            meter = self.setdefault(name, AverageMeter())
            meter.sum, meter.count, meter.avg = total, count, total / count

    def update(self, values: Mapping[str, float], count: int) -> None:
        for name, value in values.items():
            self.setdefault(name, AverageMeter()).update(value, count)

    def totals(self) -> Dict[str, Tuple[float, int]]:
        return {name: (meter.sum, meter.count) for name, meter in self.items()}
