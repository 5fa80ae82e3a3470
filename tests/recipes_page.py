"""Writes the table of docs/recipes.md from the recipes and their heads.

    python -m tests.recipes_page

`tests/test_recipes_page.py` compares the page with it.
"""
import re
from pathlib import Path
from typing import List

import yaml

from timm_advprop.cli.recipes import find_recipe, images_per_update, recipe_head, recipe_names
from timm_advprop.output import markdown_table

PAGE = Path(__file__).parents[1] / 'docs' / 'recipes.md'
COLUMNS = ('recipe', 'source', 'GPUs', 'images for an update', 'memory', '× vanilla', 'published top-1')
TABLE = re.compile(r'^\| recipe \|.*?(?=\n\n)', re.M | re.S)
SOURCES = re.compile(r'arXiv:(?P<paper>\d+\.\d+)|github\.com/(?P<code>[\w.-]+/[\w-]+)')


def table() -> str:
    """The table, a row for each recipe."""
    return markdown_table([COLUMNS, *map(row, recipe_names())])


def row(name: str) -> List[str]:
    """A recipe's row."""
    path = find_recipe(name)
    head, recipe = recipe_head(path), yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    images = images_per_update(path, recipe)
    return [
        f'[`{name}`](../hparams/{name}.yaml)', ', '.join(sources(head[0])) or 'our choice',
        str(processes(recipe, images)), f'{images:,}', found(r'Memory: ([\d.,]+ [GM]iB)', head) or 'not measured',
        found(r'Cost: ([\d.]+) ×', head), published(head)]


def processes(recipe: dict, images: int) -> int:
    """Processes that share the images of an update."""
    return images // recipe['batch-size'] // recipe.get('grad-accum-steps', 1)


def sources(text: str) -> List[str]:
    """Links to the papers and the code that a text names."""
    return [f'[{match["paper"]}](https://arxiv.org/abs/{match["paper"]})' if match['paper'] else
            f'[{match["code"]}](https://github.com/{match["code"]})' for match in SOURCES.finditer(text)]


def published(head: List[str]) -> str:
    """The published accuracy that a head tells, and where it is of vanilla training, that."""
    vanilla = found(r'Published of vanilla training: ([\d.]+) top-1', head)
    return f'{vanilla} (vanilla)' if vanilla else found(r'Published: ([\d.]+) top-1', head) or '—'


def found(pattern: str, head: List[str]) -> str:
    """What a pattern's group matches in a recipe's head, '' for nothing."""
    match = re.search(pattern, '\n'.join(head))
    return match[1] if match else ''


if __name__ == '__main__':
    PAGE.write_text(TABLE.sub(lambda _: table(), PAGE.read_text(encoding='utf-8'), count=1), encoding='utf-8')
