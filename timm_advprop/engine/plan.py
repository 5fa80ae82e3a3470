"""The plan of a training run, before it begins: what its parts say of themselves."""
from typing import Any, Dict, List, Optional, Sized

import torch
from timm.scheduler import PlateauLRScheduler

from ..norms import norm_parameters, num_aux_norms, split_norms
from ..output import counted
from .datasets import DataConfig, class_count
from .optimization import learning_rate, lr_scaling, mean_lr
from .run_folder import output_folder
from .run_settings import TrainSettings
from .training import Parts, images_per_update, prepare, told_share

__all__ = ['plan_run']

_EPOCHS_SHOWN = 6


def plan_run(settings: TrainSettings) -> Optional[str]:
    """Build everything of a training run, train and write nothing, and tell what it would do.

    Weights and data sets that are to be downloaded are.

    Returns:
        The plan, a line for each part, None on other processes than the first.

    Raises:
        InputError: Settings do not go together, or something they name is missing.
    """
    parts, config, _ = prepare(settings)
    if not parts.placement.primary:
        return None
    plan = describe_plan(parts, config)
    width = max(map(len, plan))
    return '\n'.join(f'{name:{width}}  {text}' for name, text in plan.items())


def describe_plan(parts: Parts, config: DataConfig) -> Dict[str, str]:
    """What a run would do, by its parts' names.

    Args:
        parts: What the run is made of. The optimizer's rates are changed.
        config: How images are sized and normalised.
    """
    settings, trainer, cost = parts.settings, parts.trainer, parts.task.relative_cost()
    return {
        'model': _model(parts),
        'regime': parts.task.describe(),
        'cost': f'{cost:.2f} × the arithmetic of vanilla training, that of {cost * trainer.num_epochs:.0f} vanilla '
                'epochs in all',
        'norms': _norms(parts),
        **_data(parts),
        'images': _images(config),
        'batch': _batch(parts),
        'epochs': f'{trainer.num_epochs:,} of {counted(trainer.updates_per_epoch, "update")}: '
                  f'{counted(trainer.num_epochs * trainer.updates_per_epoch, "update")}',
        'optimizer': f'{settings.optimizer.opt}, weight decay {settings.optimizer.weight_decay:g}',
        'rate': _rate(parts),
        'schedule': _schedule(parts),
        'EMA': f'decay {settings.ema.model_ema_decay:g}' if settings.ema.model_ema else 'none',
        'precision': _precision(parts),
        'start': _start(parts),
        'output': output_folder(settings, config),
    }


def _model(parts: Parts) -> str:
    model = parts.task.get_trainable_module()
    number, of_aux = (sum(parameter.numel() for parameter in parameters)
                      for parameters in (model.parameters(), norm_parameters(model)[1]))
    return f'{parts.settings.model.model}, {number:,} parameters, {of_aux:,} of them of auxiliary norms'


def _norms(parts: Parts) -> str:
    model, norm = parts.task.get_trainable_module(), parts.settings.norm
    splits = len(list(split_norms(model)))
    told = f'{splits} split norms, each with {num_aux_norms(model)} auxiliary' if splits else 'none is split'
    shared = filter(None, [told_share(model)])
    momentum = [] if norm.bn_momentum is None else [f'momentum {norm.bn_momentum:g}']
    synchronised = ['statistics over all processes'] if norm.sync_bn and parts.placement.distributed else []
    return ', '.join([told, *shared, *momentum, *synchronised])


def _data(parts: Parts) -> Dict[str, str]:
    names = {'training data': (parts.loaders.train.loader, parts.settings.data.train_split)}
    if parts.loaders.eval is not None:
        names['validation data'] = (parts.loaders.eval, parts.settings.data.val_split)
    return {name: f'{split}, {_size(loader.dataset)}' for name, (loader, split) in names.items()}


def _size(dataset: Any) -> str:
    images_alone = dataset
    while hasattr(images_alone, 'dataset'):  # below what wraps it
        images_alone = images_alone.dataset
    classes = class_count(images_alone)
    images = counted(len(dataset), 'image') if isinstance(dataset, Sized) else 'as many images as it has'
    return images if classes is None else f'{images} of {classes:,} classes'


def _images(config: DataConfig) -> str:
    size = ' × '.join(map(str, config['input_size']))
    mean, std = (' '.join(f'{value:g}' for value in config[name]) for name in ('mean', 'std'))
    return f'{size}, mean {mean}, std {std}'


def _batch(parts: Parts) -> str:
    loader, processes = parts.settings.loader, parts.placement.world_size
    factors = [counted(loader.batch_size, 'image')]
    if processes > 1:
        factors.append(f'{processes} processes')
    if loader.grad_accum_steps > 1:
        factors.append(f'{loader.grad_accum_steps} accumulated batches')
    number = counted(images_per_update(parts.settings, parts.placement), 'image')
    return f'{number} for an update: {" × ".join(factors)}'


def _rate(parts: Parts) -> str:
    optimizer = parts.settings.optimizer
    rate = learning_rate(optimizer, images_per_update(parts.settings, parts.placement), verbose=False)
    if optimizer.lr is not None:
        return f'{rate:g}, as --lr says, whatever the batch'
    return (f'{rate:g}, from --lr-base {optimizer.lr_base:g} for {optimizer.lr_base_size} images by '
            f'{lr_scaling(optimizer)} scaling')


def _schedule(parts: Parts) -> str:
    schedule, scheduler = parts.schedule, parts.trainer.lr_scheduler
    if scheduler is None:
        return 'none'
    steps = 'updates' if schedule.sched_on_updates else 'epochs'
    told = f'{schedule.sched}, by {steps}, warm-up epochs: {schedule.warmup_epochs}'
    if isinstance(scheduler, PlateauLRScheduler):
        return told
    return f'{told}; {", ".join(_rates(parts, scheduler))}'


def _rates(parts: Parts, scheduler: Any) -> List[str]:
    # at the beginning of some epochs, the last one among them
    trainer, last = parts.trainer, parts.trainer.num_epochs - 1
    shown = sorted({round(last * i / (_EPOCHS_SHOWN - 1)) for i in range(_EPOCHS_SHOWN)})
    told = []
    for epoch in shown:
        if parts.schedule.sched_on_updates:
            scheduler.step_update(epoch * trainer.updates_per_epoch)
        else:
            scheduler.step(epoch)
        told.append(f'{mean_lr(trainer.optimizer):.3g} in epoch {epoch}')
    return told


def _precision(parts: Parts) -> str:
    placement, settings = parts.placement, parts.settings
    name = str(placement.amp_dtype or placement.dtype or torch.float32).removeprefix('torch.')
    mixed = ' by mixed precision' if placement.amp_dtype else ''
    layout = ', channels last' if placement.channels_last else ''
    saved = ', gradient checkpointing' if settings.model.grad_checkpointing else ''
    return f'{name}{mixed}{layout}{saved}, on {placement.device}'


def _start(parts: Parts) -> str:
    model, start = parts.settings.model, parts.start
    if model.resume:
        return f'{model.resume}, epoch {start.epoch}, update {start.update}'
    weights = model.initial_checkpoint or model.pretrained_path or ('published weights' if model.pretrained else '')
    return weights or 'weights drawn at random'
