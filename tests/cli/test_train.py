"""train.py as a program: as a user runs it, in two processes, what it prints, its status, what it publishes."""
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.programs import FAST, MODEL, ROOT, WITHOUT_ATTACK, run_train
from tests.engine.runs import eval_settings, load, read_summary
from timm_advprop.cli import train as program
from timm_advprop.cli.train import main as train_main
from timm_advprop.cli.train import parse_args
from timm_advprop.engine.training import Run, Trainer
from timm_advprop.engine.validation import validate
from timm_advprop.errors import InputError


def test_train_then_validate_as_a_user_runs_them(digits, tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    train = subprocess.run(
        [sys.executable, str(ROOT / 'train.py'), '--data-dir', digits, '--output', str(tmp_path), '--experiment', 'run',
         '--config', str(ROOT / 'hparams/test_resnet_ap_digits.yaml'), '--epochs', '2', '--workers', '1',
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
    last = max(results, key=lambda result: result['epoch'])
    assert metrics['top1'] == pytest.approx(last['validation']['top1'], abs=1e-3)
    assert metrics['top1'] > 60  # it learned
    assert metrics['adv_top1'] <= metrics['top1']


@pytest.mark.slow  # tests/regimes/test_distributed.py looks at two processes, too
def test_two_processes_train_as_one(few_digits, tmp_path):
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', str(port),
               '--master_addr', '127.0.0.1', str(ROOT / 'train.py'), '--data-dir', few_digits, '--output',
               str(tmp_path), '--experiment', 'run', *FAST, '--model-ema', '--grad-accum-steps', '2', '--epochs', '2',
               '--val-routes', 'aux', '--val-adv-eps', '2', '--eval-metric', 'aux_macro_f1']
    result = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count('--result') == 1
    state_dict = load(tmp_path / 'run/last.pth.tar')['state_dict']
    assert not any(key.startswith('module.') for key in state_dict)
    assert state_dict['bn1.aux_bn.0.num_batches_tracked'] == 4  # 64 images, 2 processes, batches of 16, 2 epochs
    row = read_summary(tmp_path / 'run')[-1]
    results = validate(eval_settings(
        data_dir=few_digits, checkpoint=str(tmp_path / 'run/last.pth.tar'), use_ema=True, route='aux',
        metrics_avg='macro'))
    assert float(row['eval_aux_macro_f1']) == pytest.approx(results['macro_f1_score'], abs=1e-4)
    assert float(row['eval_aux_top5']) == pytest.approx(results['top5'], abs=1e-4)
    assert 0 <= float(row['eval_adv_top1']) <= 100


def test_default_regime_follows_the_model(few_digits, tmp_path):
    for model, advprop in (('test_resnet', False), ('test_resnet_ap', True)):
        train_main(['--data-dir', few_digits, '--output', str(tmp_path), '--experiment', model, *WITHOUT_ATTACK,
                    '--model', model])
        assert ('train_adv_loss' in read_summary(tmp_path / model)[0]) == advprop


def test_an_attack_on_a_plain_model_needs_a_regime(few_digits, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path, '--model', 'test_resnet')
    assert error.value.code == 2
    assert 'say which regime the attack is for (--regime)' in capsys.readouterr().err


def test_flags_reach_the_run_as_they_were_given(few_digits, tmp_path, capsys):
    flags = ['--epochs', '2', '--opt-kwargs', 'foreach=False', '--scale', '0.5', '1', '--adv-eps', '2']
    run = run_train(few_digits, tmp_path, *flags)
    given = parse_args(
        ['--data-dir', few_digits, '--output', str(tmp_path), '--experiment', 'run', *FAST, *flags]).given
    assert yaml.safe_load((run / 'args.yaml').read_text()) == given
    assert vars(load(run / 'last.pth.tar')['args']) == {**given, 'world_size': 1, 'train_images': 64}
    results = json.loads(capsys.readouterr().out.split('--result\n')[1])
    assert {result['epoch'] for result in results} == {0, 1}
    for result in results:
        assert float(read_summary(run)[result['epoch']]['train_loss']) == result['train']['loss']


def test_a_non_finite_loss_is_one_line_and_status_1(few_digits, tmp_path, capsys):
    run = run_train(few_digits, tmp_path)
    kept = load(run / 'last.pth.tar')['state_dict']
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path, '--resume', 'auto', '--lr', '1e30', '--epochs', '9')
    assert error.value.code == 1
    message = capsys.readouterr().err
    assert 'error: The loss is' in message and '--resume' in message and 'Traceback' not in message
    again = load(run / 'last.pth.tar')['state_dict']
    assert kept.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in kept.items())


