"""Command line of the validation program: timm's flags under timm's names and defaults, the route and the attack."""
import argparse
from typing import Optional, Sequence

from timm.utils import ParseKwargs

from ..arguments import INTERPOLATIONS, ProgramParser, refuse_flags
from ..regimes.arguments import add_attack_arguments, number

__all__ = ['create_parser', 'parse_args']

_REFUSED = {
    'NaFlex models are not in the zoo': ('naflex-loader', 'naflex-max-seq-len'),
    'the fusers belong to TorchScript; use --torchcompile': ('fuser',),
    'use --torchcompile': ('aot-autograd',),
    'images are read by torchvision; for TensorFlow\'s preprocessing use timm\'s own script': ('tf-preprocessing',),
}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        argv: Command line, `sys.argv[1:]` by default.
    """
    return create_parser().parse_args(argv)


def create_parser() -> ProgramParser:
    """The validation program's parser."""
    parser = ProgramParser(description='Validate timm models, with AdvProp or without, clean and under attack.')
    _add_dataset(parser)
    _add_model(parser)
    _add_run(parser)
    add_attack_arguments(parser)
    refuse_flags(parser, _REFUSED)
    return parser


def _add_dataset(parser):
    group = parser.add_argument_group('Dataset parameters')
    parser.add_data_arguments(group)
    add = group.add_argument
    add('--split', default='validation', metavar='NAME', help='split (default: validation)')
    add('--num-samples', default=None, type=int, metavar='N', help='samples of an iterable data set')
    add('--real-labels', default='', metavar='FILE', help='ImageNet "real" labels, a JSON file')
    add('--valid-labels', default='', metavar='FILE', help='file with the class indices that the labels stand for')
    add('--metrics-avg', default=None, choices=('micro', 'macro', 'weighted'),
        help='report precision, recall and F1 with this average (needs scikit-learn)')


def _add_model(parser):
    add = parser.add_argument_group('Model parameters').add_argument
    add('--model', '-m', default='dpn92', metavar='NAME',
        help='model, "all", a name with wildcards, or a file of names (default: dpn92)')
    add('--pretrained', action='store_true', help='load published weights (implied where there is no --checkpoint)')
    add('--checkpoint', default='', metavar='PATH', help='checkpoint file, or a folder of checkpoints')
    add('--use-ema', action='store_true', help='use the averaged weights of the checkpoint')
    add('--route', default='clean', choices=('clean', 'aux'), help='norms that images pass (default: clean)')
    add('--num-classes', type=number(1, kind=int), default=None, help='classes of the model')
    add('--gp', default=None, metavar='POOL', help='global pooling: fast, avg, max, avgmax or avgmaxc')
    add('--img-size', default=None, type=number(1, kind=int), metavar='N', help='image size (default: the model\'s)')
    add('--in-chans', type=number(1, kind=int), default=None, metavar='N', help='image channels (default: 3)')
    add('--input-size', default=None, nargs=3, type=int, metavar='N', help='channels, height and width of images')
    add('--use-train-size', action='store_true', help='the model\'s training size where its test size differs')
    add('--crop-pct', default=None, type=float, metavar='N', help='centre crop')
    add('--crop-mode', default=None, choices=('squash', 'border', 'center'), help='crop mode')
    add('--crop-border-pixels', type=int, default=None, help='pixels to crop from the border')
    add('--mean', type=float, nargs='+', default=None, metavar='MEAN', help='mean pixel value, in 0-1')
    add('--std', type=float, nargs='+', default=None, metavar='STD', help='standard deviation of pixels, in 0-1')
    add('--interpolation', default='', choices=INTERPOLATIONS, metavar='NAME',
        help='interpolation for resizing (default: the model\'s)')
    add('--test-pool', action='store_true', help='test-time pooling of larger images')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='further model arguments, key=value')
    add('--fast-norm', action='store_true', help='timm\'s experimental fast norms')
    add('--reparam', action='store_true', help='reparameterise the plain model')
    add('--torchcompile', nargs='?', default=None, const='inductor', metavar='BACKEND', help='compile the model')
    add('--torchcompile-mode', default=None, help='mode of torch.compile')
    add('--torchscript', action='store_true', help='script the model (clean route only)')


def _add_run(parser):
    add = parser.add_argument_group('Run parameters').add_argument
    add('-b', '--batch-size', default=256, type=number(1, kind=int), metavar='N', help='batch size (default: 256)')
    add('-j', '--workers', default=4, type=number(0, kind=int), metavar='N', help='loader processes (default: 4)')
    add('--device', default='cuda', help='device; the CPU is taken where there is no accelerator (default: cuda)')
    add('--num-gpu', type=number(1, kind=int), default=1, help='GPUs to use (default: 1)')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='lower precision (default: float16)')
    add('--model-dtype', default=None, choices=('float32', 'float16', 'bfloat16'), help='precision without AMP')
    add('--channels-last', action='store_true', help='channels-last memory format')
    add('--no-prefetcher', action='store_true', help='without timm\'s prefetching loader')
    add('--pin-mem', action='store_true', help='pin host memory in the loader')
    add('--log-freq', default=10, type=number(1, kind=int), metavar='N', help='batches between progress lines')
    add('--results-file', default='', metavar='FILE', help='write the results to FILE')
    add('--results-format', default='csv', choices=('csv', 'json'), help='format of the results file (default: csv)')
    add('--retry', action='store_true', help='retry with a smaller batch where memory runs out')
    add('--seed', type=int, default=42, metavar='S', help='random seed (default: 42)')
