"""From settings to what makes updates: loss, optimizer, schedule. timm's own parts wherever timm has them."""
import logging
from argparse import Namespace
from dataclasses import replace
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from ..errors import InputError, as_input_error, one_line
from .run_settings import AugmentationSettings, OptimizerSettings, ScheduleSettings
from .validation_settings import is_decreasing

__all__ = ['build_criterion', 'build_optimizer', 'build_scheduler', 'learning_rate', 'lr_scaling', 'mean_lr',
           'planned_epochs', 'shorten']

_logger = logging.getLogger(__name__)


def build_criterion(settings: AugmentationSettings) -> nn.Module:
    """The training loss."""
    if settings.jsd_loss:
        return JsdCrossEntropy(num_splits=settings.aug_splits, smoothing=settings.smoothing)
    if settings.bce_loss:
        optional: Dict[str, Any] = {} if settings.is_mixing else dict(smoothing=settings.smoothing)
        if settings.bce_pos_weight is not None:
            optional['pos_weight'] = torch.tensor(settings.bce_pos_weight)
        return BinaryCrossEntropy(
            target_threshold=settings.bce_target_thresh, sum_classes=settings.bce_sum, **optional)
    if settings.is_mixing:  # which smooths the targets itself
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing=settings.smoothing) if settings.smoothing else nn.CrossEntropyLoss()


def learning_rate(settings: OptimizerSettings, global_batch: int, verbose: bool = True) -> float:
    """The learning rate: `--lr`, or what follows from the number of images of an update, over all processes."""
    if settings.lr is not None:
        return settings.lr
    ratio = global_batch / settings.lr_base_size
    lr = settings.lr_base * (ratio ** 0.5 if lr_scaling(settings) == 'sqrt' else ratio)
    if verbose:
        _logger.info(f'Learning rate {lr:g}, from --lr-base {settings.lr_base:g} by {lr_scaling(settings)} scaling.')
    return lr


def lr_scaling(settings: OptimizerSettings) -> str:
    """How the rate follows the number of images of an update: `linear` or `sqrt`."""
    adaptive = any(name in settings.opt.lower() for name in ('ada', 'lamb'))
    return settings.lr_base_scale or ('sqrt' if adaptive else 'linear')


def build_optimizer(settings: OptimizerSettings, module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a module's parameters.

    Raises:
        InputError: There is no such optimizer, or it does not take an argument.
    """
    cfg = Namespace(**{**settings.values(), 'lr': lr})
    try:
        return as_input_error(create_optimizer_v2, module, **optimizer_kwargs(cfg=cfg), **settings.opt_kwargs)
    except (IndexError, TypeError) as error:  # of what a user named, in torch's own words
        if not (settings.opt_kwargs or settings.opt_betas):
            raise
        raise InputError(f'--opt {settings.opt} does not take its --opt-kwargs or --opt-betas: {one_line(error)}.'
                         ) from error


def build_scheduler(
        settings: ScheduleSettings,
        optimizer: torch.optim.Optimizer,
        updates_per_epoch: int,
        eval_metric: str,
        seed: int,
) -> Tuple[Optional[Any], int]:
    """The learning-rate scheduler, None for none, and the number of epochs it plans.

    Raises:
        InputError: There is no such scheduler, or it does not take its settings.
    """
    cfg = Namespace(**settings.values(), eval_metric=eval_metric, seed=seed)
    scheduler, num_epochs = as_input_error(
        create_scheduler_v2, optimizer,
        **scheduler_kwargs(cfg, decreasing_metric=is_decreasing(eval_metric)),  # pyright: ignore[reportArgumentType]
        updates_per_epoch=updates_per_epoch)
    if scheduler is None and settings.sched != 'none':  # of which timm before 1.0.31 says nothing
        raise InputError(f'Unknown scheduler {settings.sched!r} (--sched).')
    return scheduler, num_epochs


def planned_epochs(settings: ScheduleSettings) -> int:
    """Epochs of a schedule, with its warm-up, its cycles and its end."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.)  # timm's schedulers count with one alone
    return build_scheduler(settings, optimizer, updates_per_epoch=1, eval_metric='loss', seed=0)[1]


def shorten(settings: ScheduleSettings, cost: float) -> ScheduleSettings:
    """The schedule that costs what the given one costs in vanilla training: its epochs are fewer by a factor."""
    names = ('epochs', 'warmup_epochs', 'cooldown_epochs', 'patience_epochs', 'mixup_off_epoch')
    epochs = {name: getattr(settings, name) for name in names}
    return replace(
        settings, **{name: max(1, round(number / cost)) if number else number for name, number in epochs.items()},
        decay_milestones=tuple(round(milestone / cost) for milestone in settings.decay_milestones),
        decay_epochs=settings.decay_epochs / cost)


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    """Learning rate of an optimizer, the mean over its groups."""
    return sum(group['lr'] for group in optimizer.param_groups) / len(optimizer.param_groups)
