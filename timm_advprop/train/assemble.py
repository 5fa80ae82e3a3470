"""Builds the parts of a training run from its arguments: timm's own parts wherever timm has them."""
import importlib
import importlib.util
import logging
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader, resolve_data_config
from timm.layers import set_fast_norm
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import TrainingTask
from timm.utils import NativeScaler, init_distributed_device, is_primary, random_seed

from ..checkpoints import load_read_checkpoint, read_checkpoint
from ..errors import InputError
from ..inputs import (
    as_input_error,
    available_device,
    channel_normalisation,
    check_class_count,
    check_dataset_root,
    check_normalisation,
    open_dataset,
    open_model,
)
from ..models import configure_batch_norm, split_models
from ..regimes import create_task, num_aux_of_regime
from ..regimes.arguments import attack_kwargs

__all__ = ['Loaders', 'check_arguments', 'setup_device', 'setup_precision', 'build_model', 'resolve_data',
           'build_loaders', 'build_criterion', 'build_task', 'match_budget', 'build_optimizer', 'build_scheduler']

_logger = logging.getLogger(__name__)


class Loaders(NamedTuple):
    """The loaders of a run; `mixup_fn` mixes batches where the training loader does not."""
    train: Any
    eval: Optional[Any]
    mixup_fn: Optional[Callable]


def check_arguments(args: Namespace) -> None:
    """Refuse combinations of flags that would fail late, or train something else than they say, and missing data.

    Raises:
        InputError: The message names the flags.
    """
    mixing = _is_mixing(args)
    for wrong, message in (
            (args.aug_splits == 1 or args.aug_splits < 0, '--aug-splits is 0 or at least 2'),
            (args.jsd_loss and args.aug_splits < 2, '--jsd-loss needs --aug-splits of at least 2'),
            (args.split_bn and args.aug_splits < 2, '--split-bn needs --aug-splits of at least 2'),
            (args.split_bn and args.regime != 'advprop', '--split-bn needs --regime advprop'),
            (args.split_bn and args.jsd_loss, '--split-bn and --jsd-loss are two uses of --aug-splits: choose one'),
            (args.regime == 'fast-advprop' and args.batch_size < 5,
             f'--regime fast-advprop divides batches 4:1, got --batch-size {args.batch_size}'),
            (args.aug_splits and args.regime == 'fast-advprop',
             '--regime fast-advprop trains its routes on different images: leave --aug-splits out'),
            (args.aug_splits and mixing, '--aug-splits takes no mixup or cutmix'),
            (args.aug_splits and args.no_prefetcher, '--aug-splits needs the prefetcher: leave --no-prefetcher out'),
            (mixing and args.batch_size % 2,
             f'mixup and cutmix need an even batch, got --batch-size {args.batch_size}'),
            (args.amp and args.model_dtype not in (None, 'float32'), '--amp needs --model-dtype float32'),
            (args.log_wandb and not _has_wandb(), '--log-wandb needs the package wandb: pip install wandb'),
            (args.pretrained_path and ':' in args.model,
             f'--pretrained-path gives {args.model} other weights: use --initial-checkpoint'),
            (args.val_split == '' and args.eval_metric != 'loss', 'without --val-split, --eval-metric must be loss'),
    ):
        if wrong:
            raise InputError(f'{message}.')
    for split in filter(None, (args.train_split, args.val_split)):
        check_dataset_root(args.dataset, args.data_dir, split)


def setup_device(args: Namespace) -> torch.device:
    """Start the process group where there is one, choose the device, seed all generators."""
    for module in args.device_modules or ():
        importlib.import_module(module)
    args.device = available_device(args.device)
    device = init_distributed_device(args)
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if args.sync_bn and args.distributed and device.type == 'cpu':
        raise InputError('--sync-bn needs an accelerator: torch has no synchronised batch norm for the CPU.')
    random_seed(args.seed, args.rank)
    if args.fast_norm:
        set_fast_norm()
    return device


def setup_precision(args: Namespace, device: torch.device) -> Tuple[Optional[torch.dtype], Callable, Any]:
    """The model's type, the autocast of each forward pass and the loss scaler of a run."""
    dtype = getattr(torch, args.model_dtype) if args.model_dtype else None
    if not args.amp:
        return dtype, nullcontext, None
    amp_dtype = getattr(torch, args.amp_dtype)
    scaler = NativeScaler(device=device.type) if device.type == 'cuda' and amp_dtype == torch.float16 else None
    return dtype, partial(torch.autocast, device_type=device.type, dtype=amp_dtype), scaler


