"""Prints the zoo: `python -m timm_advprop.models [PATTERN …]`."""
import sys
from fnmatch import fnmatch
from typing import Iterable, Mapping, Optional, Sequence

from timm.models import model_entrypoint
from tqdm import tqdm

from ..errors import InputError, exits_on_input_error
from ..models import ZooEntry, describe_model, left_out_models, split_models
from .parser import ProgramParser

__all__ = ['main']

_COLUMNS = ('model', 'built on', 'main params', 'aux params', 'split norms', 'weights', 'input')
_NUMBERS = '{:>13}  {:>10}  {:>11}  {:18}  {}'
_PROGRESS_INTERVAL = 10.  # seconds


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Print the zoo, or the architectures of timm that are not in it."""
    args = _create_parser().parse_args(argv)
    models = left_out_models() if args.left_out else split_models()
    chosen = _choose(models, args.patterns)
    (_print_reasons if args.left_out else _print_models)(chosen)


def _create_parser() -> ProgramParser:
    parser = ProgramParser(
        prog='python -m timm_advprop.models',
        description='Lists the *_ap models: name, the timm architecture that it is built on, parameters, split norms '
                    '(batch norms, or layer norms and their kin), weights, input size. The whole zoo takes a minute or '
                    'two.')
    parser.add_argument('patterns', nargs='*', metavar='PATTERN', help="wildcards of names, such as 'resnet*' (all)")
    parser.add_argument('--left-out', action='store_true', help="list timm's models that have no *_ap model, and why")
    return parser


def _choose(models: Mapping[str, str], patterns: Sequence[str]) -> Mapping[str, str]:
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in models):
            raise InputError(f"No model matches {pattern}. Patterns are wildcards: '*{pattern.strip('*')}*'.")
    return {name: models[name] for name in models if any(fnmatch(name, pattern) for pattern in patterns or ['*'])}


def _print_reasons(left_out: Mapping[str, str]) -> None:
    width = max(map(len, left_out))
    print('\n'.join(f'{name:{width}}  {reason}' for name, reason in left_out.items()))


def _print_models(models: Mapping[str, str]) -> None:
    layout = f'{{:{max(map(len, models))}}}  {{:{max(map(len, models.values()))}}}  {_NUMBERS}'
    print(layout.format(*_COLUMNS))
    for name in _with_progress(models):
        print(layout.format(*_cells(describe_model(name))), flush=True)
    families = {model_entrypoint(name).__module__ for name in models}
    print(f'{len(models)} models of {len(families)} families', file=sys.stderr)
    renamed = [f'{name} is built on {base}' for name, base in models.items() if name != f'{base}_ap']
    if renamed:
        print(f'{"; ".join(renamed)}: the architecture of the published AdvProp weights. Any other NAME_ap is built on '
              'NAME.', file=sys.stderr)


def _with_progress(names: Iterable[str]) -> Iterable[str]:
    # on a terminal the rows show it
    return tqdm(
        names, unit='models', leave=False, disable=sys.stdout.isatty(),
        delay=_PROGRESS_INTERVAL, mininterval=_PROGRESS_INTERVAL)


def _cells(entry: ZooEntry) -> Sequence[str]:
    norms = f'{entry.batch_norms} batch' if entry.batch_norms else f'{entry.other_norms} layer'
    weights = [*entry.advprop_weights, *([f'{len(entry.plain_weights)} plain'] if entry.plain_weights else [])]
    return (
        entry.model, entry.base, f'{entry.main_parameters:,}', f'{entry.aux_parameters:,}', norms,
        ' + '.join(weights) or 'none', 'x'.join(map(str, entry.input_size)))
