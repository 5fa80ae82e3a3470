"""What the command-line programs share: flags from settings, YAML recipes, flags that are refused."""
import argparse
import logging
import sys
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Type, TypeVar

import yaml
from timm.utils import ParseKwargs, setup_default_logging

from ..errors import DEBUG_FLAG, InputError, as_input_error, near_matches
from ..regimes import RegimeSettings, unused_flags
from ..settings import ProgramSettings, Setting
from ..version import __version__
from .recipes import ListRecipes, find_recipe

__all__ = ['ProgramParser', 'parse_recipe', 'parse_settings', 'pass_over_unused', 'read_recipe', 'recipe_argv',
           'setup_logging']

_logger = logging.getLogger(__name__)

_Program = TypeVar('_Program', bound=ProgramSettings)


class ProgramParser(argparse.ArgumentParser):
    """A parser that takes no abbreviated flags, hints at near matches of an unknown one, and errs in one line."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.add_argument(DEBUG_FLAG, action=_Noted, help='show the traceback of an error')
        self.add_argument('--version', action='version', version=f'timm-advprop {__version__}', dest=argparse.SUPPRESS,
                          help='print the version of the package')

    def parse_args(self, args: Optional[Sequence[str]] = None, namespace: Any = None) -> argparse.Namespace:
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(f'unknown argument {unknown[0]}{near_matches(unknown[0].split("=")[0], flags)}')
        if hasattr(namespace, 'data'):  # timm's positional form of --data-dir
            positional = vars(namespace).pop('data')
            namespace.data_dir = namespace.data_dir or positional
        return namespace

    def add_settings(self, title: str, flags: Mapping[str, Setting]) -> None:
        """Add a group of flags.

        Args:
            title: Title of the group in `--help`.
            flags: The options by their flags.
        """
        group = self.add_argument_group(title)
        for flag, about in flags.items():
            names = dict.fromkeys((*(name for name in about.flags if not name.startswith('--')), flag, *about.flags))
            group.add_argument(*names, **_argument(about))

    def refuse(self, reasons: Mapping[str, Sequence[str]]) -> None:
        """End with one line that says why for flags that timm's script has.

        Args:
            reasons: For each reason, the flags it holds for, without dashes. The first turns on what the others are
                settings of: a recipe, as timm's script writes one for each run, may have these.
        """
        for reason, (switch, *settings) in reasons.items():
            for flag in (switch, *settings):
                self.add_argument(f'--{flag}', action=_Refused, nargs='*', const=reason, default=argparse.SUPPRESS,
                                  help=argparse.SUPPRESS, is_switch=flag == switch)

    def error(self, message: str) -> None:
        print(f'error: {message}', file=sys.stderr)
        sys.exit(2)


class _Noted(argparse.Action):
    # A flag that is no setting of the program: `exits_on_input_error` looks for it.
    def __init__(self, option_strings, dest, **kwargs: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        pass


class _Refused(argparse.Action):
    # A flag of timm's script that this program does not take; const is the reason.
    def __init__(self, *args: Any, is_switch: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.is_switch = is_switch

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f'{option_string} is not supported: {self.const}.')


class _Checked(argparse.Action):
    # Stores a value, or several, that `about` allows.
    def __init__(self, *args: Any, about: Setting, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.about = about

    def __call__(self, parser, namespace, values, option_string=None):
        problem = self.about.problem(values)
        if problem:
            given = ' '.join(map(str, values if isinstance(values, list) else [values]))
            raise argparse.ArgumentError(self, f'{problem}, got {given}')
        setattr(namespace, self.dest, values)


class _KeywordArguments(ParseKwargs):
    # Takes name=value.
    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value:
                raise argparse.ArgumentError(self, f'takes name=value, got {value!r}')
        super().__call__(parser, namespace, values, option_string)


class _OnceEach(yaml.SafeLoader):
    # Refuses a key that a mapping has twice, of which YAML's library takes the last.
    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            name = key.value.replace('-', '_')
            if name in seen:
                raise InputError(f'{self.name}: {key.value} is given twice, in line {key.start_mark.line + 1} again.')
            seen.add(name)
        return super().construct_mapping(node, deep)


def parse_settings(
        program: Type[_Program],
        description: str,
        refused: Mapping[str, Sequence[str]],
        argv: Optional[Sequence[str]] = None,
        takes_recipe: bool = False,
) -> _Program:
    """Parse the command line of a program with a data set.

    Args:
        program: Its settings, from which its flags follow.
        description: What it does.
        refused: Flags of timm's script that it does not take, by reason.
        argv: Command line, `sys.argv[1:]` by default.
        takes_recipe: `-c/--config` takes a YAML recipe, a file or a name; flags on the command line override it.

    Raises:
        InputError: The recipe cannot be read or has an unknown key, or flags do not go together.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = settings_parser(program, description, refused, takes_recipe)
    namespace = parse_recipe(parser, argv) if takes_recipe else parser.parse_args(argv)
    return as_input_error(program.from_values, vars(namespace))


