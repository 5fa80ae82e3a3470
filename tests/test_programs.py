"""train.py and validate.py on real digits: what they write, that they reload, and how they refuse bad input."""
import csv
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml

import timm_advprop
from timm_advprop.evaluation import main as validate_main
from timm_advprop.train import main as train_main
from timm_advprop.train.loop import Trainer

ROOT = Path(__file__).parents[1]
MODEL = ['--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32', '--workers', '0', '--device', 'cpu']
FAST = [*MODEL, '--batch-size', '16', '--epochs', '1', '--warmup-epochs', '0', '--lr', '0.05', '--adv-eps', '1',
        '--log-interval', '100']


def run_train(data, output, *flags):
    train_main(['--data-dir', data, '--output', str(output), '--experiment', 'run', *FAST, *flags])
    return Path(output, 'run')


def run_validate(data, capsys, *flags):
    capsys.readouterr()
    validate_main(['--data-dir', data, *MODEL, *flags])
    return json.loads(capsys.readouterr().out.split('--result\n')[1])


def load(path):
    return torch.load(path, weights_only=False)


def read_summary(run):
    with open(run / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def trained(few_digits, tmp_path_factory):
    return run_train(few_digits, tmp_path_factory.mktemp('trained'), '--epochs', '2')


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


def test_output_folder_is_as_timms(trained):
    for name in ('args.yaml', 'summary.csv', 'last.pth.tar', 'model_best.pth.tar'):
        assert (trained / name).is_file(), name
    assert yaml.safe_load((trained / 'args.yaml').read_text())['model'] == 'test_resnet_ap'
    rows = read_summary(trained)
    assert [row['epoch'] for row in rows] == ['0', '1']
    for row in rows:
        total = float(row['train_clean_loss']) + float(row['train_adv_loss'])
        assert float(row['train_loss']) == pytest.approx(total, rel=1e-5)
        assert 0 <= float(row['eval_top1']) <= 100


def test_checkpoint_is_a_superset_of_a_plain_one_and_its_aux_norms_were_trained(trained):
    state_dict = load(trained / 'last.pth.tar')['state_dict']
    clean, aux = timm_advprop.split_state_dict(state_dict)
    timm.create_model('test_resnet', num_classes=10).load_state_dict(clean)
    assert aux
    main_of = {key: key.replace('.aux_bn.0', '') for key in aux}
    assert any(not torch.equal(aux[key], clean[main]) for key, main in main_of.items() if 'weight' in key)
    assert any(not torch.equal(aux[key], clean[main]) for key, main in main_of.items() if 'running_mean' in key)


def test_vanilla_on_a_split_model_equals_the_plain_model(few_digits, tmp_path):
    split = run_train(few_digits, tmp_path / 'split', '--regime', 'vanilla')
    plain = run_train(few_digits, tmp_path / 'plain', '--regime', 'vanilla', '--model', 'test_resnet')
    clean, aux = timm_advprop.split_state_dict(load(split / 'last.pth.tar')['state_dict'])
    expected = load(plain / 'last.pth.tar')['state_dict']
    assert all(torch.equal(clean[key], expected[key]) for key in expected)
    assert aux.keys()


def test_advprop_converts_a_plain_model(few_digits, tmp_path):
    run = run_train(few_digits, tmp_path, '--regime', 'advprop', '--model', 'test_efficientnet')
    assert any('aux_bn' in key for key in load(run / 'last.pth.tar')['state_dict'])


@pytest.mark.parametrize('regime, flags, columns', [
    ('vanilla', [], {'clean_top1'}),
    ('madry', [], {'adv_loss', 'adv_top1'}),
    ('joint', ['--adv-norm', 'l2', '--adv-alpha', '20', '--adv-eps', '40'],
     {'clean_loss', 'adv_loss', 'clean_top1', 'adv_top1'}),
    ('advprop', ['--split-bn', '--aug-splits', '2', '--aa', 'rand-m5'],
     {'clean_loss', 'aug_loss', 'adv_loss', 'clean_top1', 'aug_top1', 'adv_top1'}),
    ('advprop', ['--adv-generator', 'gaussian-noise', '--adv-eps', '4', '8'],
     {'clean_loss', 'adv_loss', 'clean_top1', 'adv_top1'}),
    ('fast-advprop', ['--batch-size', '20', '--grad-accum-steps', '2'],
     {'clean_loss', 'attack_loss', 'adv_loss', 'clean_top1', 'adv_top1'}),
], ids=lambda value: ' '.join(value) if isinstance(value, list) else None)
def test_every_regime_trains_and_logs_losses_and_accuracies(few_digits, tmp_path, caplog, regime, flags, columns):
    with caplog.at_level('INFO'):
        run = run_train(few_digits, tmp_path, '--regime', regime, *flags)
    row = read_summary(run)[0]
    assert {name for name in row if name.startswith('train_')} == {'train_loss', *(f'train_{name}' for name in columns)}
    assert all(0 <= float(row[f'train_{name}']) <= 100 for name in columns if name.endswith('top1'))
    progress = [record.getMessage() for record in caplog.records if record.getMessage().startswith('Train: 0')]
    assert all(f'{name}: ' in progress[-1] for name in columns)
    assert any(text.startswith(regime) and text.endswith('× the arithmetic of vanilla') for text in caplog.messages)


def test_adversarial_pretraining_then_clean_fine_tuning(few_digits, tmp_path):
    pretrained = run_train(few_digits, tmp_path / 'a', '--model', 'test_resnet', '--regime', 'madry')
    tuned = run_train(few_digits, tmp_path / 'b', '--model', 'test_resnet', '--regime', 'vanilla', '--lr', '1e-12',
                      '--initial-checkpoint', str(pretrained / 'last.pth.tar'))
    before, after = (load(run / 'last.pth.tar')['state_dict'] for run in (pretrained, tuned))
    torch.testing.assert_close(after['fc.weight'], before['fc.weight'])


@pytest.mark.parametrize('flags, epochs', [
    (['--regime', 'fast-advprop', '--epochs', '6'], 5),
    (['--regime', 'fast-advprop', '--epochs', '6', '--adv-budget', 'epochs'], 6),
    (['--regime', 'joint', '--epochs', '6', '--adv-budget', 'vanilla'], 2),  # PGD-1 costs 8/3
    (['--regime', 'joint', '--epochs', '1', '--adv-budget', 'vanilla'], 1),
])
def test_a_budget_shortens_the_whole_schedule(few_digits, tmp_path, flags, epochs):
    run = run_train(few_digits, tmp_path, '--batch-size', '32', '--val-interval', '9', *flags, '--sched', 'multistep',
                    '--sched-on-updates', '--decay-milestones', '3', '--lr', '0.01')
    checkpoint = load(run / 'last.pth.tar')
    assert checkpoint['epoch'] == epochs - 1
    assert read_summary(run)[-1]['epoch'] == str(epochs - 1)
    milestones = {5: 2, 6: 3, 2: 1, 1: 1}  # 3, divided as the epochs are
    assert checkpoint['optimizer']['param_groups'][0]['lr'] == pytest.approx(
        0.001 if epochs >= milestones[epochs] else 0.01)
    # the recipe stays as given: what is published must not be divided again
    assert checkpoint['args'].epochs == int(flags[3]) and checkpoint['args'].decay_milestones == [3]


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


@pytest.mark.parametrize('flags', [
    ['--amp', '--amp-dtype', 'bfloat16'],
    ['--channels-last', '--grad-checkpointing'],
    ['--grad-accum-steps', '3'],
    ['--model-ema', '--model-ema-decay', '0.5', '--model-ema-warmup'],
    ['--mixup', '0.2', '--cutmix', '1.0'],
    ['--mixup', '0.2', '--no-prefetcher', '--bce-loss'],
    ['--aug-splits', '2', '--jsd-loss', '--aa', 'augmix-m3-w2'],
    ['--aa', 'rand-m5', '--reprob', '0.5', '--drop-path', '0.1', '--clip-grad', '1.0'],
    ['--sched', 'plateau', '--opt', 'adamw', '--bce-loss'],
    ['--sched', 'step', '--sched-on-updates', '--warmup-epochs', '1', '--epochs', '2', '--decay-epochs', '1'],
    ['--bn-momentum', '0.3', '--bn-eps', '1e-3', '--head-init-scale', '0.5', '--head-init-bias', '-1'],
    ['--adv-eps', '1', '2'],
    ['--adv-attack', 'gd', '--adv-target', 'none', '--adv-norm-stats', 'train', '--adv-amp-dtype', 'bfloat16'],
    ['--val-split', '', '--eval-metric', 'loss', '--adv-weight', '0.5'],
    ['--in-chans', '1', '--save-images', '--no-prefetcher'],
], ids=' '.join)
def test_flags_work_with_advprop(few_digits, tmp_path, flags):
    run = run_train(few_digits, tmp_path, *flags)
    row = read_summary(run)[-1]
    assert 'train_adv_loss' in row
    assert all(torch.isfinite(value).all() for value in load(run / 'last.pth.tar')['state_dict'].values())


def test_batch_norm_flags_reach_main_and_aux_norms(few_digits, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(Trainer, 'train_epoch', lambda self, epoch: (
        seen.update(model=self.task.get_trainable_module()), {'loss': 1.})[1])
    run_train(few_digits, tmp_path, '--bn-momentum', '0.3', '--bn-eps', '1e-3')
    norms = [norm for split in timm_advprop.norms.split_norms(seen['model']) for norm in (split, *split.aux_bn)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.3, 1e-3)}


def test_compiled_training(few_digits, tmp_path):
    run = run_train(few_digits, tmp_path, '--torchcompile', 'aot_eager', '--model-ema')
    assert not any('_orig_mod' in key for key in load(run / 'last.pth.tar')['state_dict'])


def test_accumulated_gradients_equal_one_large_batch(few_digits):
    model = timm.create_model('test_resnet_ap', num_classes=10).double()
    for norm in timm_advprop.norms.split_norms(model):
        norm.eval()  # fixed statistics: batches of different size are comparable
    task = timm_advprop.AdvPropTask(model, eps=1, steps=1, target='none', random_start=0, verbose=False)
    images, target = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.randint(10, (6,))

    def gradients(batches):
        trainer = Trainer(
            task=task,
            loader=batches,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.),
            device=torch.device('cpu'),
            num_epochs=1,
            grad_accum_steps=len(batches),
            primary=False,
        )
        kept = {}
        trainer.optimizer.step = lambda: kept.update(
            (name, parameter.grad.clone())
            for name, parameter in model.named_parameters() if parameter.grad is not None)
        model.train = lambda mode=True: model
        trainer.train_epoch(0)
        return kept

    model.eval()
    whole = gradients([(images, target)])
    parts = gradients([(images[:3], target[:3]), (images[3:], target[3:])])
    assert whole.keys() == parts.keys() and whole
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-9, atol=1e-12)


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


