"""The training program: `train.py`, `timm-advprop-train`, `python -m timm_advprop.train`."""
import json
import logging
import os
import sys
from argparse import Namespace
from datetime import datetime
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from timm.models import safe_model_name
from timm.task import TrainingTask
from timm.utils import distribute_bn, is_primary

from ..arguments import setup_logging
from ..errors import InputError, exits_on_input_error
from ..evaluation.accuracy import evaluate
from ..hub import check_can_push, push_to_hub
from . import assemble
from .args import parse_args
from .checkpoint import AtomicCheckpointSaver, resume, resume_ema
from .loop import NonFiniteLoss, Trainer
from .run_log import RunLog

__all__ = ['Run', 'main', 'train']

_logger = logging.getLogger(__name__)


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the training program.

    Args:
        argv: Command line, `sys.argv[1:]` by default.
    """
    setup_logging()
    args = parse_args(argv)
    try:
        run = train(args)
    except NonFiniteLoss as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if is_primary(args):
        print(f'--result\n{json.dumps(run.results, indent=4)}')
        if args.push_to_hub and run.finished:
            _publish_best(args, run.folder)


class Run(NamedTuple):
    """What came of a training run.

    Args:
        results: The ten best epochs, best last: `epoch`, `train` and `validation` metrics.
        finished: It was not interrupted.
        folder: Output folder, None on other processes than the first.
    """
    results: List[Dict[str, Any]]
    finished: bool
    folder: Optional[str]


def train(args: Namespace) -> Run:
    """Train a model.

    Args:
        args: Arguments of the training program.
    """
    arguments = dict(vars(args))  # as given: the run completes args with what it finds out
    assemble.check_arguments(args)
    device = assemble.setup_device(args)
    if args.push_to_hub and is_primary(args):
        check_can_push(args.push_to_hub, must_reach=False)
    dtype, autocast, loss_scaler = assemble.setup_precision(args, device)
    model = assemble.build_model(args, device, dtype)
    data_config = assemble.resolve_data(args, model)
    loaders = assemble.build_loaders(args, data_config, model.num_classes, device, dtype)
    task = assemble.build_task(args, model, data_config, device, dtype)
    planned = assemble.match_budget(args, task)
    optimizer = assemble.build_optimizer(args, task)
    resume_epoch = _resume(args, task, optimizer, loss_scaler)
    _wrap(args, task, device)

    trainer = _build_trainer(planned, task, loaders, optimizer, device, dtype, autocast, loss_scaler)
    first_epoch = args.start_epoch if args.start_epoch is not None else (resume_epoch or 0)
    _advance_scheduler(trainer, first_epoch, args.sched_on_updates)

    run_log = folder = None
    if is_primary(args):
        folder = _output_folder(args, data_config)
        run_log = RunLog(folder, arguments, first_epoch, _start_wandb(args, folder))
        trainer.saver = _build_saver(args, task, optimizer, loss_scaler, folder)
        trainer.image_folder = folder if args.save_images else None
        _logger.info(f'Training {args.model} for {trainer.num_epochs} epochs of {trainer.updates_per_epoch} updates '
                     f'on {device}, into {folder}.')

    def validate(module: nn.Module, name: str) -> Dict[str, float]:
        return evaluate(
            module,
            loaders.eval,
            nn.CrossEntropyLoss(),
            device,
            dtype=dtype,
            autocast=autocast,
            channels_last=args.channels_last,
            world_size=args.world_size,
            log_name=name if is_primary(args) else None,
            log_interval=args.log_interval,
        )

    results, finished = _run_epochs(planned, trainer, loaders, validate, run_log, first_epoch)
    return Run(results, finished, folder)


def _run_epochs(args, trainer, loaders, validate, run_log, first_epoch) -> Tuple[List[Dict[str, Any]], bool]:
    results, finished, best = [], True, (None, None)
    try:
        for epoch in range(first_epoch, trainer.num_epochs):
            _start_epoch(args, loaders, epoch)
            train_metrics = trainer.train_epoch(epoch)
            _distribute_bn(args, trainer.task.get_trainable_module())
            if (epoch + 1) % args.val_interval and epoch + 1 != trainer.num_epochs:
                if trainer.lr_scheduler is not None:
                    trainer.lr_scheduler.step(epoch + 1, metric=None)
                continue
            eval_metrics = _validate_task(args, trainer.task, validate) if loaders.eval is not None else None
            metric = (eval_metrics or train_metrics)[args.eval_metric]
            if run_log is not None:
                lr = sum(group['lr'] for group in trainer.optimizer.param_groups) / len(trainer.optimizer.param_groups)
                run_log.add_epoch(epoch, train_metrics, eval_metrics, lr)
                best = trainer.saver.save_checkpoint(epoch, metric=metric)
            if trainer.lr_scheduler is not None:
                trainer.lr_scheduler.step(epoch + 1, metric)
            results.append({'epoch': epoch, 'train': train_metrics, 'validation': eval_metrics or {}})
    except KeyboardInterrupt:
        finished = False
        _logger.info('Interrupted. Continue from the last checkpoint with --resume.')
    if best[0] is not None:
        _logger.info(f'*** Best metric: {best[0]} (epoch {best[1]})')
    results.sort(
        key=lambda result: (result['validation'] or result['train'])[args.eval_metric],
        reverse=args.eval_metric == 'loss',
    )
    return results[-10:], finished


def _publish_best(args: Namespace, folder: str) -> None:
    checkpoint = os.path.join(folder, 'model_best.pth.tar')
    try:
        url = push_to_hub(checkpoint, args.push_to_hub, private=args.hub_private or None)
    except InputError as error:
        raise InputError(f'{error} The run is safe: python -m timm_advprop.hub push {checkpoint} {args.push_to_hub}'
                         ) from None
    print(f'Published {args.push_to_hub}: {url}')


def _build_trainer(args, task, loaders, optimizer, device, dtype, autocast, loss_scaler) -> Trainer:
    trainer = Trainer(
        task=task,
        loader=loaders.train,
        optimizer=optimizer,
        device=device,
        num_epochs=args.epochs,
        loss_scaler=loss_scaler,
        autocast=autocast,
        dtype=dtype,
        channels_last=args.channels_last,
        mixup_fn=loaders.mixup_fn,
        grad_accum_steps=args.grad_accum_steps,
        clip_grad=args.clip_grad,
        clip_mode=args.clip_mode,
        world_size=args.world_size,
        recovery_interval=args.recovery_interval,
        log_interval=args.log_interval,
        primary=is_primary(args),
        synchronize=args.synchronize_step,
    )
    trainer.lr_scheduler, trainer.num_epochs = assemble.build_scheduler(args, optimizer, trainer.updates_per_epoch)
    return trainer


def _build_saver(args, task, optimizer, loss_scaler, folder) -> AtomicCheckpointSaver:
    saver = AtomicCheckpointSaver(
        model=task.get_trainable_module(),
        optimizer=optimizer,
        args=args,
        amp_scaler=loss_scaler,
        checkpoint_dir=folder,
        recovery_dir=folder,
        decreasing=args.eval_metric == 'loss',
        max_history=args.checkpoint_hist,
        task=task,
    )
    if args.resume:
        saver.restore_history(args.resume)
    return saver


def _resume(args: Namespace, task: TrainingTask, optimizer, loss_scaler) -> Optional[int]:
    # EMA comes after the resumed weights, and both before compilation and DDP
    epoch = None
    if args.resume:
        epoch = resume(
            task,
            args.resume,
            optimizer=None if args.no_resume_opt else optimizer,
            loss_scaler=None if args.no_resume_opt else loss_scaler,
            verbose=is_primary(args),
        )
    if args.model_ema:
        task.setup_ema(
            decay=args.model_ema_decay,
            use_warmup=args.model_ema_warmup,
            device=torch.device('cpu') if args.model_ema_force_cpu else None,
        )
        if args.resume:
            resume_ema(task, args.resume)
    return epoch


def _wrap(args: Namespace, task: TrainingTask, device: torch.device) -> None:
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.distributed:
        task.prepare_distributed(
            device_ids=None if device.type == 'cpu' else [device],
            broadcast_buffers=not args.no_ddp_bb,
        )


def _advance_scheduler(trainer: Trainer, first_epoch: int, on_updates: bool) -> None:
    if trainer.lr_scheduler is None or first_epoch == 0:
        return
    if on_updates:
        trainer.lr_scheduler.step_update(first_epoch * trainer.updates_per_epoch)
    else:
        trainer.lr_scheduler.step(first_epoch)


def _start_epoch(args: Namespace, loaders: assemble.Loaders, epoch: int) -> None:
    for part in (loaders.train.dataset, loaders.train.sampler):
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        if loaders.mixup_fn is not None:
            loaders.mixup_fn.mixup_enabled = False
        elif not args.no_prefetcher:
            loaders.train.mixup_enabled = False


def _validate_task(args: Namespace, task: TrainingTask, validate) -> Dict[str, float]:
    metrics = validate(task.get_eval_model(), 'Test')
    if task.has_ema() and not args.model_ema_force_cpu:
        _distribute_bn(args, task.get_trainable_module(ema=True))
        metrics = validate(task.get_eval_model(ema=True), 'Test (EMA)')
    return metrics


def _distribute_bn(args: Namespace, model: nn.Module) -> None:
    if args.distributed and args.dist_bn and not args.sync_bn:
        distribute_bn(model, args.world_size, args.dist_bn == 'reduce')


def _output_folder(args: Namespace, data_config: Dict[str, Any]) -> str:
    name = args.experiment or '-'.join([
        datetime.now().strftime('%Y%m%d-%H%M%S'),
        safe_model_name(args.model),
        str(data_config['input_size'][-1]),
    ])
    folder = os.path.join(args.output or './output/train', name)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f'Cannot write the output folder {folder}: {error}.') from error
    return folder


def _start_wandb(args: Namespace, folder: str) -> Optional[Any]:
    if not args.log_wandb:
        return None
    import wandb
    return wandb.init(
        project=args.wandb_project,
        name=os.path.basename(folder),
        config=vars(args),
        tags=args.wandb_tags,
        resume='must' if args.wandb_resume_id else None,
        id=args.wandb_resume_id or None,
    )
