"""Suites of attacks: labels, loaders and rows of AutoAttack, which is replaced by an attack that finds nothing."""
import shutil
from pathlib import Path

import pytest

from tests.robustness.suite_runs import run_suites, train_digits
from timm_advprop.robustness import attack_suites

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def checkpoint(few_digits, tmp_path_factory):
    return train_digits(few_digits, tmp_path_factory.mktemp('checkpoint') / 'last.pth', steps=25)


@pytest.fixture
def no_attack(monkeypatch):
    """Clean accuracy in the place of each of AutoAttack's."""
    def clean(model, batches, **kwargs):
        right = [(model(images).argmax(1) == target) for images, target in batches]
        top1 = 100 * sum(each.sum().item() for each in right) / sum(map(len, right))
        return dict(dict.fromkeys(attack_suites._AFTER.values(), top1), images=sum(map(len, right)))
    monkeypatch.setattr(attack_suites, 'autoattack', clean)


def some_classes(few_digits, folder, classes):
    for name in classes:
        shutil.copytree(Path(few_digits, 'validation', name), folder / 'validation' / name)
    return folder


def test_autoattack_goes_by_the_classes_that_labels_stand_for(few_digits, checkpoint, tmp_path, no_attack):
    data = some_classes(few_digits, tmp_path / 'data', '469')
    (tmp_path / 'classes.txt').write_text('4\n6\n9\n')
    clean, *rows = run_suites(
        data, checkpoint, tmp_path / 'r.csv', '--suite', 'autoattack', '--valid-labels', str(tmp_path / 'classes.txt'))
    assert {row['top1'] for row in rows} == {clean['top1']} and float(clean['top1']) > 60
