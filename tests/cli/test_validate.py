"""validate.py on real digits: results, routes, attacks, folders of checkpoints."""
import csv
import json
from pathlib import Path

import pytest
import torch

import timm_advprop
from tests.cli.programs import load, run_train, run_validate


def test_validate_reports_timms_keys_and_files(few_digits, trained, tmp_path, capsys):
    checkpoint = ['--checkpoint', str(trained / 'last.pth.tar')]
    results = run_validate(few_digits, capsys, *checkpoint, '--results-file', str(tmp_path / 'r.csv'))
    assert list(results)[:9] == ['model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size',
                                 'crop_pct', 'interpolation']
    assert not any(key.startswith('adv') for key in results)
    with open(tmp_path / 'r.csv', newline='') as file:
        assert float(list(csv.DictReader(file))[0]['top1']) == results['top1']
    run_validate(few_digits, capsys, *checkpoint, '--results-file', str(tmp_path / 'r.json'),
                 '--results-format', 'json')
    assert json.loads((tmp_path / 'r.json').read_text())['top1'] == results['top1']


def test_validate_clean_route_equals_stock_timm(few_digits, trained, tmp_path, capsys):
    clean, _ = timm_advprop.split_state_dict(load(trained / 'last.pth.tar')['state_dict'])
    torch.save(clean, tmp_path / 'plain.pth')
    with_aux = run_validate(few_digits, capsys, '--checkpoint', str(trained / 'last.pth.tar'))
    plain = run_validate(few_digits, capsys, '--model', 'test_resnet', '--checkpoint', str(tmp_path / 'plain.pth'))
    filled = run_validate(few_digits, capsys, '--checkpoint', str(tmp_path / 'plain.pth'))
    plain_name = run_validate(
        few_digits, capsys, '--model', 'test_resnet', '--checkpoint', str(trained / 'last.pth.tar'))
    assert with_aux['top1'] == plain['top1'] == filled['top1'] == plain_name['top1']


@pytest.fixture(scope='module')
def opposed(few_digits, tmp_path_factory):
    """A checkpoint whose main norms know the digits and whose aux norms know nothing."""
    run = run_train(few_digits, tmp_path_factory.mktemp('opposed'), '--epochs', '20', '--no-aug', '--opt', 'adamw',
                    '--lr', '5e-3', '--val-split', '', '--eval-metric', 'loss')
    state_dict = load(run / 'last.pth.tar')['state_dict']
    for key, value in state_dict.items():
        if 'aux_bn' in key and value.is_floating_point() and 'running' not in key:
            value.zero_()
    torch.save(state_dict, run / 'opposed.pth')
    return str(run / 'opposed.pth')


@pytest.mark.parametrize('model', ['test_resnet_ap', 'test_resnet'])
def test_validate_route_chooses_the_norms(few_digits, opposed, capsys, model):
    clean = run_validate(few_digits, capsys, '--model', model, '--checkpoint', opposed, '--split', 'train')
    aux = run_validate(
        few_digits, capsys, '--model', model, '--checkpoint', opposed, '--split', 'train', '--route', 'aux')
    assert clean['top1'] > 40
    assert aux['top1'] < 15


@pytest.mark.parametrize('attack', ['pgd', 'ifgsm', 'gd'])
def test_validate_under_attack(few_digits, opposed, capsys, attack):
    flags = ['--checkpoint', opposed, '--split', 'train', '--adv-attack', attack, '--adv-steps', '3']
    results = run_validate(few_digits, capsys, *flags, '--adv-eps', '30', '--adv-alpha', '15')
    clean = run_validate(few_digits, capsys, '--checkpoint', opposed, '--split', 'train')
    assert results['top1'] == clean['top1']
    assert results['adv_top1'] < results['top1']
    assert results['adv_top5'] >= results['adv_top1']
    nothing = run_validate(few_digits, capsys, *flags, '--adv-eps', '0', '--adv-alpha', '0')
    assert nothing['adv_top1'] == nothing['top1']


def test_validate_folder_of_checkpoints(few_digits, trained, capsys):
    results = run_validate(few_digits, capsys, '--checkpoint', str(trained))
    assert len(results) == len(list(trained.glob('*.pth.tar')))
    assert all(Path(result['checkpoint']).parent == trained for result in results)
