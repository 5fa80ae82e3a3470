"""train.py on real digits: what it writes, that it reloads and continues."""
import json
import os
import socket
import subprocess
import sys

import pytest
import timm
import torch

from tests.cli.programs import FAST, MODEL, ROOT, load, read_summary, run_train
from timm_advprop.cli.train import main as train_main


def test_train_then_validate_as_a_user_runs_them(digits, tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    train = subprocess.run(
        [sys.executable, str(ROOT / 'train.py'), '--data-dir', digits, '--output', str(tmp_path), '--experiment', 'run',
         '--config', str(ROOT / 'hparams/test_resnet_ap_digits.yaml'), '--epochs', '3', '--workers', '1',
         '--adv-steps', '1', '--device', 'cpu'],
        capture_output=True, text=True, env=environment)
    assert train.returncode == 0, train.stderr
    assert 'ETA' in train.stderr and 'adv_loss' in train.stderr
    results = json.loads(train.stdout.split('--result\n')[1])

    validate = subprocess.run(
        [sys.executable, str(ROOT / 'validate.py'), '--data-dir', digits, *MODEL, '--crop-pct', '1.0', '--checkpoint',
         str(tmp_path / 'run/last.pth.tar'), '--adv-attack', 'pgd', '--adv-eps', '8', '--adv-steps', '2'],
        capture_output=True, text=True, env=environment)
    assert validate.returncode == 0, validate.stderr
    metrics = json.loads(validate.stdout.split('--result\n')[1])
    assert metrics['top1'] == pytest.approx(results[-1]['validation']['top1'], abs=0.3)
    assert metrics['top1'] > 60  # it learned
    assert metrics['adv_top1'] <= metrics['top1']


def test_default_regime_follows_the_model(few_digits, tmp_path):
    place = FAST.index('--adv-eps')
    without_attack = FAST[:place] + FAST[place + 2:]
    for model, advprop in (('test_resnet', False), ('test_resnet_ap', True)):
        train_main(['--data-dir', few_digits, '--output', str(tmp_path), '--experiment', model, *without_attack,
                    '--model', model])
        assert ('train_adv_loss' in read_summary(tmp_path / model)[0]) == advprop


def test_an_attack_on_a_plain_model_needs_a_regime(few_digits, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path, '--model', 'test_resnet')
    assert error.value.code == 2
    assert 'say which regime the attack is for (--regime)' in capsys.readouterr().err


def test_resume_continues_the_run(few_digits, tmp_path):
    common = ['--sched', 'step', '--decay-epochs', '1', '--model-ema', '--model-ema-decay', '0.5']
    run_train(few_digits, tmp_path, '--epochs', '2', *common)
    before = load(tmp_path / 'run/last.pth.tar')
    run = run_train(few_digits, tmp_path, '--epochs', '3', *common, '--resume', str(tmp_path / 'run/last.pth.tar'))
    after, rows = load(run / 'last.pth.tar'), read_summary(run)
    assert (before['epoch'], after['epoch']) == (1, 2)
    assert [row['epoch'] for row in rows] == ['0', '1', '2']
    assert float(rows[2]['lr']) == pytest.approx(0.05 * 0.1 ** 2)
    tracked = 'bn1.num_batches_tracked'
    assert before['state_dict'][tracked] == 8 and after['state_dict'][tracked] == 12
    best = max(range(3), key=lambda epoch: float(rows[epoch]['eval_top1']))
    assert load(run / 'model_best.pth.tar')['epoch'] == best


def test_resume_without_epochs_left_changes_nothing(few_digits, trained, tmp_path):
    run = run_train(few_digits, tmp_path, '--epochs', '2', '--resume', str(trained / 'last.pth.tar'))
    assert not (run / 'last.pth.tar').exists()


def test_initial_checkpoint_and_pretrained_path_fill_aux_norms(few_digits, tmp_path):
    plain = timm.create_model('test_resnet', num_classes=10)
    file = tmp_path / 'plain.pth'
    torch.save(plain.state_dict(), file)
    for flag in ('--initial-checkpoint', '--pretrained-path'):
        run = run_train(few_digits, tmp_path / flag, flag, str(file), '--lr', '1e-12', '--bn-momentum', '0')
        state_dict = load(run / 'last.pth.tar')['state_dict']
        torch.testing.assert_close(state_dict['bn1.weight'], plain.state_dict()['bn1.weight'])
        torch.testing.assert_close(state_dict['bn1.aux_bn.0.running_mean'], plain.state_dict()['bn1.running_mean'])


def test_nonfinite_loss_stops_and_keeps_the_last_checkpoint(few_digits, tmp_path, capsys):
    run = run_train(few_digits, tmp_path)
    kept = load(run / 'last.pth.tar')['state_dict']
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path, '--lr', '1e30', '--epochs', '9')
    assert error.value.code == 1
    message = capsys.readouterr().err
    assert 'The loss is' in message and 'Traceback' not in message
    again = load(run / 'last.pth.tar')['state_dict']
    assert kept.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in kept.items())


def test_two_processes_train_as_one(few_digits, tmp_path):
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', str(port),
               '--master_addr', '127.0.0.1', str(ROOT / 'train.py'), '--data-dir', few_digits, '--output',
               str(tmp_path), '--experiment', 'run', *FAST, '--model-ema', '--grad-accum-steps', '2', '--epochs', '2']
    result = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count('--result') == 1
    state_dict = load(tmp_path / 'run/last.pth.tar')['state_dict']
    assert not any(key.startswith('module.') for key in state_dict)
    assert state_dict['bn1.aux_bn.0.num_batches_tracked'] == 4  # 64 images, 2 processes, batches of 16, 2 epochs
