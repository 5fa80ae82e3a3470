"""What the command-line programs share: timm's flags that both take, YAML recipes, flags that are refused."""
import argparse
import difflib
import logging
import sys
from typing import Any, Dict, List, Mapping, Optional, Sequence

import yaml
from timm.utils import setup_default_logging

from .errors import InputError

__all__ = ['INTERPOLATIONS', 'ProgramParser', 'near_matches', 'parse_with_recipe', 'refuse_flags', 'setup_logging']

INTERPOLATIONS = ('', 'nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos', 'random')


class ProgramParser(argparse.ArgumentParser):
    """A parser that takes no abbreviated flags and hints at near matches of an unknown one."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, args: Optional[Sequence[str]] = None, namespace: Optional[argparse.Namespace] = None):
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(f'unknown argument {unknown[0]}{near_matches(unknown[0].split("=")[0], flags)}')
        if hasattr(namespace, 'data'):
            positional = vars(namespace).pop('data')
            namespace.data_dir = namespace.data_dir or positional
        return namespace

    def add_data_arguments(self, group: argparse._ArgumentGroup) -> None:
        """Add the flags that name a data set, and timm's positional form of `--data-dir`."""
        self.add_argument('data', nargs='?', metavar='DIR', help='same as --data-dir')
        add = group.add_argument
        add('--data-dir', metavar='DIR', help='root folder of the data set')
        add('--dataset', default='', metavar='NAME',
            help='"<type>/<name>" as timm\'s readers take it (default: folder)')
        add('--dataset-download', action='store_true', help='download torch/ and tfds/ data sets that allow it')
        add('--class-map', default='', metavar='FILE', help='file that maps class names to indices')
        add('--input-img-mode', default=None, help='PIL mode images are converted to')
        add('--input-key', default=None, help='key of the images in the data set')
        add('--target-key', default=None, help='key of the labels in the data set')
        add('--dataset-trust-remote-code', action='store_true', help='let a Hugging Face data set run its own code')

    def error(self, message: str) -> None:
        print(f'error: {message}', file=sys.stderr)
        sys.exit(2)


class _Refused(argparse.Action):
    # A flag of timm's script that this program does not take; const is the reason.
    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f'{option_string} is not supported: {self.const}.')


def setup_logging() -> None:
    """timm's log for command-line programs.

    Without a line for each HTTP request, since addresses of uploads are signed; and the Hub's client logs once.
    """
    setup_default_logging()
    logging.getLogger('huggingface_hub').propagate = False  # it has a handler of its own
    for library in ('httpx', 'httpx2'):
        logging.getLogger(library).setLevel(logging.WARNING)


def refuse_flags(parser: argparse.ArgumentParser, reasons: Mapping[str, Sequence[str]]) -> None:
    """Make a parser end with one line that says why for flags that timm's script has.

    Args:
        parser: The parser.
        reasons: For each reason, the flags it holds for, without dashes.
    """
    for reason, flags in reasons.items():
        for flag in flags:
            parser.add_argument(f'--{flag}', action=_Refused, nargs='*', const=reason, default=argparse.SUPPRESS,
                                help=argparse.SUPPRESS)


def parse_with_recipe(parser: ProgramParser, argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse a command line whose `-c/--config` names a YAML recipe; flags on the command line override the recipe.

    The recipe is parsed as if its entries stood on the command line, so types, choices and ranges hold for it too.

    Args:
        parser: The program's parser, with a `--config` flag.
        argv: Command line, `sys.argv[1:]` by default.

    Raises:
        InputError: The recipe cannot be read or has an unknown key.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument('-c', '--config', default='')
    config = config_parser.parse_known_args(argv)[0].config
    if config:
        argv = _recipe_argv(parser, config) + argv
    return parser.parse_args(argv)


def near_matches(word: str, known: Sequence[str]) -> str:
    """A hint at known words near a misspelt one, '' where there is none."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f' (did you mean {" or ".join(near)}?)' if near else ''


def _recipe_argv(parser: argparse.ArgumentParser, path: str) -> List[str]:
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    argv = []
    for key, value in _read_recipe(path).items():
        action = actions.get(str(key).replace('-', '_'))
        if action is None:
            raise InputError(f'{path}: unknown key {key!r}{near_matches(str(key), list(actions))}.')
        if isinstance(action, _Refused):
            if value:
                raise InputError(f'{path}: {key} is not supported: {action.const}. Remove it.')
        elif value is not None:
            argv += _flag_argv(action, key, value, path)
    return argv


def _read_recipe(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding='utf-8') as file:
            recipe = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'Cannot read the recipe {path}: {error}.') from error
    except yaml.YAMLError as error:
        raise InputError(f'{path} is not YAML: {" ".join(str(error).split())}.') from error
    if not isinstance(recipe, dict):
        raise InputError(f'{path} is not a recipe: it needs lines of the form "key: value".')
    return recipe


def _flag_argv(action: argparse.Action, key: str, value: Any, path: str) -> List[str]:
    flag = max(action.option_strings, key=len)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise InputError(f'{path}: {key} is true or false, not {value!r}.')
        return [flag] if value else []
    if isinstance(value, dict):
        value = [f'{name}={entry}' for name, entry in value.items()]
    if isinstance(value, (list, tuple)):
        if action.nargs in (None, '?'):
            raise InputError(f'{path}: {key} takes one value, not {value!r}.')
        return [flag, *map(str, value)] if value else []
    if action.nargs in (None, '?'):
        return [f'{flag}={value}']
    return [flag, str(value)]
