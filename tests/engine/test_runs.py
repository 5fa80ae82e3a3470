"""Training runs on few digits: what they write, and what each regime and setting trains."""
import signal
from dataclasses import FrozenInstanceError

import pytest
import timm
import torch
import yaml
from timm.utils import ModelEmaV3

import timm_advprop
from tests.engine.runs import equal_states, eval_settings, load, read_summary, run, train_settings
from timm_advprop.engine import epoch_validation, training
from timm_advprop.engine.loop import NonFiniteLoss, Trainer
from timm_advprop.engine.placement import Placement
from timm_advprop.engine.training import train
from timm_advprop.engine.validation import validate
from timm_advprop.errors import InputError


@pytest.fixture(scope='module')
def trained(few_digits, tmp_path_factory):
    return run(few_digits, tmp_path_factory.mktemp('trained'), epochs=2)


def state_of(folder, name='last'):
    return load(folder / f'{name}.pth.tar')['state_dict']


# what a run leaves

def test_the_folder_is_as_timms(trained):
    assert sorted(file.name for file in trained.iterdir()) == [
        '.lock', 'args.yaml', 'checkpoint-0.pth.tar', 'checkpoint-1.pth.tar', 'curves.png', 'last.pth.tar',
        'model_best.pth.tar', 'summary.csv']
    rows = read_summary(trained)
    assert [row['epoch'] for row in rows] == ['0', '1']
    assert [float(row['lr']) for row in rows] == pytest.approx([.05, .025])
    for row in rows:
        total = float(row['train_clean_loss']) + float(row['train_adv_loss'])
        assert float(row['train_loss']) == pytest.approx(total, rel=1e-5)
        assert 0 <= float(row['eval_top1']) <= float(row['eval_top5']) <= 100
    best = max(rows, key=lambda row: float(row['eval_top1']))
    assert load(trained / 'model_best.pth.tar')['epoch'] == int(best['epoch'])


@pytest.mark.parametrize('batch_size', [1, 7, 256])
def test_the_validation_program_finds_what_training_found(trained, few_digits, batch_size):
    results = validate(eval_settings(
        data_dir=few_digits, checkpoint=str(trained / 'last.pth.tar'), batch_size=batch_size))
    row = read_summary(trained)[-1]
    for name in ('top1', 'top5'):
        assert results[name] == round(float(row[f'eval_{name}']), 4)
        hits = float(row[f'eval_{name}']) * 40 / 100  # of 40 images
        assert hits == pytest.approx(round(hits), abs=1e-9)


@pytest.mark.parametrize('dist_bn', ['reduce', 'broadcast', ''])
def test_statistics_are_shared_before_a_model_is_validated(few_digits, tmp_path, monkeypatch, one_process, dist_bn):
    placement, events = Placement(torch.device('cpu'), distributed=True), []
    monkeypatch.setattr(training, 'open_placement', lambda *args, **kwargs: placement)
    monkeypatch.setattr(training, 'distribute_bn', lambda model, world_size, reduce: events.append(
        ('shared', isinstance(model, ModelEmaV3), reduce)))
    monkeypatch.setattr(epoch_validation, 'evaluate', lambda *args, **kwargs: events.append(
        ('validated',)) or dict(top1=1.))
    run(few_digits, tmp_path, regime='vanilla', adv_eps=None, model_ema=True, dist_bn=dist_bn)
    shared = [('shared', ema, dist_bn == 'reduce') for ema in (False, True)]
    assert events == ([shared[0], ('validated',), shared[1], ('validated',)] if dist_bn else [('validated',)] * 2)


def test_results_of_a_run_are_its_epochs_best_last(few_digits, tmp_path):
    ran = train(train_settings(data_dir=few_digits, output=str(tmp_path), experiment='run', epochs=3))
    assert (ran.stopped_by, ran.folder, ran.primary) == (None, str(tmp_path / 'run'), True)
    top1 = [result['validation']['top1'] for result in ran.results]
    assert top1 == sorted(top1) and len(top1) == 3
    rows = read_summary(tmp_path / 'run')
    for result in ran.results:
        row = rows[result['epoch']]
        assert float(row['train_adv_loss']) == result['train']['adv_loss']
        assert float(row['eval_loss']) == result['validation']['loss']


def test_the_checkpoint_is_a_superset_of_a_plain_one_and_its_aux_norms_were_trained(trained):
    main, aux = timm_advprop.split_state_dict(state_of(trained))
    timm.create_model('test_resnet', num_classes=10).load_state_dict(main)
    assert aux
    main_of = {key: key.replace('.aux_bn.0', '') for key in aux}
    assert any(not torch.equal(aux[key], main[name]) for key, name in main_of.items() if 'weight' in key)
    assert any(not torch.equal(aux[key], main[name]) for key, name in main_of.items() if 'running_mean' in key)
    assert {int(value) for key, value in {**main, **aux}.items() if key.endswith('tracked')} == {8}


