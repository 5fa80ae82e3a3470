"""The settings of a training run: timm's flags under timm's names and defaults, in read-only groups.

A name is that of its flag, `batch_size` for `--batch-size`, and of its key in recipes and in `args.yaml`.
"""
from argparse import SUPPRESS
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from PIL import Image

from ..regimes import RegimeSettings, regime_flags
from ..settings import ProgramSettings, Settings, setting
from .policies import policy_problem
from .trackers import TRACKERS
from .validation_settings import ValidationSettings

__all__ = [
    'AugmentationSettings', 'DataSettings', 'DeviceSettings', 'ImageSettings', 'LoaderSettings', 'ModelSettings',
    'OptimizerSettings', 'ScheduleSettings', 'TrainSettings',
]

_SHARE = dict(low=0, high=1)  # of probabilities, rates and momenta
_INTERPOLATIONS = ('', 'nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


def _splits_problem(number: int) -> Optional[str]:
    return 'must be 0 or at least 2' if number == 1 else None


@dataclass(frozen=True)
class DataSettings(Settings):
    """Which data set."""
    title = 'Dataset parameters'
    data_dir: Optional[str] = setting(None, 'root folder of the data set', metavar='DIR')
    dataset: str = setting(
        '', '"<type>/<name>" as timm\'s readers take it', metavar='NAME', default_help='folder')
    dataset_download: bool = setting(False, 'download torch/ and tfds/ data sets that allow it')
    class_map: str = setting('', 'file that maps class names to indices', metavar='FILE')
    input_img_mode: Optional[str] = setting(
        None, 'PIL mode images are converted to', choices=tuple(Image.MODES), metavar='MODE')
    input_key: Optional[str] = setting(None, 'key of the images in the data set')
    target_key: Optional[str] = setting(None, 'key of the labels in the data set')
    skip_bad_images: int = setting(
        0, 'pass over at most N images that cannot be read, of folders, tar files and hfds/', low=0, metavar='N')
    dataset_trust_remote_code: bool = setting(False, 'let a Hugging Face data set run its own code')


@dataclass(frozen=True)
class ModelSettings(Settings):
    """Which model, and what is built into it."""
    title = 'Model parameters'
    model: str = setting('resnet50', 'model to train', metavar='MODEL')
    pretrained: bool = setting(False, 'start from published weights')
    num_classes: Optional[int] = setting(None, 'classes', low=1, metavar='N', default_help='the model\'s')
    gp: Optional[str] = setting(None, 'global pooling: fast, avg, max, avgmax or avgmaxc', metavar='POOL')
    model_kwargs: Dict[str, Any] = setting({}, 'further model arguments, key=value')
    fast_norm: bool = setting(False, 'timm\'s experimental fast norms')
    torchcompile: Optional[str] = setting(
        None, 'compile the model (backend default: inductor)', nargs='?', metavar='BACKEND', const='inductor')
    torchcompile_mode: Optional[str] = setting(None, 'mode of torch.compile')


@dataclass(frozen=True)
class ImageSettings(Settings):
    """How images are sized and normalised; by default as the model's own configuration says."""
    title = 'Image parameters'
    img_size: Optional[int] = setting(None, 'image size', low=1, metavar='N', default_help='the model\'s')
    in_chans: Optional[int] = setting(None, 'image channels', low=1, metavar='N', default_help='3')
    input_size: Optional[Tuple[int, ...]] = setting(
        None, 'channels, height and width of images', low=1, nargs=3, metavar='N')
    crop_pct: Optional[float] = setting(None, 'centre crop of validation images', above=0, high=10, metavar='N')
    mean: Optional[Tuple[float, ...]] = setting(
        None, 'mean pixel value, in 0-1', low=0, high=1, nargs='+', metavar='MEAN')
    std: Optional[Tuple[float, ...]] = setting(
        None, 'standard deviation of pixels, in 0-1', above=0, nargs='+', metavar='STD')
    interpolation: str = setting(
        '', 'interpolation for resizing', choices=_INTERPOLATIONS, metavar='NAME', default_help='the model\'s')

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_chans and self.input_size and self.in_chans != self.input_size[0]:
            raise ValueError(f'--in-chans {self.in_chans} and --input-size {" ".join(map(str, self.input_size))} '
                             'differ in the number of channels.')

    @property
    def channels(self) -> Optional[int]:
        """Channels that were asked for, None for the model's."""
        return self.in_chans or (self.input_size[0] if self.input_size else None)


@dataclass(frozen=True)
class DeviceSettings(Settings):
    """Where and in which precision."""
    title = 'Device parameters'
    device: str = setting('cuda', 'device; the CPU is taken where there is no accelerator')
    amp: bool = setting(False, 'mixed precision')
    amp_dtype: str = setting('float16', 'lower precision', choices=('float16', 'bfloat16'))
    model_dtype: Optional[str] = setting(None, 'precision without AMP', choices=('float32', 'float16', 'bfloat16'))
    channels_last: bool = setting(False, 'channels-last memory format')


@dataclass(frozen=True)
class LoaderSettings(Settings):
    """How batches are loaded."""
    title = 'Loader parameters'
    batch_size: int = setting(128, 'clean images in a batch, for each process', low=1, metavar='N', flags=('-b',))
    workers: int = setting(4, 'loader processes', low=0, metavar='N', flags=('-j',))
    pin_mem: bool = setting(False, 'pin host memory in the loader')
    no_prefetcher: bool = setting(False, 'without timm\'s prefetching loader')
    seed: int = setting(42, 'random seed', low=0, high=2 ** 32 - 1, metavar='S')


@dataclass(frozen=True)
class TrainDataSettings(DataSettings):
    """Which data set, and which parts of it."""
    train_split: str = setting('train', 'training split', metavar='NAME')
    val_split: str = setting('validation', 'validation split, "" for none', metavar='NAME')
    train_num_samples: Optional[int] = setting(None, 'training samples of an iterable data set', low=1, metavar='N')
    val_num_samples: Optional[int] = setting(None, 'validation samples of an iterable data set', low=1, metavar='N')


@dataclass(frozen=True)
class TrainModelSettings(ModelSettings):
    """Which model, what it starts from, and what is built into it."""
    pretrained_path: Optional[str] = setting(
        None, 'take FILE for the published weights (adapts the head)', metavar='FILE')
    initial_checkpoint: str = setting('', 'load FILE into the model as it is', metavar='FILE')
    resume: str = setting('', 'continue the run of a checkpoint', metavar='FILE')
    no_resume_opt: bool = setting(False, 'resume the model without the optimizer')
    drop: float = setting(0.0, 'dropout rate', **_SHARE, metavar='PCT')
    drop_connect: Optional[float] = setting(None, 'deprecated name of --drop-path', **_SHARE, metavar='PCT')
    drop_path: Optional[float] = setting(None, 'stochastic depth rate', **_SHARE, metavar='PCT')
    drop_block: Optional[float] = setting(None, 'drop block rate', **_SHARE, metavar='PCT')
    grad_checkpointing: bool = setting(False, 'recompute activations in the backward pass')
    head_init_scale: Optional[float] = setting(None, 'factor on the classifier\'s initial weights')
    head_init_bias: Optional[float] = setting(None, 'initial bias of the classifier')


@dataclass(frozen=True)
class TrainDeviceSettings(DeviceSettings):
    """Where and in which precision, in how many processes."""
    no_ddp_bb: bool = setting(False, 'do not broadcast buffers in DDP')
    synchronize_step: bool = setting(False, 'wait for the device after each step')
    local_rank: int = setting(0, SUPPRESS, low=0, flags=('--local_rank',))
    device_modules: Optional[Tuple[str, ...]] = setting(None, 'modules to import for a device\'s backend', nargs='+')


@dataclass(frozen=True)
class TrainLoaderSettings(LoaderSettings):
    """How batches are loaded and put together."""
    validation_batch_size: Optional[int] = setting(
        None, 'validation batch size', low=1, metavar='N', flags=('-vb',), default_help='--batch-size')
    worker_seeding: str = setting('all', 'seeding of the loader\'s workers', choices=('all', 'part'))
    use_multi_epochs_loader: bool = setting(False, 'keep the loader\'s workers between epochs, as is done anyway')
    epoch_repeats: float = setting(0.0, 'times an epoch repeats its data set', low=0, metavar='N')
    grad_accum_steps: int = setting(1, 'batches for each update', low=1, metavar='N')


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """What makes an update of a gradient."""
    title = 'Optimizer parameters'
    opt: str = setting('sgd', 'optimizer, by timm\'s names', metavar='OPTIMIZER')
    opt_eps: Optional[float] = setting(None, 'optimizer epsilon', low=0, metavar='EPSILON')
    opt_betas: Optional[Tuple[float, ...]] = setting(None, 'optimizer betas', low=0, below=1, nargs='+', metavar='BETA')
    momentum: float = setting(0.9, 'momentum', **_SHARE, metavar='M')
    weight_decay: float = setting(2e-05, 'weight decay', low=0, default_help='2e-5')
    clip_grad: Optional[float] = setting(
        None, 'clip gradients', above=0, metavar='NORM', default_help='no clipping',
        advice='leave it out for no clipping')
    clip_mode: str = setting('norm', 'kind of clipping', choices=('norm', 'value', 'agc'))
    layer_decay: Optional[float] = setting(None, 'learning-rate decay by layer', above=0)
    layer_decay_min_scale: float = setting(0, 'lowest layer-decay scale', low=0)
    layer_decay_no_opt_scale: Optional[float] = setting(
        None, 'layer-decay scale below which layers are frozen', low=0)
    opt_kwargs: Dict[str, Any] = setting({}, 'further optimizer arguments, key=value')
    lr: Optional[float] = setting(
        None, 'learning rate; overrides --lr-base', above=0, metavar='LR', advice='leave it out to take --lr-base')
    lr_base: float = setting(0.1, 'learning rate at a global batch of --lr-base-size', above=0, metavar='LR')
    lr_base_size: int = setting(256, 'batch of --lr-base', low=1, metavar='N')
    lr_base_scale: str = setting(
        '', 'how the learning rate grows with the batch', choices=('', 'linear', 'sqrt'), default_help='by optimizer')


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """How long, and how the learning rate changes."""
    title = 'Learning rate schedule parameters'
    sched: str = setting('cosine', 'scheduler, by timm\'s names', metavar='SCHEDULER')
    sched_on_updates: bool = setting(False, 'step the scheduler on updates, not on epochs')
    lr_noise: Optional[Tuple[float, ...]] = setting(
        None, 'noise of the learning rate: shares of the schedule where it begins and ends', low=0, ordered=True,
        nargs='+', metavar='PCT')
    lr_noise_pct: float = setting(0.67, 'limit of the noise', above=0, metavar='PCT')
    lr_noise_std: float = setting(1.0, 'deviation of the noise', low=0, metavar='STD')
    lr_cycle_mul: float = setting(1.0, 'factor on each cycle\'s length', above=0, metavar='M')
    lr_cycle_decay: float = setting(0.5, 'factor on each cycle\'s rate', low=0, metavar='M')
    lr_cycle_limit: int = setting(1, 'number of cycles', low=1, metavar='N')
    lr_k_decay: float = setting(1.0, 'k of k-decay, for cosine and poly', above=0)
    warmup_lr: float = setting(1e-05, 'first rate of the warm-up', low=0, metavar='LR', default_help='1e-5')
    min_lr: float = setting(0, 'lowest rate', low=0, metavar='LR')
    epochs: int = setting(300, 'epochs to train', low=1, metavar='N')
    start_epoch: Optional[int] = setting(None, 'first epoch, overrides a resume\'s', low=0, metavar='N')
    decay_milestones: Tuple[int, ...] = setting(
        (90, 180, 270), 'epochs of multistep', low=0, ordered=True, nargs='+', metavar='N')
    decay_epochs: float = setting(90, 'epochs between decays', above=0, metavar='N')
    warmup_epochs: int = setting(5, 'epochs of warm-up', low=0, metavar='N')
    warmup_prefix: bool = setting(False, 'warm up before the schedule, not within it')
    cooldown_epochs: int = setting(0, 'epochs at --min-lr at the end', low=0, metavar='N')
    patience_epochs: int = setting(10, 'patience of plateau', low=0, metavar='N')
    decay_rate: float = setting(0.1, 'factor of a decay', low=0, metavar='RATE', flags=('--dr',))
    mixup_off_epoch: int = setting(0, 'epoch that ends mixup', low=0, metavar='N', default_help='0, never')


@dataclass(frozen=True)
class AugmentationSettings(Settings):
    """What is done to images and labels, and the loss."""
    title = 'Augmentation and regularization parameters'
    no_aug: bool = setting(False, 'no training augmentation at all')
    train_crop_mode: Optional[str] = setting(None, 'how training images are cropped', choices=('rrc', 'rkrc', 'rkrr'))
    scale: Tuple[float, ...] = setting((0.08, 1.0), 'random crop scale', above=0, ordered=True, nargs=2, metavar='PCT')
    ratio: Tuple[float, ...] = setting(
        (3. / 4., 4. / 3.), 'random crop aspect', above=0, ordered=True, nargs=2, metavar='RATIO')
    hflip: float = setting(0.5, 'probability of a horizontal flip', **_SHARE)
    vflip: float = setting(0.0, 'probability of a vertical flip', **_SHARE)
    color_jitter: float = setting(0.4, 'colour jitter', low=0, metavar='PCT')
    color_jitter_prob: Optional[float] = setting(None, 'probability of colour jitter', **_SHARE, metavar='PCT')
    grayscale_prob: Optional[float] = setting(None, 'probability of a grey image', **_SHARE, metavar='PCT')
    gaussian_blur_prob: Optional[float] = setting(None, 'probability of a blur', **_SHARE, metavar='PCT')
    aa: Optional[str] = setting(
        None, 'AutoAugment policy, e.g. original, v0, rand-m9-mstd0.5-inc1', check=policy_problem, metavar='NAME')
    aug_repeats: float = setting(0, 'repeated augmentation, distributed only', low=0)
    aug_splits: int = setting(0, 'augmentation splits, 0 or at least 2', low=0, check=_splits_problem)
    jsd_loss: bool = setting(False, 'Jensen-Shannon loss over --aug-splits')
    bce_loss: bool = setting(False, 'binary cross-entropy')
    bce_sum: bool = setting(False, 'sum binary cross-entropy over classes')
    bce_target_thresh: Optional[float] = setting(None, 'threshold that makes soft targets binary', **_SHARE)
    bce_pos_weight: Optional[float] = setting(None, 'weight of positive targets', low=0)
    reprob: float = setting(0.0, 'probability of random erasing', **_SHARE, metavar='PCT')
    remode: str = setting('pixel', 'fill of random erasing', choices=('const', 'rand', 'pixel'))
    recount: int = setting(1, 'regions of random erasing', low=1)
    resplit: bool = setting(False, 'do not erase in the first augmentation split')
    mixup: float = setting(0.0, 'mixup alpha', low=0, default_help='0, off')
    cutmix: float = setting(0.0, 'cutmix alpha', low=0, default_help='0, off')
    cutmix_minmax: Optional[Tuple[float, ...]] = setting(
        None, 'cutmix size range, overrides its alpha', **_SHARE, ordered=True, nargs=2)
    mixup_prob: float = setting(1.0, 'probability of mixup or cutmix', **_SHARE)
    mixup_switch_prob: float = setting(0.5, 'probability of cutmix where both are on', **_SHARE)
    mixup_mode: str = setting('batch', 'mix by batch, pair or image', choices=('batch', 'pair', 'elem', 'half'))
    smoothing: float = setting(0.1, 'label smoothing', low=0, below=1)
    train_interpolation: str = setting(
        'random', 'interpolation in training, \'\' for that of evaluation', choices=(*_INTERPOLATIONS, 'random'),
        metavar='NAME')

    @property
    def is_mixing(self) -> bool:
        """Whether images are mixed with others of their batch, and their labels too."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None


@dataclass(frozen=True)
class NormSettings(Settings):
    """Settings of batch norms."""
    title = 'Batch norm parameters'
    bn_momentum: Optional[float] = setting(None, 'momentum of every batch norm, main and aux', **_SHARE)
    bn_eps: Optional[float] = setting(None, 'epsilon of every batch norm, main and aux', above=0)
    split_bn: bool = setting(False, 'fine-grained AdvProp: an aux norm for each augmented part of --aug-splits, too')
    sync_bn: bool = setting(False, 'take batch-norm statistics over all processes')
    dist_bn: str = setting(
        'reduce', 'make running statistics equal on all processes after an epoch', choices=('broadcast', 'reduce', ''))


@dataclass(frozen=True)
class EmaSettings(Settings):
    """An average of the weights over updates."""
    title = 'Model exponential moving average parameters'
    model_ema: bool = setting(False, 'keep an exponential moving average of the weights')
    model_ema_force_cpu: bool = setting(False, 'keep it on the CPU, without validating it')
    model_ema_decay: float = setting(0.9998, 'decay of the average', **_SHARE)
    model_ema_warmup: bool = setting(False, 'warm the decay up')


@dataclass(frozen=True)
class RunSettings(Settings):
    """What is logged, kept and published."""
    title = 'Miscellaneous parameters'
    dry_run: bool = setting(False, 'build everything, print the plan of the run, and train and write nothing')
    log_interval: int = setting(50, 'updates between log lines', low=1, metavar='N')
    recovery_interval: int = setting(0, 'updates between recovery checkpoints', low=0, metavar='N')
    checkpoint_hist: int = setting(10, 'checkpoints to keep', low=1, metavar='N')
    save_images: bool = setting(
        False, 'save a training batch as a picture at every log interval, and what was made of its images')
    output: str = setting('', 'output folder', metavar='PATH', default_help='./output/train')
    experiment: str = setting('', 'sub-folder of the output', metavar='NAME', default_help='date, model and size')
    push_to_hub: str = setting(
        '', 'publish the best checkpoint on the Hugging Face Hub at the end', metavar='user/name')
    hub_private: bool = setting(False, 'make the repository private')
    log_to: Tuple[str, ...] = setting(
        (), 'send the metrics of each epoch there, too', choices=tuple(TRACKERS), nargs='+')
    log_wandb: bool = setting(False, 'the same as --log-to wandb')
    wandb_project: Optional[str] = setting(None, 'project of wandb and trackio')
    wandb_tags: Tuple[str, ...] = setting((), 'wandb tags', nargs='+')
    wandb_resume_id: str = setting('', 'wandb run to resume', metavar='ID')

    @property
    def trackers(self) -> List[str]:
        """Names of the trackers, each once."""
        return list(dict.fromkeys([*self.log_to, *(['wandb'] if self.log_wandb else [])]))


@dataclass(frozen=True)
class TrainSettings(ProgramSettings):
    """All settings of a training run."""
    data: TrainDataSettings
    model: TrainModelSettings
    image: ImageSettings
    device: TrainDeviceSettings
    loader: TrainLoaderSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    augmentation: AugmentationSettings
    norm: NormSettings
    ema: EmaSettings
    validation: ValidationSettings
    run: RunSettings
    regime: RegimeSettings = field(metadata=dict(title='AdvProp parameters', flags=regime_flags))