def settings_parser(
        program: Type[ProgramSettings],
        description: str,
        refused: Mapping[str, Sequence[str]],
        takes_recipe: bool = False,
) -> ProgramParser:
    """The parser of `parse_settings`."""
    parser = ProgramParser(description=description)
    parser.add_argument('data', nargs='?', metavar='DIR', help='same as --data-dir')
    if takes_recipe:
        parser.add_argument('-c', '--config', default='', metavar='RECIPE',
                            help='YAML recipe, a file or a name; flags override it')
        parser.add_argument('--list-recipes', action=ListRecipes, help='list the names of recipes')
    for title, flags in program.flags():
        parser.add_settings(title, flags)
    parser.refuse(refused)
    return parser


def setup_logging() -> None:
    """timm's log for command-line programs.

    Without a line for each HTTP request, since addresses of uploads are signed; and the Hub's client logs once.
    """
    setup_default_logging()
    logging.getLogger('huggingface_hub').propagate = False  # it has a handler of its own
    for library in ('httpx', 'httpx2'):
        logging.getLogger(library).setLevel(logging.WARNING)


def parse_recipe(parser: ProgramParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line whose `-c/--config` takes a YAML recipe, a file or a name.

    The recipe is parsed as if its entries stood on the command line, so types, choices and ranges hold for it too.
    Where the command line takes another regime or source, settings of the recipe's own are passed over.

    Args:
        parser: The program's parser, with a `--config` flag.
        argv: Command line.
    """
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument('-c', '--config', default='')
    config = config_parser.parse_known_args(argv)[0].config
    if not config:
        return parser.parse_args(argv)
    path = find_recipe(config)
    # a flag with one value after the recipe's: a list at its end would take in what stands first on the command line
    namespace = parser.parse_args([*recipe_argv(parser, read_recipe(path), path), f'--config={config}', *argv])
    if 'lr' not in (typed := _typed(parser, argv)) and 'lr_base' in typed:
        namespace.lr = None  # a recipe's does not hold against it
    pass_over_unused(parser, namespace, argv, config)
    return namespace


def read_recipe(path: str) -> Dict[str, Any]:
    """The entries of a YAML recipe.

    Raises:
        InputError: It cannot be read, is no recipe, or has a key twice.
    """
    try:
        with open(path, encoding='utf-8') as file:
            recipe = yaml.load(file, _OnceEach)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'Cannot read the recipe {path}: {error}.') from error
    except (yaml.YAMLError, ValueError) as error:  # of a date that there is not
        raise InputError(f'{path} is not YAML: {" ".join(str(error).split())}.') from error
    if not isinstance(recipe, dict):
        raise InputError(f'{path} is not a recipe: it needs lines of the form "key: value".')
    return recipe


def recipe_argv(parser: argparse.ArgumentParser, recipe: Mapping[str, Any], path: str) -> List[str]:
    """The entries of a recipe as they stand on a command line.

    Args:
        parser: The program's parser.
        recipe: The entries.
        path: The recipe's path, for messages.

    Raises:
        InputError: The parser has no such flag, or it takes another kind of value.
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    if 'data_dir' in actions:
        actions['data'] = actions['data_dir']  # as timm's script writes its positional form
    argv = []
    for key, value in recipe.items():
        action = actions.get(str(key).replace('-', '_'))
        if action is None:
            raise InputError(f'{path}: unknown key {key!r}{near_matches(str(key), list(actions))}.')
        if isinstance(action, _Refused):
            if value and action.is_switch:
                raise InputError(f'{path}: {key} is not supported: {action.const}. Remove it.')
        elif value is not None:
            argv += _flag_argv(action, key, value, path)
    return argv


def pass_over_unused(
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        argv: Sequence[str],
        recipe: str,
) -> None:
    """Give settings of a recipe their defaults where the command line takes another regime or source that has no use
    for them, and say so.

    Args:
        parser: The program's parser.
        namespace: What the recipe and the command line say.
        argv: The command line: what it says itself stays, for an error.
        recipe: The recipe's name, for the log.
    """
    typed = _typed(parser, argv)
    if typed.isdisjoint(('regime', 'adv_source')):
        return
    unused = sorted(as_input_error(unused_flags, RegimeSettings.from_values(vars(namespace))) - typed)
    for name in unused:
        setattr(namespace, name, parser.get_default(name))
    if unused:
        flags = ', '.join(f'--{name.replace("_", "-")}' for name in unused)
        _logger.info(f'{flags} of {recipe}: passed over, as the command line takes another regime or source that has '
                     'no use for it.')


def _typed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Set[str]:
    # Names of the settings that a command line gives.
    words = {word.partition('=')[0] for word in argv}
    return {action.dest for action in parser._actions if words.intersection(action.option_strings)}


def _argument(about: Setting) -> Dict[str, Any]:
    # Keyword arguments of argparse's add_argument.
    if about.kind is bool:
        return dict(action='store_true', help=about.help)
    if about.kind is dict:
        return dict(nargs='*', default={}, action=_KeywordArguments, help=about.help)
    argument = dict(default=about.default, help=_help(about), metavar=about.metavar, nargs=about.nargs,
                    const=about.const, choices=about.choices)
    argument = {name: value for name, value in argument.items() if value is not None or name == 'default'}
    if isinstance(about.default, tuple):
        argument['default'] = list(about.default)  # as argparse and YAML deliver several values
    if about.kind is not str:
        argument['type'] = about.kind
    if not about.choices:  # which argparse checks
        argument.update(action=_Checked, about=about)
    return argument


def _help(about: Setting) -> str:
    default = about.default_help
    if default is None and about.default not in (None, '', (), 0):
        default = ' '.join(f'{value:g}' if isinstance(value, float) else str(value) for value in (
            about.default if isinstance(about.default, tuple) else (about.default,)))
    return about.help if default is None or about.help == argparse.SUPPRESS else f'{about.help} (default: {default})'


def _flag_argv(action: argparse.Action, key: str, value: Any, path: str) -> Tuple[str, ...]:
    flag = max(action.option_strings, key=len)
    takes_one = action.nargs in (None, '?')
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise InputError(f'{path}: {key} is true or false, not {value!r}.')
        return (flag,) if value else ()
    if isinstance(value, dict) and isinstance(action, ParseKwargs):
        value = [f'{name}={entry}' for name, entry in value.items()]
    elif isinstance(value, dict):
        raise InputError(f'{path}: {key} takes {"one value" if takes_one else "a list"}, not {value!r}.')
    if isinstance(value, (list, tuple)):
        if takes_one:
            raise InputError(f'{path}: {key} takes one value, not {value!r}.')
        return (flag, *(_entry_text(entry, key, path) for entry in value)) if value else ()
    return (f'{flag}={value}',) if takes_one else (flag, str(value))


def _entry_text(entry: Any, key: str, path: str) -> str:
    # An entry of a list as it stands on a command line, `pgd eps=2` for `pgd: {eps: 2}`.
    if not isinstance(entry, dict):
        return str(entry)
    name, settings = next(iter(entry.items()), (None, None))
    if len(entry) != 1 or not isinstance(settings, (dict, type(None))):
        raise InputError(f'{path}: an entry of {key} is a name and its settings, "- pgd: {{eps: 2}}", not {entry!r}.')
    given = {setting: value for setting, value in (settings or {}).items() if value is not None}
    return ' '.join([str(name), *(f'{setting}={_setting_text(value)}' for setting, value in given.items())])


def _setting_text(value: Any) -> str:
    return f'[{",".join(map(str, value))}]' if isinstance(value, list) else str(value)
