"""The data program: `python -m timm_advprop.data`.

    python -m timm_advprop.data digits DIR
    python -m timm_advprop.data fashion-mnist DIR [--source FOLDER] [--train N] [--holdout N] [--padding N]
    python -m timm_advprop.data solar-cells DIR [--source FOLDER] [--size N]

Writes DIR/train and DIR/validation. Images to choose settings by go to DIR/holdout: with --holdout N of Fashion-MNIST's
training set, always of the solar cells.
"""
from typing import Optional, Sequence

from ..engine.small_datasets import FASHION_MNIST_SOURCE, write_digits, write_fashion_mnist
from ..engine.solar_cells import SOLAR_CELL_SIZE, write_solar_cells
from ..errors import exits_on_input_error
from .parser import ProgramParser

__all__ = ['main']


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the program."""
    args = _parser().parse_args(argv)
    counts = args.write(args)
    print(f'{args.folder}: {", ".join(f"{count} {name}" for name, count in counts.items())} images')


def _parser() -> ProgramParser:
    parser = ProgramParser(
        prog='python -m timm_advprop.data',
        description='Write a small real data set as an image folder, DIR/train and DIR/validation. A folder that holds '
                    'the data set already is left as it is.')
    commands = parser.add_subparsers(metavar='{digits,fashion-mnist,solar-cells}', required=True)
    digits = commands.add_parser('digits', help='1,797 digits of 8x8 pixels, from scikit-learn')
    digits.set_defaults(write=lambda args: write_digits(args.folder))
    fashion = commands.add_parser('fashion-mnist', help='70,000 articles of 28x28 pixels, from idx.gz files')
    fashion.set_defaults(write=lambda args: write_fashion_mnist(
        args.folder, args.source, args.train, args.holdout, args.padding))
    cells = commands.add_parser('solar-cells', help='2,624 electroluminescence images, from the package elpv-dataset')
    cells.set_defaults(write=lambda args: write_solar_cells(args.folder, args.source, args.size))
    cells.add_argument('--source', metavar='FOLDER', help='folder of labels.csv (default: in the package elpv-dataset)')
    cells.add_argument('--size', type=int, default=SOLAR_CELL_SIZE, metavar='N',
                       help='width and height of the images (default: %(default)s)')
    for command in (digits, fashion, cells):
        command.add_argument('folder', metavar='DIR', help='folder to write')
    add = fashion.add_argument
    add('--source', default=FASHION_MNIST_SOURCE, metavar='FOLDER',
        help='folder of the idx.gz files (default: %(default)s, of Debian\'s package dataset-fashion-mnist)')
    add('--train', type=int, metavar='N', help='training images (default: all)')
    add('--holdout', type=int, default=0, metavar='N', help='images of the training set to hold out (default: 0)')
    add('--padding', type=int, default=0, metavar='N',
        help='black border around training images, for crops at random places (default: 0)')
    return parser
