"""Suites of attacks: labels, loaders and rows of AutoAttack, which is replaced by an attack that finds nothing."""
import shutil
from pathlib import Path

import pytest
import torch

from tests.robustness.suite_runs import digit_images, run_suites, train_digits
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


def test_what_autoattack_is_given(few_digits, checkpoint, tmp_path, monkeypatch):
    calls = []

    def autoattack(model, batches, **kwargs):
        calls.append(dict(kwargs, route=model.route, images=torch.cat([images for images, _ in batches])))
        return dict(dict.fromkeys(attack_suites._AFTER.values(), 50.), images=1)

    monkeypatch.setattr(attack_suites, 'autoattack', autoattack)
    flags = ['--suite', 'autoattack', '--mean', '.4', '--std', '.3', '--seed', '7']
    for norm in ('linf', 'l2'):  # in one file
        run_suites(few_digits, checkpoint, tmp_path / 'r.csv', *flags, '--route', 'main', 'aux', '--adv-eps', '51',
                   '--adv-norm', norm)
    assert [(call['route'], call['norm'], call['eps'], call['seed']) for call in calls] == [
        (route, norm, 0.2, 7) for norm in ('linf', 'l2') for route in ('main', 'aux')]
    assert torch.allclose(calls[0]['images'], digit_images(few_digits, 'validation')[0], atol=1e-6)


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


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_rows_of_autoattack_say_what_they_are_of(few_digits, checkpoint, tmp_path, no_attack, split):
    clean, *rows = run_suites(
        few_digits, checkpoint, tmp_path / 'r.csv', '--suite', 'autoattack', '--split', split, '--num-samples', '20')
    for name in ('dataset', 'split', 'num_images', 'weights'):
        assert {row[name] for row in rows} == {clean[name]} != {''}


def test_scores_of_clean_images_are_not_those_of_an_attack(few_digits, checkpoint, tmp_path):
    clean, attacked = run_suites(
        few_digits, checkpoint, tmp_path / 'r.csv', '--suite', 'attacks', '--adv-steps', '1', '--adv-eps', '8',
        '--metrics-avg', 'macro')
    assert float(clean['macro_f1_score']) and not attacked['macro_f1_score']


def test_an_image_that_cannot_be_read_is_one_line(few_digits, checkpoint, tmp_path, no_attack, monkeypatch, capsys):
    data = some_classes(few_digits, tmp_path / 'data', '0123456789')
    (data / 'validation' / '0' / 'bad.png').write_bytes(b'no image')
    monkeypatch.setattr('timm_advprop.robustness.suites.clean_cells', lambda settings: [])
    with pytest.raises(SystemExit) as error:
        run_suites(data, checkpoint, tmp_path / 'r.csv', '--suite', 'autoattack', '--workers', '1')
    said = capsys.readouterr().err
    assert error.value.code == 2 and 'bad.png' in said and 'Traceback' not in said