def test_plain_model_takes_a_checkpoint_with_auxiliary_norms_into_advprop(few_digits, trained, tmp_path):
    run = run_train(few_digits, tmp_path, '--model', 'test_resnet', '--regime', 'advprop', '--lr', '1e-12',
                    '--initial-checkpoint', str(trained / 'last.pth.tar'))
    source, state = (load(folder / 'last.pth.tar')['state_dict'] for folder in (trained, run))
    assert list(state) == list(source)
    torch.testing.assert_close(state['bn1.aux_bn.0.weight'], source['bn1.aux_bn.0.weight'])
    assert not torch.equal(source['bn1.aux_bn.0.weight'], source['bn1.weight'])


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
    assert kept.keys() == load(run / 'last.pth.tar')['state_dict'].keys()


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


# validate.py

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


@pytest.mark.parametrize('flags', [
    ['--amp', '--amp-dtype', 'bfloat16', '--channels-last'],
    ['--no-prefetcher'],
    ['--torchscript'],
    ['--torchcompile', 'eager', '--adv-attack', 'pgd', '--adv-eps', '1'],
    ['--test-pool'],
    ['--metrics-avg', 'macro'],
    ['--retry', '--use-ema'],
], ids=' '.join)
def test_validate_flags(few_digits, trained, capsys, flags):
    plain = run_validate(few_digits, capsys, '--checkpoint', str(trained / 'last.pth.tar'))
    results = run_validate(few_digits, capsys, '--checkpoint', str(trained / 'last.pth.tar'), *flags)
    assert results['top1'] == pytest.approx(plain['top1'], abs=5.1)