def build_model(args: Namespace, device: torch.device, dtype: Optional[torch.dtype]) -> nn.Module:
    """Create the model and put it on its device."""
    in_chans = args.in_chans or (args.input_size[0] if args.input_size else None)
    overlay = dict(file=args.pretrained_path, num_classes=-1) if args.pretrained_path else None
    model_kwargs = dict(args.model_kwargs)
    if args.model.split('.')[0] in split_models():
        num_aux = num_aux_of_regime(args.regime or 'advprop', _attack(args))
        if num_aux > 1:
            model_kwargs.setdefault('num_aux', num_aux)
    flags = dict(
        pretrained=args.pretrained or bool(args.pretrained_path),
        pretrained_cfg_overlay=overlay,
        in_chans=in_chans,
        num_classes=args.num_classes,
        drop_rate=args.drop,
        drop_path_rate=args.drop_path if args.drop_path is not None else args.drop_connect,
        drop_block_rate=args.drop_block,
        global_pool=args.gp,
    )
    model = open_model(args.model, **{**flags, **model_kwargs})
    if ':' in args.model and not args.pretrained:
        _logger.info(f'The architecture of {args.model}, untrained: --pretrained loads its weights.')
    if args.initial_checkpoint:
        state_dict = read_checkpoint(args.initial_checkpoint)
        convert = args.regime is not None and num_aux_of_regime(args.regime, _attack(args)) > 0
        load_read_checkpoint(model, state_dict, args.initial_checkpoint, convert=convert)
    _init_head(model, args.head_init_scale, args.head_init_bias)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    model = configure_batch_norm(model, args.bn_momentum, args.bn_eps, synchronise=args.sync_bn and args.distributed)
    model.to(device=device, dtype=dtype)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def build_loaders(
        args: Namespace,
        data_config: Dict[str, Any],
        num_classes: int,
        device: torch.device,
        dtype: Optional[torch.dtype],
) -> Loaders:
    """Open the data sets and make timm's loaders for them."""
    mean, std = channel_normalisation(data_config)
    common = dict(
        input_size=data_config['input_size'],
        mean=mean,
        std=std,
        pin_memory=args.pin_mem,
        img_dtype=dtype or torch.float32,
        device=device,
        distributed=args.distributed,
        use_prefetcher=not args.no_prefetcher,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,  # timm before 1.0.31 does not look
    )
    mixup = _mixup_kwargs(args, num_classes)
    train_set = _open_split(args, 'train', data_config, num_classes)
    eval_set = _open_split(args, 'val', data_config, num_classes) if args.val_split else None
    if eval_set is not None and _folder(train_set) is not None and _folder(train_set) == _folder(eval_set):
        raise InputError(f'Both splits are the folder {_folder(train_set)}: give its parent as --data-dir, with '
                         f'sub-folders {args.train_split} and {args.val_split}, or --val-split "".')
    if hasattr(train_set, '__len__') and len(train_set) < args.batch_size * args.world_size:
        raise InputError(f'The training split has {len(train_set)} images, fewer than one batch of '
                         f'{args.batch_size * args.world_size}: give a smaller --batch-size.')
    if args.aug_splits:
        train_set = AugMixDataset(train_set, num_splits=args.aug_splits)
    train = as_input_error(
        create_loader,
        train_set,
        batch_size=args.batch_size,
        is_training=True,
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        re_split=args.resplit,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob,
        gaussian_blur_prob=args.gaussian_blur_prob,
        auto_augment=args.aa,
        num_aug_repeats=args.aug_repeats,
        num_aug_splits=args.aug_splits,
        interpolation=data_config['interpolation'] if args.no_aug else args.train_interpolation,
        collate_fn=as_input_error(FastCollateMixup, **mixup) if mixup and not args.no_prefetcher else None,
        use_multi_epochs_loader=args.use_multi_epochs_loader,
        worker_seeding=args.worker_seeding,
        **common,
    )
    evaluation = None
    if eval_set is not None:
        evaluation = create_loader(
            eval_set,
            batch_size=args.validation_batch_size or args.batch_size,
            is_training=False,
            interpolation=data_config['interpolation'],
            crop_pct=data_config['crop_pct'],
            crop_mode=data_config['crop_mode'],
            **common,
        )
    mixup_fn = as_input_error(Mixup, **mixup) if mixup and args.no_prefetcher else None
    return Loaders(train, evaluation, mixup_fn)