def test_a_non_finite_loss_names_no_checkpoint_where_none_was_written(few_digits, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path, '--lr', '1e30')
    assert error.value.code == 1 and not list(tmp_path.rglob('*.pth.tar'))
    message = capsys.readouterr().err
    assert 'Take a lower --lr' in message and '--resume' not in message


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_so_and_publishes_nothing(few_digits, tmp_path, capsys, monkeypatch, hub, number):
    train_epoch = Trainer.train_epoch

    def stopped(self, epoch, start=None):
        signal.raise_signal(number)
        return train_epoch(self, epoch, start)

    monkeypatch.setattr(Trainer, 'train_epoch', stopped)
    with pytest.raises(SystemExit) as exit:
        run_train(few_digits, tmp_path, '--push-to-hub', 'user/name')
    assert exit.value.code == 128 + number
    assert capsys.readouterr().out == '--result\n[]\n'
    assert hub == [('check', 'user/name')]


# publishing

@pytest.fixture
def hub(monkeypatch):
    """What is asked of the Hub, in order."""
    calls = []

    def push(checkpoint, repo_id, private):
        calls.append(('push', checkpoint, repo_id, private))
        return f'https://hub/{repo_id}'

    def check(repo_id, must_reach):
        assert must_reach is False  # a run is not lost to a network that is down when it starts
        calls.append(('check', repo_id))

    monkeypatch.setattr(program, 'push_to_hub', push)
    monkeypatch.setattr(program, 'check_can_push', check)
    return calls


@pytest.fixture
def trains(monkeypatch, hub):
    """A run that takes no time."""
    run = dict(results=[dict(epoch=0)], stopped_by=None, folder='folder', primary=True)
    monkeypatch.setattr(program, 'train', lambda settings: hub.append(('train',)) or Run(**run))
    return run


@pytest.mark.parametrize('flags, private', [([], None), (['--hub-private'], True)])
def test_the_best_checkpoint_is_published_at_the_end(hub, trains, capsys, flags, private):
    train_main(['--push-to-hub', 'user/name', *flags])
    assert hub == [('check', 'user/name'), ('train',),
                   ('push', str(Path('folder', 'model_best.pth.tar')), 'user/name', private)]
    assert 'Published user/name: https://hub/user/name' in capsys.readouterr().out


def test_only_what_was_asked_for_is_published(hub, trains):
    train_main([])
    assert hub == [('train',)]


def test_one_process_of_several_publishes_and_prints(hub, trains, capsys, monkeypatch):
    trains['primary'] = False
    for name, value in (('RANK', '1'), ('LOCAL_RANK', '1'), ('WORLD_SIZE', '2')):
        monkeypatch.setenv(name, value)
    train_main(['--push-to-hub', 'user/name'])
    assert hub == [('train',)] and not capsys.readouterr().out


def test_what_would_spoil_the_end_is_told_at_the_start(hub, trains, capsys, monkeypatch):
    def refuse(repo_id, must_reach):
        raise InputError('No token.')

    monkeypatch.setattr(program, 'check_can_push', refuse)
    with pytest.raises(SystemExit) as error:
        train_main(['--push-to-hub', 'user/name'])
    assert error.value.code == 2 and not hub
    assert capsys.readouterr().err.strip().endswith('error: No token.')


def test_a_failed_publication_says_how_to_repeat_it(hub, trains, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise InputError('The Hub is down.')

    monkeypatch.setattr(program, 'push_to_hub', fail)
    with pytest.raises(SystemExit) as error:
        train_main(['--push-to-hub', 'user/name'])
    assert error.value.code == 2
    captured = capsys.readouterr()
    checkpoint = Path('folder', 'model_best.pth.tar')
    assert f'The Hub is down. The run is safe: python -m timm_advprop.hub push {checkpoint} user/name' in captured.err
    assert '--result' in captured.out  # which are not lost either