def test_arguments_of_a_run_are_what_was_given_and_nothing_changes_them(few_digits, tmp_path):
    settings = train_settings(data_dir=few_digits, output=str(tmp_path), experiment='run', lr=None, lr_base=.05,
                              epochs=3, adv_budget='vanilla', decay_milestones=[3], device='cpu')
    given = dict(settings.given)
    groups = {name: getattr(settings, name) for name in ('schedule', 'optimizer', 'device', 'regime')}
    train(settings)
    assert settings.given == given
    assert {name: getattr(settings, name) for name in groups} == groups
    assert yaml.safe_load((tmp_path / 'run/args.yaml').read_text()) == given
    checkpoint = load(tmp_path / 'run/last.pth.tar')
    batches = dict(batch_size=16, grad_accum_steps=1, seed=42, world_size=1, train_images=64)
    assert vars(checkpoint['args']) == {**given, **batches}
    assert checkpoint['arch'] == 'test_resnet_ap' and checkpoint['epoch'] == 0  # a third of the epochs
    with pytest.raises(FrozenInstanceError):
        settings.schedule.epochs = 1
    with pytest.raises(FrozenInstanceError):
        settings.schedule = None


def test_a_folder_without_a_name_has_date_model_and_size(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Trainer, 'train_epoch', lambda self, epoch, start: dict(loss=1.))
    folder = train(train_settings(data_dir=few_digits, output=str(tmp_path), val_split='', eval_metric='loss')).folder
    assert folder.startswith(str(tmp_path)) and folder.endswith('-test_resnet_ap-32')


def test_a_run_follows_its_seed(few_digits, tmp_path):
    states = [state_of(run(few_digits, tmp_path / str(index), seed=seed)) for index, seed in enumerate((1, 1, 2))]
    assert equal_states(states[0], states[1]) and not equal_states(states[0], states[2])


# regimes

def test_vanilla_on_a_split_model_equals_the_plain_model(few_digits, tmp_path):
    split = state_of(run(few_digits, tmp_path / 'split', regime='vanilla'))
    plain = state_of(run(few_digits, tmp_path / 'plain', regime='vanilla', model='test_resnet'))
    main, aux = timm_advprop.split_state_dict(split)
    assert aux and equal_states(main, plain)


def test_advprop_converts_a_plain_model(few_digits, tmp_path):
    folder = run(few_digits, tmp_path, regime='advprop', model='test_efficientnet')
    assert any('aux_bn' in key for key in state_of(folder))


@pytest.mark.parametrize('regime, values, columns', [
    ('vanilla', {}, {'clean_loss', 'clean_top1'}),
    ('madry', {}, {'adv_loss', 'adv_top1'}),
    ('joint', dict(adv_norm='l2', adv_alpha=20., adv_eps=40.), {'clean_loss', 'adv_loss', 'clean_top1', 'adv_top1'}),
    ('advprop', dict(split_bn=True, aug_splits=2, aa='rand-m5'),
     {'clean_loss', 'aug_loss', 'adv_loss', 'clean_top1', 'aug_top1', 'adv_top1'}),
    ('advprop', dict(adv_source='gaussian-noise', adv_eps=[4., 8.]),
     {'clean_loss', 'adv_loss', 'clean_top1', 'adv_top1'}),
    ('fast-advprop', dict(batch_size=20, grad_accum_steps=2),
     {'clean_loss', 'attack_loss', 'adv_loss', 'clean_top1', 'adv_top1'}),
], ids=lambda value: '' if isinstance(value, set) else str(value))
def test_every_regime_trains_and_logs_losses_and_accuracies(few_digits, tmp_path, caplog, regime, values, columns):
    with caplog.at_level('INFO'):
        folder = run(few_digits, tmp_path, regime=regime, **values)
    row = read_summary(folder)[0]
    assert {name for name in row if name.startswith('train_')} == {'train_loss', *(f'train_{name}' for name in columns)}
    assert all(0 <= float(row[f'train_{name}']) <= 100 for name in columns if name.endswith('top1'))
    progress = [text for text in caplog.messages if text.startswith('Train: 0')]
    assert all(f'{name}: ' in progress[-1] for name in columns)
    assert any(text.startswith(regime) and text.endswith('× the arithmetic of vanilla') for text in caplog.messages)


def test_adversarial_pretraining_then_clean_fine_tuning(few_digits, tmp_path):
    pretrained = run(few_digits, tmp_path / 'a', model='test_resnet', regime='madry')
    tuned = run(few_digits, tmp_path / 'b', model='test_resnet', regime='vanilla', lr=1e-12,
                initial_checkpoint=str(pretrained / 'last.pth.tar'))
    torch.testing.assert_close(state_of(tuned)['fc.weight'], state_of(pretrained)['fc.weight'])