def build_criterion(args: Namespace) -> nn.Module:
    """The training loss."""
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    mixing = _is_mixing(args)  # mixing smooths the targets itself
    if args.bce_loss:
        weight = {} if args.bce_pos_weight is None else dict(pos_weight=torch.tensor(args.bce_pos_weight))
        smoothing = {} if mixing else dict(smoothing=args.smoothing)
        return BinaryCrossEntropy(
            target_threshold=args.bce_target_thresh, sum_classes=args.bce_sum, **weight, **smoothing)
    if mixing:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing=args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def build_task(
        args: Namespace,
        model: nn.Module,
        data_config: Dict[str, Any],
        device: torch.device,
        dtype: Optional[torch.dtype],
) -> TrainingTask:
    """The training task of the regime."""
    mean, std = channel_normalisation(data_config)
    return as_input_error(
        create_task,
        args.regime,
        model,
        build_criterion(args).to(device),
        attack=dict(_attack(args), mean=mean, std=std),
        device=device,
        dtype=dtype,
        verbose=is_primary(args),
    )


def match_budget(args: Namespace, task: TrainingTask) -> Namespace:
    """Arguments with the schedule of the run: where it shall cost what `--epochs` of vanilla training do, shortened."""
    if (args.adv_budget or ('vanilla' if args.regime == 'fast-advprop' else 'epochs')) == 'epochs':
        return args
    cost = task.relative_cost()
    planned = Namespace(**vars(args))
    for name in ('epochs', 'warmup_epochs', 'cooldown_epochs', 'patience_epochs', 'mixup_off_epoch'):
        epochs = getattr(args, name)
        setattr(planned, name, max(1, round(epochs / cost)) if epochs else epochs)
    planned.decay_milestones = [round(milestone / cost) for milestone in args.decay_milestones]
    planned.decay_epochs = args.decay_epochs / cost
    if is_primary(args):
        _logger.info(f'{planned.epochs} epochs, about the arithmetic of {args.epochs} of vanilla; --adv-budget epochs '
                     f'runs them all.')
    return planned


def build_optimizer(args: Namespace, task: TrainingTask) -> torch.optim.Optimizer:
    """The optimizer; its learning rate follows from the global batch where `--lr` is not given."""
    if not args.lr:
        ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
        adaptive = any(name in args.opt.lower() for name in ('ada', 'lamb'))
        scale = args.lr_base_scale or ('sqrt' if adaptive else 'linear')
        args.lr = args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)
        if is_primary(args):
            _logger.info(f'Learning rate {args.lr:g}, from --lr-base {args.lr_base:g} by {scale} scaling.')
    return as_input_error(
        create_optimizer_v2, task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)


def build_scheduler(args: Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Tuple[Any, int]:
    """The learning-rate scheduler, None for none, and the number of epochs it plans."""
    return as_input_error(
        create_scheduler_v2,
        optimizer,
        **scheduler_kwargs(args, decreasing_metric=args.eval_metric == 'loss'),
        updates_per_epoch=updates_per_epoch,
    )


def resolve_data(args: Namespace, model: nn.Module) -> Dict[str, Any]:
    """How images are sized and normalised: the flags, else the model's own configuration."""
    check_normalisation(args.mean, args.std, args.input_size[0] if args.input_size else args.in_chans or 3)
    return resolve_data_config(vars(args), model=model, verbose=is_primary(args))


def _attack(args: Namespace) -> Dict[str, Any]:
    return dict(attack_kwargs(args), **(dict(aug_splits=args.aug_splits) if args.split_bn else {}))


def _open_split(args, kind, data_config, num_classes):
    split, num_samples = getattr(args, f'{kind}_split'), getattr(args, f'{kind}_num_samples')
    training = kind == 'train'
    dataset = open_dataset(
        args.dataset,
        args.data_dir,
        split,
        is_training=training,
        class_map=args.class_map,
        download=args.dataset_download,
        batch_size=args.batch_size,
        input_img_mode=args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L'),
        input_key=args.input_key,
        target_key=args.target_key,
        num_samples=num_samples,
        trust_remote_code=args.dataset_trust_remote_code,
        **(dict(seed=args.seed, repeats=args.epoch_repeats) if training else {}),
    )
    check_class_count(dataset, num_classes, f'split {split!r}')
    return dataset


def _folder(dataset: Any) -> Optional[str]:
    return getattr(getattr(dataset, 'reader', None), 'root', None)


def _is_mixing(args: Namespace) -> bool:
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def _mixup_kwargs(args: Namespace, num_classes: int) -> Optional[Dict[str, Any]]:
    if not _is_mixing(args):
        return None
    return dict(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=num_classes,
    )


def _init_head(model: nn.Module, scale: Optional[float], bias: Optional[float]) -> None:
    if scale is None and bias is None:
        return
    with torch.no_grad():
        classifier = model.get_classifier()
        if scale is not None:
            classifier.weight.mul_(scale)
            classifier.bias.mul_(scale)
        if bias is not None:
            nn.init.constant_(classifier.bias, bias)


def _has_wandb() -> bool:
    return importlib.util.find_spec('wandb') is not None
