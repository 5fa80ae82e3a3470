"""Command line of the training program: timm's flags under timm's names and defaults, and the AdvProp group."""
import argparse
from typing import Optional, Sequence

from timm.utils import ParseKwargs

from ..arguments import INTERPOLATIONS, ProgramParser, parse_with_recipe, refuse_flags
from ..regimes.arguments import add_regime_arguments, number

__all__ = ['create_parser', 'parse_args']

_REFUSED = {
    'NaFlex models are not in the zoo': (
        'naflex-loader', 'naflex-train-seq-lens', 'naflex-max-seq-len', 'naflex-patch-sizes',
        'naflex-patch-size-probs', 'naflex-loss-scale', 'naflex-patchify-channels-first',
    ),
    'distillation is a regime of its own, which cannot be combined with AdvProp here': (
        'kd-model-name', 'kd-distill-type', 'kd-loss-type', 'distill-loss-weight', 'task-loss-weight',
        'kd-temperature', 'kd-student-feature-dim', 'kd-teacher-feature-dim', 'kd-token-distill-type',
    ),
    'a scripted model has only its clean route; use --torchcompile': ('torchscript',),
    'the fusers belong to TorchScript; use --torchcompile': ('fuser',),
    'timm\'s loaders do not repeat images, so it would average different ones': ('tta',),
    'scheduled resolutions are not built in; use timm\'s script through python -m timm_advprop.wrap': (
        'train-img-sizes', 'train-batch-sizes', 'train-size-probs', 'train-size-schedule',
        'train-size-schedule-spread', 'train-size-random-mix', 'train-batches-per-epoch', 'train-steps-per-epoch',
        'variable-batch-loss-scale',
    ),
}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line and its YAML recipe.

    Args:
        argv: Command line, `sys.argv[1:]` by default.

    Raises:
        InputError: The recipe or a combination of flags is wrong.
    """
    return parse_with_recipe(create_parser(), argv)


def create_parser() -> ProgramParser:
    """The training program's parser."""
    parser = ProgramParser(description='Train a timm model, with AdvProp or without.')
    parser.add_argument('-c', '--config', default='', metavar='FILE', help='YAML recipe; flags override it')
    for add_group in (
            _add_dataset, _add_model, _add_device, _add_optimizer, _add_schedule, _add_augmentation, _add_batch_norm,
            _add_ema, _add_misc, add_regime_arguments,
    ):
        add_group(parser)
    refuse_flags(parser, _REFUSED)
    return parser


def _add_dataset(parser):
    group = parser.add_argument_group('Dataset parameters')
    parser.add_data_arguments(group)
    add = group.add_argument
    add('--train-split', default='train', metavar='NAME', help='training split (default: train)')
    add('--val-split', default='validation', metavar='NAME', help='validation split, "" for none')
    add('--train-num-samples', default=None, type=int, metavar='N', help='training samples of an iterable data set')
    add('--val-num-samples', default=None, type=int, metavar='N', help='validation samples of an iterable data set')


def _add_model(parser):
    add = parser.add_argument_group('Model parameters').add_argument
    add('--model', default='resnet50', metavar='MODEL', help='model to train (default: resnet50)')
    add('--pretrained', action='store_true', help='start from published weights')
    add('--pretrained-path', default=None, metavar='FILE', help='take FILE for the published weights (adapts the head)')
    add('--initial-checkpoint', default='', metavar='FILE', help='load FILE into the model as it is')
    add('--resume', default='', metavar='FILE', help='continue the run of a checkpoint')
    add('--no-resume-opt', action='store_true', help='resume the model without the optimizer')
    add('--num-classes', type=number(1, kind=int), default=None, metavar='N', help='classes (default: the model\'s)')
    add('--gp', default=None, metavar='POOL', help='global pooling: fast, avg, max, avgmax or avgmaxc')
    add('--img-size', type=number(1, kind=int), default=None, metavar='N', help='image size (default: the model\'s)')
    add('--in-chans', type=number(1, kind=int), default=None, metavar='N', help='image channels (default: 3)')
    add('--input-size', default=None, nargs=3, type=int, metavar='N', help='channels, height and width of images')
    add('--crop-pct', default=None, type=float, metavar='N', help='centre crop of validation images')
    add('--mean', type=float, nargs='+', default=None, metavar='MEAN', help='mean pixel value, in 0-1')
    add('--std', type=float, nargs='+', default=None, metavar='STD', help='standard deviation of pixels, in 0-1')
    add('--interpolation', default='', choices=INTERPOLATIONS, metavar='NAME',
        help='interpolation for resizing (default: the model\'s)')
    add('-b', '--batch-size', type=number(1, kind=int), default=128, metavar='N',
        help='clean images in a batch, for each process (default: 128)')
    add('-vb', '--validation-batch-size', type=number(1, kind=int), default=None, metavar='N',
        help='validation batch size (default: --batch-size)')
    add('--channels-last', action='store_true', help='channels-last memory format')
    add('--grad-accum-steps', type=number(1, kind=int), default=1, metavar='N', help='batches for each update')
    add('--grad-checkpointing', action='store_true', help='recompute activations in the backward pass')
    add('--fast-norm', action='store_true', help='timm\'s experimental fast norms')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='further model arguments, key=value')
    add('--head-init-scale', default=None, type=float, help='factor on the classifier\'s initial weights')
    add('--head-init-bias', default=None, type=float, help='initial bias of the classifier')
    add('--torchcompile', nargs='?', default=None, const='inductor', metavar='BACKEND',
        help='compile the model (backend default: inductor)')
    add('--torchcompile-mode', default=None, help='mode of torch.compile')


