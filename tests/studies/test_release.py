"""The best model of the study: which it is, and the picture of what its routes see."""
import pytest
import torch

from studies import release
from studies.comparison.job import Job
from studies.comparison.table import Table
from timm_advprop.errors import InputError

pytestmark = pytest.mark.usefixtures('one_thread', 'in_root')


@pytest.fixture
def table(tmp_path, in_root):
    table = Table(str(tmp_path / 'table.csv'))
    for row, seed, holdout in (
            ('vanilla', 0, 99.), ('advprop-1', 0, 85.), ('advprop-2', 1, 87.), ('advprop-4', 0, 86.)):
        settings = Job(release._STUDY, row, seed, '').settings
        table.add([dict(row=row, seed=seed, settings=settings, holdout=holdout)])
    return table


def test_the_best_is_that_of_held_out_images(table):
    best = release._best(table.path, 'output')
    assert (best.row, best.seed) == ('advprop-2', 1)


def test_a_table_without_models_is_named(tmp_path):
    with pytest.raises(InputError, match='no AdvProp model: run python -m studies fashion-mnist'):
        release._best(str(tmp_path / 'none.csv'), 'output')


def test_right_routes_are_those_that_name_the_label():
    seen = [release._Seen(torch.zeros(1, 2, 2), 3, dict(main=main, aux=aux)) for main, aux in ((3, 3), (3, 1), (0, 3))]
    assert [each.right for each in seen] == [{'main', 'aux'}, {'main'}, {'aux'}]