def test_a_budget_shortens_the_run_and_its_schedule(few_digits, tmp_path):
    folder = run(few_digits, tmp_path, regime='joint', epochs=6, adv_budget='vanilla', batch_size=32, val_interval=9,
                 sched='multistep', sched_on_updates=True, decay_milestones=[3], lr=.01)
    checkpoint = load(folder / 'last.pth.tar')
    assert checkpoint['epoch'] == 1  # PGD-1 costs 8/3: two epochs of six, and the milestone is 1
    assert [row['epoch'] for row in read_summary(folder)] == ['1']
    assert checkpoint['optimizer']['param_groups'][0]['lr'] == pytest.approx(.001)
    # the recipe stays as given: what is published must not be divided again
    assert (checkpoint['args'].epochs, checkpoint['args'].decay_milestones) == (6, [3])


def test_a_plain_model_takes_a_checkpoint_with_auxiliary_norms_into_advprop(few_digits, trained, tmp_path):
    folder = run(few_digits, tmp_path, model='test_resnet', regime='advprop', lr=1e-12,
                 initial_checkpoint=str(trained / 'last.pth.tar'))
    source, state = state_of(trained), state_of(folder)
    assert list(state) == list(source)
    torch.testing.assert_close(state['bn1.aux_bn.0.weight'], source['bn1.aux_bn.0.weight'])
    assert not torch.equal(source['bn1.aux_bn.0.weight'], source['bn1.weight'])


# settings that only a run can show

def test_the_average_of_a_run_is_that_of_its_updates(few_digits, tmp_path, monkeypatch):
    updates = []
    update = ModelEmaV3.update

    def record(self, model, step=None):
        updates.append({name: value.clone() for name, value in model.state_dict().items()})
        update(self, model, step=step)

    monkeypatch.setattr(ModelEmaV3, 'update', record)
    folder = run(few_digits, tmp_path, model_ema=True, model_ema_decay=.5)
    assert len(updates) == 4
    expected = updates[0]
    for state in updates[1:]:
        expected = {name: .5 * expected[name] + .5 * value for name, value in state.items()}
    checkpoint = load(folder / 'last.pth.tar')
    assert equal_states(checkpoint['state_dict'], updates[-1])
    for name in ('fc.weight', 'bn1.aux_bn.0.weight', 'bn1.aux_bn.0.running_mean'):
        torch.testing.assert_close(checkpoint['state_dict_ema'][name], expected[name])
        assert not torch.equal(checkpoint['state_dict_ema'][name], checkpoint['state_dict'][name])


@pytest.mark.parametrize('on_cpu', [False, True])
def test_the_average_is_what_counts_where_it_is_validated(few_digits, tmp_path, monkeypatch, on_cpu):
    names = []

    def evaluate(model, *args, log_name, **kwargs):
        names.append(log_name)
        return dict(loss=0., top1=float(len(names)), top5=0.)

    monkeypatch.setattr(epoch_validation, 'evaluate', evaluate)
    folder = run(few_digits, tmp_path, model_ema=True, model_ema_force_cpu=on_cpu, model_ema_warmup=True)
    assert names == ['Test'] if on_cpu else ['Test', 'Test (EMA)']
    assert load(folder / 'last.pth.tar')['metric'] == len(names)


def test_lower_precision_trains_other_weights_of_full_precision(few_digits, tmp_path):
    full = state_of(run(few_digits, tmp_path / 'full'))
    mixed = state_of(run(few_digits, tmp_path / 'mixed', amp=True, amp_dtype='bfloat16', channels_last=True))
    assert all(value.dtype == full[name].dtype for name, value in mixed.items())
    assert not torch.equal(mixed['fc.weight'], full['fc.weight'])
    torch.testing.assert_close(mixed['fc.weight'], full['fc.weight'], atol=.1, rtol=.1)


@pytest.mark.parametrize('regime, backend', [
    ('vanilla', 'eager'), pytest.param('advprop', 'aot_eager', marks=pytest.mark.slow)])
def test_a_compiled_model_trains_as_the_plain_one(few_digits, tmp_path, regime, backend):
    values = dict(regime=regime, model_ema=True, batch_size=32)
    plain = load(run(few_digits, tmp_path / 'plain', **values) / 'last.pth.tar')
    compiled = load(run(few_digits, tmp_path / 'compiled', torchcompile=backend, **values) / 'last.pth.tar')
    for name in ('state_dict', 'state_dict_ema'):
        assert compiled[name].keys() == plain[name].keys()  # no _orig_mod
        for key in ('fc.weight', 'bn1.running_mean', 'bn1.aux_bn.0.running_mean'):
            # an attack on an eager model folds norms: rounding decides signs of small gradients
            torch.testing.assert_close(compiled[name][key], plain[name][key], rtol=1e-3, atol=1e-3)


