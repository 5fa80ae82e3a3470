"""The plan of a run: it tells what a run would do, which then does it, and writes nothing."""
import re

import pytest
import torch

from tests.engine.runs import read_summary, run, train_settings
from timm_advprop.cli.train import main as train_main
from timm_advprop.engine.loop import Trainer
from timm_advprop.engine.plan import plan_run
from timm_advprop.errors import InputError


def plan(data, output, **values):
    text = plan_run(train_settings(data_dir=data, output=str(output), experiment='run', **values))
    return dict(line.split('  ', 1) for line in text.splitlines()) if text else None


def told(data, output, **values):
    return {name: text.strip() for name, text in plan(data, output, **values).items()}


def test_a_plan_tells_every_part(few_digits, tmp_path):
    lines = told(few_digits, tmp_path, batch_size=8, grad_accum_steps=2, epochs=4, model_ema=True, model_ema_decay=.99,
                 opt='adamw', lr=None, lr_base=.1, lr_base_size=64, adv_eps=[1., 2.], adv_steps=1, sched='step',
                 decay_epochs=1, decay_rate=.5, amp=True, amp_dtype='bfloat16', bn_momentum=.2)
    assert lines['model'].startswith('test_resnet_ap, ') and lines['norms'] == (
        '15 split norms, each with 2 auxiliary, momentum 0.2')
    assert lines['regime'].startswith('advprop, PGD-1, eps 1/255') and 'PGD-1, eps 2/255' in lines['regime']
    assert lines['cost'] == '4.33 × the arithmetic of vanilla training, that of 17 vanilla epochs in all'
    assert lines['training data'] == 'train, 64 images of 10 classes'
    assert lines['validation data'] == 'validation, 40 images of 10 classes'
    assert lines['images'].startswith('3 × 32 × 32, mean ')
    assert lines['batch'] == '16 images for an update: 8 images × 2 accumulated batches'
    assert lines['epochs'] == '4 of 4 updates: 16 updates'
    assert lines['optimizer'] == 'adamw, weight decay 2e-05'
    assert lines['rate'] == '0.05, from --lr-base 0.1 for 64 images by sqrt scaling'
    assert lines['schedule'] == ('step, by epochs, warm-up epochs: 0; 0.05 in epoch 0, 0.025 in epoch 1, 0.0125 in '
                                 'epoch 2, 0.00625 in epoch 3')
    assert lines['EMA'] == 'decay 0.99' and lines['precision'] == 'bfloat16 by mixed precision, on cpu'
    assert lines['start'] == 'weights drawn at random' and lines['output'] == str(tmp_path / 'run')


@pytest.mark.parametrize('share, text', [
    (None, ''), ('statistics', ', shared statistics'), ('statistics-of-main', ', shared statistics of main')])
def test_plan_and_log_tell_what_norms_share(few_digits, tmp_path, caplog, share, text):
    assert told(few_digits, tmp_path, adv_share=share)['norms'] == f'15 split norms, each with 1 auxiliary{text}'
    with caplog.at_level('INFO'):
        folder = run(few_digits, tmp_path, adv_share=share)
    assert f'Training test_resnet_ap{text.replace(",", " with")} for 1 epoch of' in caplog.text
    checkpoint = str(folder / 'last.pth.tar')
    assert told(few_digits, tmp_path / 'on', initial_checkpoint=checkpoint)['norms'].endswith(f'1 auxiliary{text}')


def test_a_plain_model_has_no_split_norms_and_a_budget_fewer_epochs(few_digits, tmp_path):
    lines = told(few_digits, tmp_path, model='test_resnet', adv_eps=None, val_split='', eval_metric='loss')
    assert (lines['norms'], lines['regime'], lines['rate']) == (
        'none is split', 'vanilla', '0.05, as --lr says, whatever the batch')
    assert lines['model'].endswith(' 0 of them of auxiliary norms') and 'validation data' not in lines
    lines = told(few_digits, tmp_path, regime='fast-advprop', epochs=12)
    assert lines['epochs'].startswith('10 of ') and lines['cost'].endswith('that of 12 vanilla epochs in all')


def test_the_run_does_what_was_planned(few_digits, tmp_path):
    values = dict(epochs=3, sched='step', decay_epochs=1, decay_rate=.5, lr=.1)
    planned = re.findall(r'([\d.e-]+) in epoch (\d)', told(few_digits, tmp_path, **values)['schedule'])
    rates = [(row['lr'], row['epoch']) for row in read_summary(run(few_digits, tmp_path, **values))]
    assert len(rates) == 3
    assert [tuple(map(float, pair)) for pair in planned] == [tuple(map(float, pair)) for pair in rates]


def test_a_plan_trains_and_writes_nothing(few_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, 'train_epoch', lambda *args: pytest.fail('it trains'))
    monkeypatch.setattr(torch.optim.SGD, 'step', lambda *args: pytest.fail('it updates'))
    train_main(['--data-dir', few_digits, '--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32',
                '--workers', '0', '--device', 'cpu', '-b', '16', '--dry-run', '--push-to-hub', ''])
    out = capsys.readouterr().out
    assert out.startswith('--plan\nmodel  ') and '--result' not in out
    assert 'output           ./output/train/' in out
    assert not list(tmp_path.iterdir())


def test_a_plan_finds_what_a_run_would(few_digits, tmp_path):
    with pytest.raises(InputError, match='has 10 classes, the model 7'):
        plan(few_digits, tmp_path, num_classes=7)
    with pytest.raises(InputError, match='--aug-repeats needs several processes.*: give --aug-repeats 0'):
        plan(few_digits, tmp_path, aug_repeats=3)
    with pytest.raises(InputError, match='fewer than one batch'):
        plan(few_digits, tmp_path, batch_size=128)


def test_a_plan_goes_on_from_a_checkpoint(few_digits, tmp_path):
    folder = run(few_digits, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    lines = told(few_digits, tmp_path, resume=str(folder / 'last.pth.tar'), epochs=2)
    assert lines['start'] == f'{folder / "last.pth.tar"}, epoch 1, update 0'
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
