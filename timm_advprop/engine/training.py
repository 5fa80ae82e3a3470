"""A training run: from settings to checkpoints, epoch by epoch."""
import logging
import os
from argparse import Namespace
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from signal import Signals
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
from timm.scheduler import PlateauLRScheduler
from timm.utils import distribute_bn

from ..errors import InputError, RunError, as_input_error, one_line
from ..models import split_models, variant_of
from ..norms import configure_batch_norm, norm_distances, share_of
from ..output import counted
from ..regimes import RegimeTask, attacks_of, create_task, lacks_regime, regime_of
from ..weights import Checkpoint, open_checkpoint
from .bad_images import explained_data_loss
from .datasets import DataConfig, channel_normalisation, check_dataset_root, resolve_image_config
from .epoch_validation import EpochValidation
from .loaders import Loaders, build_loaders
from .loop import NonFiniteLoss, Trainer
from .open_model import base_name, open_model, told_of_another_model, try_images
from .optimization import (
    build_criterion,
    build_optimizer,
    build_scheduler,
    learning_rate,
    mean_lr,
    planned_epochs,
    shorten,
)
from .pictures import CHANNELS_OF_PICTURES
from .placement import Placement, open_placement
from .run_folder import lock_folder, output_folder
from .run_log import RunLog
from .run_settings import ScheduleSettings, TrainSettings
from .saver import (
    CheckpointKeeper,
    Position,
    has_checkpoints,
    newest_checkpoint,
    resume,
    resume_ema,
    resume_plateau,
    resume_share,
)
from .stopping import Stopped, StopSignals
from .trackers import TrackedRun, check_trackers, open_trackers
from .validation_settings import is_decreasing

__all__ = ['Parts', 'Run', 'build_model', 'build_task', 'check_settings', 'prepare', 'schedule_of', 'told_share',
           'train']

_logger = logging.getLogger(__name__)

_OF_A_LOST_PROCESS = ('Connection closed by peer', 'Connection reset by peer', 'Broken pipe', 'NCCL', 'ProcessGroup')


class Run(NamedTuple):
    """What came of a training run.

    Args:
        results: The ten best epochs, best last: `epoch`, `train` and `validation` metrics.
        stopped_by: The signal that stopped it before its end, None for none.
        folder: Output folder, None on other processes than the first.
        primary: Whether this process is the first one.
    """
    results: List[Dict[str, Any]]
    stopped_by: Optional[int]
    folder: Optional[str]
    primary: bool