# bad input

class _Code:
    def __reduce__(self):
        return os.mkdir, ('executed',)


@pytest.fixture(scope='module')
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bad')
    (folder / 'text.pth').write_bytes(b'hello')
    (folder / 'text.safetensors').write_bytes(b'hello')
    torch.save({'a': 1}, folder / 'number.pth')
    torch.save(_Code(), folder / 'code.pth')
    (folder / 'pickle.pth').write_bytes(pickle.dumps(_Code()))
    torch.save(timm.create_model('test_vit', num_classes=10).state_dict(), folder / 'vit.pth')
    torch.save(timm.create_model('test_resnet_ap', num_classes=10, num_aux=2).state_dict(), folder / 'two.pth')
    (folder / 'empty').mkdir()
    (folder / 'empty_split' / 'train' / '0').mkdir(parents=True)
    return folder


BAD_TRAINING = [
    (['--model', 'resnet18_app'], ('resnet18_app', 'resnet18_ap')),
    (['--model', 'test_resnet_ap', '--pretrained'], ('No AdvProp weights', 'plain weights')),
    (['--model', 'test_nfnet', '--regime', 'advprop'], ('no batch norms',)),
    (['--data-dir', 'nowhere'], ('nowhere',)),
    (['--data-dir', '{bad}/empty'], ('empty',)),
    (['--data-dir', '{bad}/empty_split'], ('empty_split',)),
    (['--data-dir', '{data}/train'], ('train', '--data-dir')),
    (['--val-split', 'nope'], ('nope', 'validation')),
    (['--num-classes', '11'], ('10 classes', '11', '--num-classes 10')),
    (['--initial-checkpoint', 'nowhere.pth'], ('nowhere.pth',)),
    (['--initial-checkpoint', '{bad}/text.pth'], ('text.pth',)),
    (['--initial-checkpoint', '{bad}/text.safetensors'], ('text.safetensors',)),
    (['--initial-checkpoint', '{bad}/number.pth'], ('number.pth',)),
    (['--initial-checkpoint', '{bad}/code.pth'], ('code.pth',)),
    (['--resume', '{bad}/pickle.pth'], ('pickle.pth',)),
    (['--pretrained-path', '{bad}/code.pth'], ('code.pth',)),
    (['--pretrained-path', '{bad}/vit.pth'], ('do not fit', 'conv1.1.weight', 'cls_token')),
    (['--pretrained-path', '{bad}/two.pth'], ('num_aux=2',)),
    (['--initial-checkpoint', '{bad}/vit.pth'], ('does not fit', 'cls_token')),
    (['--initial-checkpoint', '{bad}/two.pth'], ('num_aux=2',)),
    (['--model', 'test_resnet', '--pretrained-path', '{bad}/two.pth'], ('test_resnet would drop',)),
    (['--adv-eps', '-1'], ('--adv-eps', '-1')),
    (['--adv-steps', '0'], ('--adv-steps', '0')),
    (['--adv-eps', '1', '2', '--model-kwargs', 'num_aux=1'], ('num_aux=2',)),
    (['--batch-size', '5000'], ('5000', '--batch-size')),
    (['--batch-size', '15', '--mixup', '0.2'], ('even', '15')),
    (['--opt', 'sgdd'], ('sgdd',)),
    (['--sched', 'cosin'], ('cosin',)),
    (['--aa', 'nope'], ('nope',)),
    (['--mean', '0.5', '0.5'], ('--mean', '3')),
    (['--device', 'gpu'], ('gpu', 'cpu')),
    (['--model-kwargs', 'nope=1'], ('nope',)),
    (['--jsd-loss'], ('--aug-splits',)),
    (['--aug-splits', '2', '--no-prefetcher'], ('--no-prefetcher',)),
    (['--scale', '0.5'], ('--scale',)),
    (['--cutmix-minmax', '0.2'], ('--cutmix-minmax',)),
    (['--train-interpolation', 'nope'], ('--train-interpolation', 'bilinear')),
    (['--tta', '2'], ('--tta',)),
]