def _add_device(parser):
    add = parser.add_argument_group('Device parameters').add_argument
    add('--device', default='cuda', help='device; the CPU is taken where there is no accelerator (default: cuda)')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='lower precision (default: float16)')
    add('--model-dtype', default=None, choices=('float32', 'float16', 'bfloat16'), help='precision without AMP')
    add('--no-ddp-bb', action='store_true', help='do not broadcast buffers in DDP')
    add('--synchronize-step', action='store_true', help='wait for the device after each step')
    add('--local_rank', default=0, type=int, help=argparse.SUPPRESS)
    add('--device-modules', default=None, nargs='+', help='modules to import for a device\'s backend')


def _add_optimizer(parser):
    add = parser.add_argument_group('Optimizer parameters').add_argument
    add('--opt', default='sgd', metavar='OPTIMIZER', help='optimizer, by timm\'s names (default: sgd)')
    add('--opt-eps', default=None, type=float, metavar='EPSILON', help='optimizer epsilon')
    add('--opt-betas', default=None, type=float, nargs='+', metavar='BETA', help='optimizer betas')
    add('--momentum', type=float, default=0.9, metavar='M', help='momentum (default: 0.9)')
    add('--weight-decay', type=float, default=2e-5, help='weight decay (default: 2e-5)')
    add('--clip-grad', type=float, default=None, metavar='NORM', help='clip gradients (default: no clipping)')
    add('--clip-mode', default='norm', choices=('norm', 'value', 'agc'), help='kind of clipping (default: norm)')
    add('--layer-decay', type=float, default=None, help='learning-rate decay by layer')
    add('--layer-decay-min-scale', type=float, default=0, help='lowest layer-decay scale (default: 0)')
    add('--layer-decay-no-opt-scale', type=float, default=None, help='layer-decay scale below which layers are frozen')
    add('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, help='further optimizer arguments, key=value')


def _add_schedule(parser):
    add = parser.add_argument_group('Learning rate schedule parameters').add_argument
    add('--sched', default='cosine', metavar='SCHEDULER', help='scheduler, by timm\'s names (default: cosine)')
    add('--sched-on-updates', action='store_true', help='step the scheduler on updates, not on epochs')
    add('--lr', type=float, default=None, metavar='LR', help='learning rate; overrides --lr-base')
    add('--lr-base', type=float, default=0.1, metavar='LR',
        help='learning rate at a global batch of --lr-base-size (default: 0.1)')
    add('--lr-base-size', type=number(1, kind=int), default=256, metavar='N', help='batch of --lr-base (default: 256)')
    add('--lr-base-scale', default='', choices=('', 'linear', 'sqrt'),
        help='how the learning rate grows with the batch (default: by optimizer)')
    add('--lr-noise', type=float, nargs='+', default=None, metavar='PCT', help='learning-rate noise on/off epochs')
    add('--lr-noise-pct', type=float, default=0.67, metavar='PCT', help='limit of the noise (default: 0.67)')
    add('--lr-noise-std', type=float, default=1.0, metavar='STD', help='deviation of the noise (default: 1)')
    add('--lr-cycle-mul', type=float, default=1.0, metavar='M', help='factor on each cycle\'s length (default: 1)')
    add('--lr-cycle-decay', type=float, default=0.5, metavar='M', help='factor on each cycle\'s rate (default: 0.5)')
    add('--lr-cycle-limit', type=int, default=1, metavar='N', help='number of cycles (default: 1)')
    add('--lr-k-decay', type=float, default=1.0, help='k of k-decay, for cosine and poly (default: 1)')
    add('--warmup-lr', type=float, default=1e-5, metavar='LR', help='first rate of the warm-up (default: 1e-5)')
    add('--min-lr', type=float, default=0, metavar='LR', help='lowest rate (default: 0)')
    add('--epochs', type=number(1, kind=int), default=300, metavar='N', help='epochs to train (default: 300)')
    add('--epoch-repeats', type=float, default=0., metavar='N', help='times an epoch repeats its data set')
    add('--start-epoch', default=None, type=number(0, kind=int), metavar='N', help='first epoch, overrides a resume\'s')
    add('--decay-milestones', default=[90, 180, 270], type=int, nargs='+', metavar='N', help='epochs of multistep')
    add('--decay-epochs', type=float, default=90, metavar='N', help='epochs between decays (default: 90)')
    add('--warmup-epochs', type=int, default=5, metavar='N', help='epochs of warm-up (default: 5)')
    add('--warmup-prefix', action='store_true', help='warm up before the schedule, not within it')
    add('--cooldown-epochs', type=int, default=0, metavar='N', help='epochs at --min-lr at the end (default: 0)')
    add('--patience-epochs', type=int, default=10, metavar='N', help='patience of plateau (default: 10)')
    add('--adv-budget', choices=('epochs', 'vanilla'), default=None,
        help='train all --epochs, or as many as cost what --epochs of vanilla training do; the schedule follows '
             '(default: epochs, fast-advprop: vanilla)')
    add('--decay-rate', '--dr', type=float, default=0.1, metavar='RATE', help='factor of a decay (default: 0.1)')


def _add_augmentation(parser):
    add = parser.add_argument_group('Augmentation and regularization parameters').add_argument
    add('--no-aug', action='store_true', help='no training augmentation at all')
    add('--train-crop-mode', default=None, help='how training images are cropped')
    add('--scale', type=float, nargs=2, default=[0.08, 1.0], metavar='PCT', help='random crop scale')
    add('--ratio', type=float, nargs=2, default=[3. / 4., 4. / 3.], metavar='RATIO', help='random crop aspect')
    add('--hflip', type=float, default=0.5, help='probability of a horizontal flip (default: 0.5)')
    add('--vflip', type=float, default=0., help='probability of a vertical flip (default: 0)')
    add('--color-jitter', type=float, default=0.4, metavar='PCT', help='colour jitter (default: 0.4)')
    add('--color-jitter-prob', type=float, default=None, metavar='PCT', help='probability of colour jitter')
    add('--grayscale-prob', type=float, default=None, metavar='PCT', help='probability of a grey image')
    add('--gaussian-blur-prob', type=float, default=None, metavar='PCT', help='probability of a blur')
    add('--aa', default=None, metavar='NAME', help='AutoAugment policy, e.g. original, v0, rand-m9-mstd0.5-inc1')
    add('--aug-repeats', type=float, default=0, help='repeated augmentation, distributed only (default: 0)')
    add('--aug-splits', type=int, default=0, help='augmentation splits, 0 or at least 2 (default: 0)')
    add('--jsd-loss', action='store_true', help='Jensen-Shannon loss over --aug-splits')
    add('--bce-loss', action='store_true', help='binary cross-entropy')
    add('--bce-sum', action='store_true', help='sum binary cross-entropy over classes')
    add('--bce-target-thresh', type=float, default=None, help='threshold that makes soft targets binary')
    add('--bce-pos-weight', type=float, default=None, help='weight of positive targets')
    add('--reprob', type=float, default=0., metavar='PCT', help='probability of random erasing (default: 0)')
    add('--remode', default='pixel', choices=('const', 'rand', 'pixel'), help='fill of random erasing (default: pixel)')
    add('--recount', type=int, default=1, help='regions of random erasing (default: 1)')
    add('--resplit', action='store_true', help='do not erase in the first augmentation split')
    add('--mixup', type=float, default=0., help='mixup alpha (default: 0, off)')
    add('--cutmix', type=float, default=0., help='cutmix alpha (default: 0, off)')
    add('--cutmix-minmax', type=float, nargs=2, default=None, help='cutmix size range, overrides its alpha')
    add('--mixup-prob', type=float, default=1.0, help='probability of mixup or cutmix (default: 1)')
    add('--mixup-switch-prob', type=float, default=0.5, help='probability of cutmix where both are on (default: 0.5)')
    add('--mixup-mode', default='batch', choices=('batch', 'pair', 'elem', 'half'), help='mix by batch, pair or image')
    add('--mixup-off-epoch', default=0, type=int, metavar='N', help='epoch that ends mixup (default: 0, never)')
    add('--smoothing', type=float, default=0.1, help='label smoothing (default: 0.1)')
    add('--train-interpolation', default='random', choices=INTERPOLATIONS, metavar='NAME',
        help='interpolation in training (default: random)')
    add('--drop', type=float, default=0., metavar='PCT', help='dropout rate (default: 0)')
    add('--drop-connect', type=float, default=None, metavar='PCT', help='deprecated name of --drop-path')
    add('--drop-path', type=float, default=None, metavar='PCT', help='stochastic depth rate')
    add('--drop-block', type=float, default=None, metavar='PCT', help='drop block rate')


def _add_batch_norm(parser):
    add = parser.add_argument_group('Batch norm parameters').add_argument
    add('--bn-momentum', type=float, default=None, help='momentum of every batch norm, main and aux')
    add('--bn-eps', type=float, default=None, help='epsilon of every batch norm, main and aux')
    add('--split-bn', action='store_true',
        help='fine-grained AdvProp: an aux norm for each augmented part of --aug-splits, too')
    add('--sync-bn', action='store_true', help='take batch-norm statistics over all processes')
    add('--dist-bn', default='reduce', choices=('broadcast', 'reduce', ''),
        help='make running statistics equal on all processes after an epoch (default: reduce)')


def _add_ema(parser):
    add = parser.add_argument_group('Model exponential moving average parameters').add_argument
    add('--model-ema', action='store_true', help='keep an exponential moving average of the weights')
    add('--model-ema-force-cpu', action='store_true', help='keep it on the CPU, without validating it')
    add('--model-ema-decay', type=float, default=0.9998, help='decay of the average (default: 0.9998)')
    add('--model-ema-warmup', action='store_true', help='warm the decay up')


def _add_misc(parser):
    add = parser.add_argument_group('Miscellaneous parameters').add_argument
    add('--seed', type=int, default=42, metavar='S', help='random seed (default: 42)')
    add('--worker-seeding', default='all', help='seeding of the loader\'s workers (default: all)')
    add('--log-interval', type=number(1, kind=int), default=50, metavar='N', help='updates between log lines')
    add('--val-interval', type=number(1, kind=int), default=1, metavar='N', help='epochs between validations')
    add('--recovery-interval', type=int, default=0, metavar='N', help='updates between recovery checkpoints')
    add('--checkpoint-hist', type=number(1, kind=int), default=10, metavar='N', help='checkpoints to keep')
    add('-j', '--workers', type=number(0, kind=int), default=4, metavar='N', help='loader processes (default: 4)')
    add('--save-images', action='store_true', help='save a training batch as a picture at every log interval')
    add('--pin-mem', action='store_true', help='pin host memory in the loader')
    add('--no-prefetcher', action='store_true', help='without timm\'s prefetching loader')
    add('--output', default='', metavar='PATH', help='output folder (default: ./output/train)')
    add('--experiment', default='', metavar='NAME', help='sub-folder of the output (default: date, model and size)')
    add('--eval-metric', default='top1', choices=('top1', 'top5', 'loss'), help='metric of the best checkpoint')
    add('--use-multi-epochs-loader', action='store_true', help='keep the loader\'s workers between epochs')
    add('--push-to-hub', default='', metavar='user/name',
        help='publish the best checkpoint on the Hugging Face Hub at the end')
    add('--hub-private', action='store_true', help='make the repository private')
    add('--log-wandb', action='store_true', help='log to Weights & Biases')
    add('--wandb-project', default=None, help='wandb project')
    add('--wandb-tags', default=[], nargs='+', help='wandb tags')
    add('--wandb-resume-id', default='', metavar='ID', help='wandb run to resume')