@dataclass
class Parts:
    """What a run is made of and what it finds out; the settings stay as they were given."""
    settings: TrainSettings
    placement: Placement
    task: RegimeTask
    loaders: Loaders
    schedule: ScheduleSettings
    trainer: Trainer
    validation: EpochValidation
    start: Position = Position()
    run_log: Optional[RunLog] = None
    results: List[Dict[str, Any]] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The metric of the best checkpoint."""
        return self.settings.validation.eval_metric


def train(settings: TrainSettings) -> Run:
    """Train a model.

    Raises:
        InputError: Settings do not go together, or something they name is missing.
        RunError: The loss is infinite or NaN, a file cannot be written, or another process is gone. The last checkpoint
            is kept.
    """
    parts, config, checkpoint = prepare(settings)
    with ExitStack() as until_end:
        folder = output_folder(settings, config) if parts.placement.primary else None
        if folder is not None:
            until_end.enter_context(lock_folder(folder))
            _open_folder(parts, folder, checkpoint)
            until_end.enter_context(parts.run_log)  # pyright: ignore[reportArgumentType]
        del checkpoint  # as large as the model and its optimizer
        with explained_data_loss(partial(_way_on, folder)):
            stopped_by = _run_epochs(parts, folder)
    parts.results.sort(
        key=lambda result: (result['validation'] or result['train'])[parts.metric], reverse=is_decreasing(parts.metric))
    return Run(parts.results[-10:], stopped_by, folder, parts.placement.primary)


def prepare(settings: TrainSettings) -> Tuple[Parts, DataConfig, Optional[Checkpoint]]:
    """Build everything that a run is made of, and write nothing.

    Returns:
        Its parts, how images are sized and normalised, and the checkpoint that it goes on from, None for none.

    Raises:
        InputError: Settings do not go together, or something they name is missing.
    """
    check_settings(settings)
    placement = open_placement(
        settings.device, settings.loader.seed, join_processes=True, modules=settings.device.device_modules or (),
        attack_dtypes=[attack.amp_dtype for attack in as_input_error(attacks_of, settings.regime, is_split=True)])
    if settings.norm.sync_bn and placement.distributed and placement.device.type == 'cpu':
        raise InputError('--sync-bn needs an accelerator: torch has no synchronised batch norm for the CPU.')
    checkpoint = _open_resumed(settings)
    model = build_model(settings, placement)
    config = resolve_image_config(settings.image, model, verbose=placement.primary)
    channels = config['input_size'][0]
    if settings.run.save_images and channels not in CHANNELS_OF_PICTURES:
        raise InputError(f'--save-images writes pictures of 1 or 3 channels, the model takes {channels}: leave it out.')
    try_images(model, config['input_size'], placement, settings.loader.batch_size)
    loaders = build_loaders(settings, config, model.num_classes, placement)  # pyright: ignore[reportArgumentType]
    task = build_task(settings, model, config, placement)
    validation = EpochValidation.of(settings, loaders.eval, config, placement)
    validation.check(model)
    return _assemble(settings, placement, task, loaders, validation, checkpoint), config, checkpoint


def check_settings(settings: TrainSettings) -> None:
    """Refuse combinations of flags that would fail late, or train something else than they say, and missing data.

    Raises:
        InputError: The message names the flags.
    """
    model, loader, augmentation, norm = settings.model, settings.loader, settings.augmentation, settings.norm
    task_type = as_input_error(regime_of, settings.regime, is_split=True)
    metric_problem = settings.validation.problem_of_metric()
    is_halved = augmentation.is_mixing and augmentation.mixup_mode == 'half'
    smallest = task_type.smallest_batch * (2 if is_halved else 1)
    halved = ', of which --mixup-mode half leaves half' if is_halved else ''
    for wrong, message in (
            (augmentation.jsd_loss and augmentation.aug_splits < 2, '--jsd-loss needs --aug-splits of at least 2'),
            (norm.split_bn and augmentation.aug_splits < 2, '--split-bn needs --aug-splits of at least 2'),
            (norm.split_bn and augmentation.jsd_loss,
             '--split-bn and --jsd-loss are two uses of --aug-splits: choose one'),
            (smallest > loader.batch_size,
             f'--regime {task_type.name} needs batches of at least {smallest} images{halved}, got --batch-size '
             f'{loader.batch_size}'),
            (augmentation.aug_splits and augmentation.is_mixing, '--aug-splits takes no mixup or cutmix'),
            (augmentation.aug_splits and loader.no_prefetcher,
             '--aug-splits needs the prefetcher: leave --no-prefetcher out'),
            (augmentation.is_mixing and loader.batch_size % 2,
             f'mixup and cutmix need an even batch, got --batch-size {loader.batch_size}'),
            (model.pretrained_path and ':' in model.model,
             f'--pretrained-path gives {model.model} other weights: use --initial-checkpoint'),
            (settings.data.val_split == '' and settings.validation.eval_metric != 'loss',
             'without --val-split, --eval-metric must be loss'),
            (settings.data.val_split == '' and (settings.validation.routes or settings.validation.attack),
             '--val-routes and --val-adv-eps need a validation split (--val-split)'),
            (metric_problem, metric_problem),
    ):
        if wrong:
            raise InputError(f'{message}.')
    check_trackers(settings.run.trackers)
    as_input_error(task_type.arguments, settings.regime)
    _check_start(settings.schedule, planned_epochs(settings.schedule))
    for split in filter(None, (settings.data.train_split, settings.data.val_split)):
        check_dataset_root(settings.data, split)


def build_model(settings: TrainSettings, placement: Placement) -> nn.Module:
    """Create the model of a run and put it on its device."""
    model_settings, regime = settings.model, settings.regime
    is_split = base_name(model_settings.model) in split_models()
    task_type = as_input_error(regime_of, regime, is_split)
    num_aux = len(as_input_error(task_type.sources_of_aux_norms, regime))
    initial = model_settings.initial_checkpoint
    model = open_model(
        model_settings,
        settings.image,
        open_checkpoint(initial) if initial else None,
        num_aux=num_aux if num_aux > 1 else 0,
        convert=regime.regime is not None and num_aux > 0 and task_type.splits_plain_models,
        share=regime.share,
        pretrained=model_settings.pretrained or bool(model_settings.pretrained_path),
        pretrained_cfg_overlay=(
            dict(file=model_settings.pretrained_path, num_classes=-1) if model_settings.pretrained_path else None),
        drop_rate=model_settings.drop,
        drop_path_rate=model_settings.drop_connect if model_settings.drop_path is None else model_settings.drop_path,
        drop_block_rate=model_settings.drop_block,
    )
    if ':' in model_settings.model and not model_settings.pretrained:
        _logger.info(f'The architecture of {model_settings.model}, untrained: --pretrained loads its weights.')
    _init_head(model, model_settings.head_init_scale, model_settings.head_init_bias)
    if model_settings.grad_checkpointing:
        as_input_error(model.set_grad_checkpointing, enable=True)  # pyright: ignore[reportArgumentType]
    norm = settings.norm
    synchronise = norm.sync_bn and placement.distributed
    return placement.place(configure_batch_norm(model, norm.bn_momentum, norm.bn_eps, synchronise=synchronise))


def build_task(settings: TrainSettings, model: nn.Module, config: DataConfig, placement: Placement) -> RegimeTask:
    """The training task of the regime."""
    name = base_name(settings.model.model)
    variant = variant_of(name)
    if variant and lacks_regime(settings.regime, model):
        raise InputError(f'{name} has no split norms: say which regime the attack is for (--regime), or take --model '
                         f'{variant}.')
    mean, std = channel_normalisation(config)
    return as_input_error(
        create_task, settings.regime, model, build_criterion(settings.augmentation).to(placement.device), mean=mean,
        std=std, device=placement.device, dtype=placement.dtype, verbose=placement.primary)


def images_per_update(settings: TrainSettings, placement: Placement) -> int:
    """Clean images in an update, over all processes."""
    return settings.loader.batch_size * placement.world_size * settings.loader.grad_accum_steps


def schedule_of(settings: TrainSettings, task: RegimeTask, verbose: bool = False) -> ScheduleSettings:
    """The schedule of a run: where it shall cost what `--epochs` of vanilla training do, a shorter one."""
    if (settings.regime.budget or task.default_budget) == 'epochs':
        return settings.schedule
    schedule = shorten(settings.schedule, task.relative_cost())
    if verbose:
        _logger.info(f'{schedule.epochs} epochs, about the arithmetic of {settings.schedule.epochs} of vanilla; '
                     '--adv-budget epochs runs them all.')
    return schedule


def _assemble(
        settings: TrainSettings,
        placement: Placement,
        task: RegimeTask,
        loaders: Loaders,
        validation: EpochValidation,
        checkpoint: Optional[Checkpoint],
) -> Parts:
    schedule = schedule_of(settings, task, verbose=placement.primary)
    loader = settings.loader
    lr = learning_rate(settings.optimizer, images_per_update(settings, placement), placement.primary)
    optimizer = build_optimizer(settings.optimizer, task.get_trainable_module(), lr)
    trainer = Trainer(
        task=task, loader=loaders.train, optimizer=optimizer, placement=placement, loss_scaler=placement.loss_scaler(),
        mixup_fn=loaders.mixup_fn, grad_accum_steps=loader.grad_accum_steps, clip_grad=settings.optimizer.clip_grad,
        clip_mode=settings.optimizer.clip_mode, recovery_interval=settings.run.recovery_interval,
        seed=loader.seed, log_interval=settings.run.log_interval, synchronize=settings.device.synchronize_step)
    start = _resume(settings, trainer, checkpoint)
    _wrap(settings, task, placement)
    if checkpoint is not None and start.update:
        trainer.totals = resume_share(task, checkpoint, placement.rank)
    trainer.lr_scheduler, trainer.num_epochs = build_scheduler(
        schedule, optimizer, trainer.updates_per_epoch, settings.validation.eval_metric, loader.seed)
    _check_start(schedule, trainer.num_epochs)
    if schedule.start_epoch is not None:
        start = Position(schedule.start_epoch)
    _advance_scheduler(trainer, start, schedule.sched_on_updates)
    if isinstance(trainer.lr_scheduler, PlateauLRScheduler) and checkpoint and not settings.model.no_resume_opt:
        resume_plateau(trainer.lr_scheduler, checkpoint)
    return Parts(settings, placement, task, loaders, schedule, trainer, validation, start)


def _check_start(schedule: ScheduleSettings, num_epochs: int) -> None:
    if schedule.start_epoch is not None and schedule.start_epoch >= num_epochs:
        raise InputError(f'--start-epoch {schedule.start_epoch} is beyond the end: the run has '
                         f'{counted(num_epochs, "epoch")}, from 0.')


def _open_resumed(settings: TrainSettings) -> Optional[Checkpoint]:
    path = settings.model.resume
    if not path:
        return _check_folder(settings)
    if path != 'auto':
        return open_checkpoint(path, use_ema=False)
    if not settings.run.experiment:
        raise InputError('--resume auto goes on in the folder of the run: give its name with --experiment.')
    checkpoint = newest_checkpoint(output_folder(settings))
    _logger.info(f'--resume auto: {checkpoint.path}' if checkpoint else '--resume auto: no checkpoint yet, a new run.')
    return checkpoint


def _check_folder(settings: TrainSettings) -> None:
    # A new run would replace the checkpoints of another one, and leave some beside its own.
    if settings.run.experiment and has_checkpoints(folder := output_folder(settings)):  # else its name has the time
        raise InputError(f'{folder} holds a run already: go on with --resume auto, give another --experiment, or move '
                         'it away.')


def _resume(settings: TrainSettings, trainer: Trainer, checkpoint: Optional[Checkpoint]) -> Position:
    # The average comes after the resumed weights, of which it is a copy, and both before compilation and DDP, whose
    # wrappers would get into the names of parameters.
    position, task, ema = None, trainer.task, settings.ema
    if checkpoint is not None:
        state = (None, None) if settings.model.no_resume_opt else (trainer.optimizer, trainer.loss_scaler)
        with told_of_another_model(checkpoint, settings.model.model):
            position = resume(task, checkpoint, *state)
        if position is not None:
            _tell_changes(checkpoint, settings)
        if position is not None and position.update and not _has_batches_of(checkpoint, settings, trainer):
            _logger.warning(f'{checkpoint.path} is of other batches (--batch-size, --grad-accum-steps, --seed, '
                            f'processes, training images): epoch {position.epoch} begins anew.')
            position = Position(position.epoch)
    if ema.model_ema:
        device = torch.device('cpu') if ema.model_ema_force_cpu else None
        task.setup_ema(decay=ema.model_ema_decay, use_warmup=ema.model_ema_warmup, device=device)
        if checkpoint is not None:
            resume_ema(task, checkpoint)
    return position or Position()


def _has_batches_of(checkpoint: Checkpoint, settings: TrainSettings, trainer: Trainer) -> bool:
    now = _what_makes_batches(settings, trainer)
    return all(checkpoint.args.get(name, value) == value for name, value in now.items())


def _what_makes_batches(settings: TrainSettings, trainer: Trainer) -> Dict[str, int]:
    # Only where it is the same, the number of an update says which images were seen.
    loader = settings.loader
    return dict(
        batch_size=loader.batch_size, grad_accum_steps=loader.grad_accum_steps, seed=loader.seed,
        world_size=trainer.placement.world_size,
        train_images=trainer.loader.num_images)  # pyright: ignore[reportAttributeAccessIssue]


def _tell_changes(checkpoint: Checkpoint, settings: TrainSettings) -> None:
    # A user may want them; what a model card says of the norms is then true of the run's last part alone.
    names = [name for name in settings.given if name.startswith('adv_')]
    if settings.regime.regime and checkpoint.args.get('regime'):  # else one of them may be the other's default
        names.append('regime')
    changed = [f'--{name.replace("_", "-")}' for name in names
               if (checkpoint.args.get(name) or None) != (settings.given.get(name) or None)]
    if changed:
        _logger.warning(f'{checkpoint.path} was trained with other settings of {", ".join(changed)}: the run goes on '
                        'with those that are given now.')


def _wrap(settings: TrainSettings, task: RegimeTask, placement: Placement) -> None:
    backend, mode = settings.model.torchcompile, settings.model.torchcompile_mode
    if backend:
        task.compile(backend=backend, mode=mode)
        if task.has_ema():
            task.compile_ema(backend=backend, mode=mode)
    if placement.distributed:
        task.prepare_distributed(
            device_ids=None if placement.device.type == 'cpu' else [placement.device],
            broadcast_buffers=not settings.device.no_ddp_bb,
        )


def _open_folder(parts: Parts, folder: str, checkpoint: Optional[Checkpoint]) -> None:
    settings, trainer = parts.settings, parts.trainer
    trainer.keeper = CheckpointKeeper(
        folder=folder, task=parts.task, optimizer=trainer.optimizer, loss_scaler=trainer.loss_scaler,
        args=Namespace(**{**settings.given, **_what_makes_batches(settings, trainer)}),
        lr_scheduler=trainer.lr_scheduler, decreasing=is_decreasing(parts.metric),
        max_history=settings.run.checkpoint_hist, label_names=parts.loaders.label_names)
    trainer.keeper.clean()
    run = settings.run
    tracked = TrackedRun(folder, os.path.basename(folder), settings.given, parts.start.epoch, run.wandb_project,
                         run.wandb_tags, run.wandb_resume_id)
    parts.run_log = RunLog(folder, settings.given, parts.start.epoch, open_trackers(run.trackers, tracked))
    if checkpoint is not None:
        trainer.keeper.take_up(checkpoint, parts.start.epoch)
    trainer.image_folder = folder if settings.run.save_images else None
    parts.task.keeps_images = bool(settings.run.save_images or run.trackers)
    if parts.start.epoch >= trainer.num_epochs:
        _logger.info(f'The run is finished: {trainer.num_epochs} epochs are trained. Give more --epochs to go on.')
        return
    shared = told_share(parts.task.get_trainable_module())
    name = f'{settings.model.model} with {shared}' if shared else settings.model.model
    _logger.info(f'Training {name} for {counted(trainer.num_epochs, "epoch")} of '
                 f'{counted(trainer.updates_per_epoch, "update")} on {parts.placement.device}, into {folder}.')


def told_share(model: nn.Module) -> str:
    """What the routes of a model share, such as `shared statistics`; '' where that is nothing."""
    share = share_of(model)
    return '' if share == 'none' else f'shared {share.replace("-", " ")}'


def _way_on(folder: Optional[str]) -> str:
    # For a run that broke off; the first process alone knows the folder.
    return 'Continue from the last checkpoint with --resume.' if folder and has_checkpoints(folder) else ''


def _run_epochs(parts: Parts, folder: Optional[str]) -> Optional[int]:
    # The signal that stopped it.
    best: Tuple[Optional[float], Optional[int]] = (None, None)
    start, stopped_by = parts.start, None
    try:
        keeper = parts.trainer.keeper
        saving = nullcontext() if keeper is None else keeper.in_background()
        with StopSignals(parts.placement.distributed) as parts.trainer.signals, saving:
            for epoch in range(start.epoch, parts.trainer.num_epochs):
                best = _run_epoch(parts, epoch, start) or best
                start = Position()
    except Stopped as stopped:
        stopped_by = parts.trainer.signals.signal  # pyright: ignore[reportOptionalMemberAccess]
        if parts.placement.primary:
            _logger.info(f'Stopped by {Signals(stopped_by).name}. Go on with --resume {stopped}')
    except NonFiniteLoss as error:
        raise NonFiniteLoss(f'{error} {_way_on(folder)}'.rstrip()) from error
    except RuntimeError as error:
        if not parts.placement.distributed or not any(words in str(error) for words in _OF_A_LOST_PROCESS):
            raise
        raise RunError(f'Process {parts.placement.rank} lost another one: {one_line(error, limit=120)} The last '
                       'checkpoint is kept: go on with --resume.') from error
    if best[0] is not None:
        _logger.info(f'*** Best metric: {best[0]} (epoch {best[1]})')
    return stopped_by


def _run_epoch(parts: Parts, epoch: int, start: Position) -> Optional[Tuple[Optional[float], Optional[int]]]:
    # The best metric and its epoch, where the epoch was validated and this process saves.
    trainer, settings = parts.trainer, parts.settings
    parts.loaders.start_epoch(epoch, parts.schedule.mixup_off_epoch, start.update * trainer.grad_accum_steps)
    train_metrics = trainer.train_epoch(epoch, start)
    _distribute_bn(parts, parts.task.get_trainable_module())
    metric = eval_metrics = best = None
    validated = settings.validation.is_due(epoch, last=trainer.num_epochs - 1)
    if validated:
        eval_metrics = _validate(parts, epoch) if parts.loaders.eval is not None else None
        metric = (eval_metrics or train_metrics).get(parts.metric)  # None where it was not measured in this epoch
    lr = mean_lr(trainer.optimizer)
    if trainer.lr_scheduler is not None:
        trainer.lr_scheduler.step(epoch + 1, metric)
    if metric is not None:
        parts.results.append({'epoch': epoch, 'train': train_metrics, 'validation': eval_metrics or {}})
    if validated and parts.run_log is not None:
        parts.run_log.add_epoch(
            epoch, train_metrics, eval_metrics, lr, _further(parts.task), made=parts.task.made_images)
        best = trainer.keeper.save_checkpoint(epoch, metric)  # pyright: ignore[reportOptionalMemberAccess]
    return best


def _further(task: RegimeTask) -> Dict[str, float]:
    # What an epoch has beside losses and accuracies: computed once, at its end.
    made = task.made_images
    size = {} if made is None else dict(train_adv_px=made.size_px())
    return {**size, **norm_distances(task.get_trainable_module())}


def _validate(parts: Parts, epoch: int) -> Dict[str, float]:
    # The average is what counts, where it is on the device: extras are of what counts.
    extras = parts.settings.validation.extras_are_due(epoch, last=parts.trainer.num_epochs - 1)
    averaged = parts.task.has_ema() and not parts.settings.ema.model_ema_force_cpu
    metrics = parts.validation(parts.task.get_eval_model(), 'Test', extras and not averaged)
    if averaged:
        _distribute_bn(parts, parts.task.get_trainable_module(ema=True))
        metrics = parts.validation(parts.task.get_eval_model(ema=True), 'Test (EMA)', extras)
    return metrics


def _distribute_bn(parts: Parts, model: nn.Module) -> None:
    norm = parts.settings.norm
    if parts.placement.distributed and norm.dist_bn and not norm.sync_bn:
        distribute_bn(model, parts.placement.world_size, norm.dist_bn == 'reduce')


def _advance_scheduler(trainer: Trainer, start: Position, on_updates: bool) -> None:
    num_updates = start.epoch * trainer.updates_per_epoch + start.update
    if trainer.lr_scheduler is None or num_updates == 0:
        return
    if on_updates:
        trainer.lr_scheduler.step_update(num_updates)
    elif start.epoch:
        trainer.lr_scheduler.step(start.epoch)


def _init_head(model: Any, scale: Optional[float], bias: Optional[float]) -> None:
    if scale is None and bias is None:
        return
    with torch.no_grad():
        classifier = model.get_classifier()
        if getattr(classifier, 'weight', None) is None or getattr(classifier, 'bias', None) is None:
            raise InputError('--head-init-scale and --head-init-bias need a model with one classifier, of weights and '
                             'biases: leave them out.')
        if scale is not None:
            classifier.weight.mul_(scale)
            classifier.bias.mul_(scale)
        if bias is not None:
            nn.init.constant_(classifier.bias, bias)
