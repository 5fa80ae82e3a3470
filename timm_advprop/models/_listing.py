"""Prints the zoo: `python -m timm_advprop.models [PATTERN …]`."""
import argparse
import os
import sys
import time
from fnmatch import fnmatch
from typing import Dict, Iterator, NamedTuple, Optional, Sequence

from timm.models import get_pretrained_cfg, list_pretrained, model_entrypoint
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError, exits_on_input_error
from ..norms import split_norms, split_state_dict
from ._builder import base_of, left_out_models, split_models
from ._skeleton import create_skeleton

__all__ = ['ZooEntry', 'describe_model', 'main']

_PROGRESS_INTERVAL = 10.
_COLUMNS = ('model', 'base', 'main params', 'aux params', 'split norms', 'weights', 'input')
_NUMBERS = '{:>13}  {:>10}  {:>11}  {:18}  {}'


class ZooEntry(NamedTuple):
    """What the zoo says of a model. Parameters are counted, not in millions; input size is (channels, height, width).

    `batch_norms` and `other_norms` are the numbers of norms that are split; `advprop_weights` and `plain_weights` the
    tags of the weights that can be loaded.
    """
    model: str
    base: str
    main_parameters: int
    aux_parameters: int
    batch_norms: int
    other_norms: int
    advprop_weights: Sequence[str]
    plain_weights: Sequence[str]
    input_size: Sequence[int]


def describe_model(variant: str) -> ZooEntry:
    """Describe an `*_ap` model. It is built without values, which takes a tenth of a second and no memory.

    Args:
        variant: Registered name of the model.
    """
    model = create_skeleton(variant)
    main, aux = split_state_dict(dict(model.named_parameters()))
    norms = list(split_norms(model))
    batch_norms = sum(isinstance(norm, _BatchNorm) for norm in norms)
    tags = [name.partition('.')[2] for name in list_pretrained(f'{variant}.*')]
    return ZooEntry(
        model=variant,
        base=base_of(variant),
        main_parameters=sum(parameter.numel() for parameter in main.values()),
        aux_parameters=sum(parameter.numel() for parameter in aux.values()),
        batch_norms=batch_norms,
        other_norms=len(norms) - batch_norms,
        advprop_weights=[tag for tag in tags if not tag.startswith('plain')],
        plain_weights=[tag for tag in tags if tag.startswith('plain')],
        input_size=get_pretrained_cfg(variant).input_size,
    )


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Print the zoo, or the architectures of timm that are not in it."""
    try:
        _print_models(argv)
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_models(argv: Optional[Sequence[str]]) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m timm_advprop.models',
        description='Lists the *_ap models: name, timm architecture, parameters, split norms (batch norms, or layer '
                    'norms and their kin), weights, input size. The whole zoo takes a minute or two.')
    parser.add_argument('patterns', nargs='*', metavar='PATTERN', help="wildcards of names, such as 'resnet*' (all)")
    parser.add_argument('--left-out', action='store_true', help="list timm's models that have no *_ap model, and why")
    args = parser.parse_args(argv)
    models: Dict[str, str] = left_out_models() if args.left_out else split_models()
    for pattern in args.patterns:
        if not any(fnmatch(name, pattern) for name in models):
            raise InputError(f"No model matches {pattern}. Patterns are wildcards: '*{pattern.strip('*')}*'.")
    chosen = [name for name in models if not args.patterns or any(fnmatch(name, pattern) for pattern in args.patterns)]
    if args.left_out:
        width = max(map(len, chosen))
        print('\n'.join(f'{name:{width}}  {models[name]}' for name in chosen))
        return
    layout = f'{{:{max(map(len, chosen))}}}  {{:{max(len(models[name]) for name in chosen)}}}  {_NUMBERS}'
    print(layout.format(*_COLUMNS))
    for name in _with_progress(chosen):
        print(layout.format(*_cells(describe_model(name))), flush=True)
    families = {model_entrypoint(name).__module__ for name in chosen}
    print(f'{len(chosen)} models of {len(families)} families', file=sys.stderr)


def _cells(entry: ZooEntry) -> Sequence[str]:
    norms = f'{entry.batch_norms} batch' if entry.batch_norms else f'{entry.other_norms} layer'
    weights = [*entry.advprop_weights, *([f'{len(entry.plain_weights)} plain'] if entry.plain_weights else [])]
    return (
        entry.model, entry.base, f'{entry.main_parameters:,}', f'{entry.aux_parameters:,}', norms,
        ' + '.join(weights) or 'none', 'x'.join(map(str, entry.input_size)))


def _with_progress(names: Sequence[str]) -> Iterator[str]:
    # On a terminal the rows show it.
    start = last = time.monotonic()
    for done, name in enumerate(names):
        yield name
        now = time.monotonic()
        if not sys.stdout.isatty() and now - last > _PROGRESS_INTERVAL:
            last = now
            left = (now - start) / (done + 1) * (len(names) - done - 1)
            print(f'{done + 1} of {len(names)} models, about {left:.0f} s left', file=sys.stderr)
