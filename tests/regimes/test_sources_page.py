"""docs/sources.md says of each source what its class says, and each has a card."""
import re
import shlex
from pathlib import Path

import pytest

from timm_advprop.attacks import ATTACKS
from timm_advprop.cli.train import parse_args
from timm_advprop.corruptions import CORRUPTIONS
from timm_advprop.regimes import SOURCES, Attack

DOCS = Path(__file__).parents[2] / 'docs'
PAGE = (DOCS / 'sources.md').read_text()


def row_of(name):
    rows = [line for line in PAGE.splitlines() if line.startswith(('| `', '| [`'))]
    row, = [row for row in rows if f'`{name}`' in row.split('|')[1]]
    return [cell.strip() for cell in row.split('|')[2:-1]]


@pytest.mark.parametrize('name', [*SOURCES])
def test_a_row_tells_class_cost_and_settings(name):
    maker = SOURCES[name]
    class_name, cost, settings = row_of(name)
    assert class_name == f'`{maker.__name__}`'
    assert (DOCS / 'methods' / f'{name.replace("-", "_")}.md').read_text().startswith(f'# `{name}`\n')
    source = maker()
    steps = getattr(source, 'steps', 0)
    assert source.relative_cost() == pytest.approx(2 / 3 * steps)
    assert cost == ('2/3 × vanilla a step' if steps else 'nothing')
    told = dict(re.findall(r'`([\w-]+)`: ([^`]+?)(?:, |$)', settings))
    assert set(told) == {key.removesuffix('_px').replace('_', '-') for key in maker.declared()}
    for key, about in maker.declared().items():
        text = told[key.removesuffix('_px').replace('_', '-')]
        if about.default is CORRUPTIONS:
            assert text == 'the 15' and len(CORRUPTIONS) == 15
        else:
            values = about.default if isinstance(about.default, tuple) else [about.default]
            assert text == ','.join(value if isinstance(value, str) else 'that of the step' if value is None else
                                    f'{value:g}' for value in values)


def test_the_attacks_row_has_its_defaults():
    class_name, _, settings = row_of('pgd')
    assert class_name == '`Attack`' and all(f'`{name}`' in PAGE for name in ATTACKS)
    for key, about in Attack.declared().items():
        if key != 'kind' and about.default is not None:
            assert f'`{key.removesuffix("_px").replace("_", "-")}` {about.default:g}' in settings if isinstance(
                about.default, float) else f'`{key.replace("_", "-")}` {about.default}' in settings


def test_the_pages_recipe_and_command_can_be_used(tmp_path):
    recipe, = re.findall(r'```yaml\n(.*?)```', PAGE, re.DOTALL)
    (tmp_path / 'recipe.yaml').write_text(recipe)
    command, *_ = re.findall(r'```bash\npython train.py (.*?)```', PAGE, re.DOTALL)
    for argv in (['-c', str(tmp_path / 'recipe.yaml')], shlex.split(command)):
        assert len(parse_args(argv).regime.sources(Attack())) == 3
