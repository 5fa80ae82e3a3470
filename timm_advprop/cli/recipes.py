"""Recipes by name: the YAML files of hparams/, which stand inside an installed package, and what their heads say.

A head is the comment that a recipe begins with: source, command, cost and result.
"""
import argparse
import os
import re
from pathlib import Path
from typing import Any, List, Mapping, Optional

from ..errors import InputError, near_matches

__all__ = ['ListRecipes', 'find_recipe', 'images_per_update', 'recipe_head', 'recipe_names']

_PACKAGE = Path(__file__).parents[1]
_ENDING = '.yaml'


def recipe_names() -> List[str]:
    """Names of the recipes."""
    return sorted(path.stem for path in _folder().glob(f'*{_ENDING}'))


def find_recipe(config: str) -> str:
    """Path of a recipe.

    Args:
        config: Path of a file, or the name of a recipe, with or without `.yaml`.

    Raises:
        InputError: There is neither.
    """
    name = config.removesuffix(_ENDING)
    if os.path.exists(config) and not os.path.isdir(config):
        return config
    if name in recipe_names():
        return str(_folder() / f'{name}{_ENDING}')
    near = near_matches(os.path.basename(name), recipe_names())
    raise InputError(f'Cannot read the recipe {config}: no file and no name of a recipe{near}; --list-recipes lists '
                     'the names.')


def recipe_head(path: str) -> List[str]:
    """The paragraphs of a recipe's head, each in one line; of the one with the command, its lines' ends are left out.

    Args:
        path: The recipe, which can be read.
    """
    lines = []
    for line in Path(path).read_text(encoding='utf-8').splitlines():
        if not line.startswith('#'):
            break
        lines.append(line[1:].strip().removesuffix('\\'))
    return [' '.join(part.split()) for part in '\n'.join(lines).split('\n\n') if part.strip()]


def images_per_update(path: str, recipe: Mapping[str, Any]) -> Optional[int]:
    """Clean images in an update of a recipe, over the processes of its head's command; None where it has no command.

    Args:
        path: The recipe, whose head has the command.
        recipe: Its entries.
    """
    commands = [part for part in recipe_head(path) if '--config' in part]
    batch = _entry(recipe, 'batch-size')
    if not commands or not isinstance(batch, int):
        return None
    processes = re.search(r'--nproc_per_node[ =](\d+)', commands[0])
    return batch * (_entry(recipe, 'grad-accum-steps') or 1) * (int(processes[1]) if processes else 1)


class ListRecipes(argparse.Action):
    """A flag that prints the recipes' names, each with the first sentence of its head, and ends the program."""

    def __init__(self, option_strings, dest, **kwargs: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        names = recipe_names()
        width = max(map(len, names), default=0)
        for name in names:
            print(f'{name:{width}}  {_first_sentence(recipe_head(find_recipe(name)))}')
        parser.exit()


def _folder() -> Path:
    inside = _PACKAGE / 'hparams'
    return inside if inside.is_dir() else _PACKAGE.parent / 'hparams'  # of a clone


def _entry(recipe: Mapping[str, Any], name: str) -> Any:
    return recipe.get(name, recipe.get(name.replace('-', '_')))


def _first_sentence(head: List[str]) -> str:
    # without what stands in brackets, which is who wrote of it
    return re.split(r'(?<=[^.])[.:](?= |$)', re.sub(r' \([^)]*\)', '', head[0]))[0] if head else ''