@pytest.mark.parametrize('flags, words', BAD_TRAINING, ids=[' '.join(flags) for flags, _ in BAD_TRAINING])
def test_bad_training_input_is_one_line_and_status_2(few_digits, bad, tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(bad=bad, data=few_digits) for flag in flags]
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path / 'output', *flags)
    assert error.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
    assert not list(tmp_path.iterdir())  # nothing half-written, nothing executed


def test_resume_of_another_architecture_is_refused(few_digits, trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path, '--model', 'test_efficientnet_ap', '--resume', str(trained / 'last.pth.tar'))
    assert error.value.code == 2
    assert 'does not fit' in capsys.readouterr().err


BAD_VALIDATION = [
    (['--model', 'test_resnet_app'], ('test_resnet_app', 'test_resnet_ap')),
    (['--checkpoint', 'nowhere.pth'], ('nowhere.pth',)),
    (['--checkpoint', '{bad}/code.pth'], ('code.pth',)),
    (['--checkpoint', '{bad}/empty'], ('empty',)),
    (['--model', 'test_efficientnet_ap'], ('does not fit',)),
    (['--checkpoint', '{bad}/vit.pth'], ('does not fit', 'cls_token')),
    (['--adv-eps', '8'], ('--adv-attack',)),
    (['--num-classes', '12'], ('does not fit', '12')),
    (['--data-dir', 'nowhere'], ('nowhere',)),
    (['--adv-attack', 'pgd', '--adv-eps', '-1'], ('--adv-eps',)),
    (['--adv-attack', 'pgd', '--adv-steps', '0'], ('--adv-steps',)),
    (['--torchscript', '--route', 'aux'], ('--torchscript',)),
    (['--results-file', 'no/where.csv'], ('where.csv',)),
    (['--mean', '0.5', '0.5'], ('--mean', '3')),
    (['--interpolation', 'nope'], ('--interpolation',)),
    (['--num-gpu', '99'], ('--num-gpu',)),
    (['--fuser', 'te'], ('--fuser',)),
]


@pytest.mark.parametrize('flags, words', BAD_VALIDATION, ids=[' '.join(flags) for flags, _ in BAD_VALIDATION])
def test_bad_validation_input_is_one_line_and_status_2(
        few_digits, trained, bad, tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(bad=bad) for flag in flags]
    with pytest.raises(SystemExit) as error:
        run_validate(few_digits, capsys, '--checkpoint', str(trained / 'last.pth.tar'), *flags)
    assert error.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
    assert not list(tmp_path.iterdir())


def test_aux_route_of_a_plain_model_is_refused(few_digits, tmp_path, capsys):
    torch.save(timm.create_model('test_resnet', num_classes=10).state_dict(), tmp_path / 'plain.pth')
    with pytest.raises(SystemExit) as error:
        run_validate(few_digits, capsys, '--model', 'test_resnet', '--checkpoint', str(tmp_path / 'plain.pth'),
                     '--route', 'aux')
    assert error.value.code == 2
    assert 'aux' in capsys.readouterr().err