def test_pictures_recovery_and_rare_validation(few_digits, tmp_path):
    folder = run(few_digits, tmp_path, in_chans=1, mean=[.5], std=[.5], save_images=True, log_interval=2, epochs=3,
                 recovery_interval=2, val_interval=2, checkpoint_hist=1, no_prefetcher=True)
    names = {file.name for file in folder.iterdir()}
    assert {'train-batch-0.jpg', 'train-batch-2.jpg', 'train-batch-3.jpg'} <= names
    assert {name for name in names if name.startswith('recovery')} == {
        'recovery-2-1.pth.tar', 'recovery-2-3.pth.tar'}  # the last two
    assert [row['epoch'] for row in read_summary(folder)] == ['1', '2']  # every second, and the last
    assert len([name for name in names if name.startswith('checkpoint-')]) == 1
    assert state_of(folder)['conv1.0.weight'].shape[1] == 1


def test_pictures_of_channels_that_no_jpeg_has_are_refused_before_the_folder_is_made(few_digits, tmp_path):
    with pytest.raises(InputError, match='--save-images writes pictures of 1 or 3 channels, the model takes 4'):
        run(few_digits, tmp_path, in_chans=4, input_img_mode='RGBA', save_images=True)
    assert not list(tmp_path.iterdir())


def test_without_validation_the_training_loss_is_the_metric(few_digits, tmp_path):
    ran = train(train_settings(
        data_dir=few_digits, output=str(tmp_path), experiment='run', val_split='', eval_metric='loss', epochs=3))
    folder = tmp_path / 'run'
    losses = {int(row['epoch']): float(row['train_loss']) for row in read_summary(folder)}
    assert not any(name.startswith('eval') for name in read_summary(folder)[0])
    best_last = sorted(losses, key=losses.get, reverse=True)
    assert [result['epoch'] for result in ran.results] == best_last
    checkpoint = load(folder / 'model_best.pth.tar')
    assert (checkpoint['epoch'], checkpoint['metric']) == (best_last[-1], losses[best_last[-1]])


def test_plateau_follows_the_metric_of_the_run(few_digits, tmp_path, monkeypatch):
    metrics = iter((50., 40., 30., 60.))
    monkeypatch.setattr(epoch_validation, 'evaluate', lambda *args, **kwargs: dict(
        loss=0., top1=next(metrics), top5=0.))
    monkeypatch.setattr(Trainer, 'train_epoch', lambda self, epoch, start: dict(loss=1.))
    folder = run(few_digits, tmp_path, sched='plateau', patience_epochs=0, decay_rate=.5, epochs=4)
    assert [float(row['lr']) for row in read_summary(folder)] == pytest.approx([.05, .05, .025, .0125])


# how a run ends

def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == '.tar'}


def test_a_non_finite_loss_keeps_every_checkpoint_as_it_was(few_digits, tmp_path):
    folder = run(few_digits, tmp_path)
    before, kept = contents(folder), state_of(folder)
    assert sorted(before) == ['checkpoint-0.pth.tar', 'last.pth.tar', 'model_best.pth.tar']
    with pytest.raises(NonFiniteLoss, match='The loss is'):
        run(few_digits, tmp_path, lr=1e30, epochs=9, resume='auto')
    assert contents(folder) == before
    assert equal_states(state_of(folder), kept)
    assert all(torch.isfinite(value).all() for value in kept.values())


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_a_run_after_its_update_and_says_how_to_go_on(
        few_digits, tmp_path, monkeypatch, caplog, number):
    train_epoch, handler = Trainer.train_epoch, signal.getsignal(number)

    def signalled(self, epoch, start=None):
        if epoch == 1:
            signal.raise_signal(number)
        return train_epoch(self, epoch, start)

    monkeypatch.setattr(Trainer, 'train_epoch', signalled)
    with caplog.at_level('INFO'):
        ran = train(train_settings(data_dir=few_digits, output=str(tmp_path), experiment='run', epochs=3))
    assert ran.stopped_by == number and [result['epoch'] for result in ran.results] == [0]
    recovery = tmp_path / 'run/recovery-1-0.pth.tar'
    assert f'--resume {recovery}' in caplog.text
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 0
    assert load(recovery)['state_dict']['bn1.num_batches_tracked'] == 5
    assert signal.getsignal(number) == handler


def test_ctrl_c_twice_ends_a_run_at_once(few_digits, tmp_path, monkeypatch):
    def twice(self, epoch, start=None):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, 'train_epoch', twice)
    with pytest.raises(KeyboardInterrupt):
        train(train_settings(data_dir=few_digits, output=str(tmp_path), experiment='run'))
