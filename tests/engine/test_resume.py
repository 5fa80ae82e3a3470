"""--resume: a run that was stopped continues as if nothing had happened."""
import builtins
import gc
import os
import shutil
import signal
import weakref

import pytest
import torch

from tests.engine.runs import equal_states, eval_settings, load, read_summary, run, train_settings
from timm_advprop.engine import epoch_validation, training
from timm_advprop.engine.loop import Trainer
from timm_advprop.engine.stopping import Stopped
from timm_advprop.engine.training import prepare, train
from timm_advprop.engine.validation import validate
from timm_advprop.errors import InputError

# One batch an epoch and nothing at random: where a run continues, it has seen the same images.
STILL = dict(batch_size=64, no_aug=True, smoothing=0., adv_target='none', adv_random_start=0., sched='step',
             decay_epochs=1, model_ema=True, model_ema_decay=.5)


@pytest.fixture
def half(few_digits, tmp_path):
    """Two of three epochs."""
    return run(few_digits, tmp_path, epochs=2, **STILL)


def stop_after(monkeypatch, epochs):
    train_epoch = Trainer.train_epoch

    def stopping(self, epoch, start=None):
        if epoch == epochs:
            self.signals.signal = signal.SIGTERM
            raise Stopped
        return train_epoch(self, epoch, start)

    monkeypatch.setattr(Trainer, 'train_epoch', stopping)


@pytest.mark.parametrize('opt', ['sgd', 'adamw'])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(few_digits, tmp_path, monkeypatch, opt):
    values = dict(STILL, epochs=3, opt=opt, lr=.01)
    whole = run(few_digits, tmp_path / 'whole', **values)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = run(few_digits, tmp_path / 'stopped', **values)
        before = load(stopped / 'last.pth.tar')
    resumed = run(few_digits, tmp_path / 'stopped', resume=str(stopped / 'last.pth.tar'), **values)
    expected, after = load(whole / 'last.pth.tar'), load(resumed / 'last.pth.tar')
    assert (before['epoch'], after['epoch']) == (1, 2)
    for name in ('state_dict', 'state_dict_ema'):
        assert after[name].keys() == expected[name].keys()
        for key, value in expected[name].items():
            torch.testing.assert_close(after[name][key], value, rtol=1e-3, atol=1e-5, msg=f'{name} {key}')
        assert not torch.equal(before[name]['fc.weight'], expected[name]['fc.weight'])
    assert after['state_dict']['bn1.aux_bn.0.num_batches_tracked'] == 3
    group, expected_group = (content['optimizer']['param_groups'][0] for content in (after, expected))
    assert group['lr'] == expected_group['lr'] == pytest.approx(.01 * .1 ** 3)  # that of the next epoch
    rows, expected_rows = read_summary(resumed), read_summary(whole)
    assert [row['epoch'] for row in rows] == ['0', '1', '2']
    for row, expected_row in zip(rows, expected_rows):
        assert float(row['lr']) == pytest.approx(float(expected_row['lr']))
        assert float(row['train_adv_loss']) == pytest.approx(float(expected_row['train_adv_loss']), rel=1e-3)
        assert row['eval_top1'] == expected_row['eval_top1']
    for name in ('best_metric', 'best_epoch'):
        assert after['saver'][name] == expected['saver'][name]


def test_the_file_is_read_once(few_digits, half, tmp_path, monkeypatch):
    path = os.path.realpath(half / 'last.pth.tar')
    read = dict(load=[], open=[])

    def counting(name, function):
        def count(file, *args, **kwargs):
            mode = args[0] if args and name == 'open' else kwargs.get('mode', 'r')
            if isinstance(file, (str, os.PathLike)) and os.path.realpath(file) == path and 'r' in mode:
                read[name].append(file)
            return function(file, *args, **kwargs)
        return count

    monkeypatch.setattr(torch, 'load', counting('load', torch.load))
    monkeypatch.setattr(builtins, 'open', counting('open', builtins.open))
    run(few_digits, tmp_path, epochs=3, resume=str(half / 'last.pth.tar'), **STILL)
    assert len(read['load']) == 1
    assert len(read['open']) == 1
    monkeypatch.undo()
    assert load(half / 'last.pth.tar')['epoch'] == 2


def test_what_was_read_is_let_go_before_the_first_epoch(few_digits, half, tmp_path, monkeypatch):
    opened, alive = [], []
    open_checkpoint = training.open_checkpoint

    def opening(*args, **kwargs):
        checkpoint = open_checkpoint(*args, **kwargs)
        opened.append(weakref.ref(checkpoint))
        return checkpoint

    def train_epoch(self, epoch, start=None):
        gc.collect()
        alive.append(opened[0]() is not None)
        return dict(loss=1.)

    monkeypatch.setattr(training, 'open_checkpoint', opening)
    monkeypatch.setattr(Trainer, 'train_epoch', train_epoch)
    run(few_digits, tmp_path, epochs=3, resume=str(half / 'last.pth.tar'), **STILL)
    assert alive == [False]  # it holds the weights, their average and the optimizer once more


def test_resume_without_epochs_left_says_so_and_changes_nothing(few_digits, half, tmp_path, caplog):
    before = load(half / 'last.pth.tar')
    with caplog.at_level('INFO'):
        folder = run(few_digits, tmp_path / 'other', epochs=2, resume=str(half / 'last.pth.tar'), **STILL)
    assert 'The run is finished' in caplog.text
    assert not (folder / 'last.pth.tar').exists()
    assert equal_states(load(half / 'last.pth.tar')['state_dict'], before['state_dict'])


def test_the_best_checkpoint_of_a_resumed_run_is_the_best_of_all_epochs(few_digits, tmp_path, monkeypatch):
    metrics = iter((10., 90., 50., 40.))
    monkeypatch.setattr(epoch_validation, 'evaluate', lambda *args, **kwargs: dict(
        loss=0., top1=next(metrics), top5=0.))
    monkeypatch.setattr(Trainer, 'train_epoch', lambda self, epoch, start: dict(loss=1.))
    folder = run(few_digits, tmp_path, epochs=2)
    run(few_digits, tmp_path, epochs=4, resume=str(folder / 'last.pth.tar'))
    assert load(folder / 'model_best.pth.tar')['epoch'] == 1
    assert load(folder / 'last.pth.tar')['epoch'] == 3


@pytest.mark.parametrize('values', [dict(resume='checkpoint-0'), dict(resume='last', start_epoch=1)], ids=str)
def test_the_best_checkpoint_is_none_of_epochs_that_were_trained_anew(few_digits, tmp_path, monkeypatch, values):
    metrics = iter((50., 10., 90., 40., 30.))
    monkeypatch.setattr(epoch_validation, 'evaluate', lambda *args, **kwargs: dict(
        loss=0., top1=next(metrics), top5=0.))
    monkeypatch.setattr(Trainer, 'train_epoch', lambda self, epoch, start: dict(loss=1.))
    folder = run(few_digits, tmp_path, epochs=3)
    assert load(folder / 'model_best.pth.tar')['epoch'] == 2
    run(few_digits, tmp_path, epochs=3, **{**values, 'resume': str(folder / f'{values["resume"]}.pth.tar')})
    assert load(folder / 'model_best.pth.tar')['epoch'] == 0
    assert [row['eval_top1'] for row in read_summary(folder)] == ['50.0', '40.0', '30.0']


def test_what_a_kill_left_half_written_is_cleaned_up(few_digits, half, tmp_path):
    strays = [half / name for name in ('last.pth.tar.tmp', 'summary.csv.tmp', 'tmp.pth.tar', 'recovery_tmp.pth.tar')]
    for path in strays:
        path.write_text('half')
    run(few_digits, tmp_path, epochs=2, resume=str(half / 'last.pth.tar'), **STILL)
    assert not any(path.exists() for path in strays)


def first_epoch(few_digits, tmp_path, monkeypatch, **values):
    epochs, states = [], []

    def train_epoch(self, epoch, start=None):
        epochs.append(epoch)
        states.append((self.optimizer.state_dict(), self.optimizer.param_groups[0]['lr']))
        self.signals.signal = signal.SIGTERM
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'train_epoch', train_epoch)
        train(train_settings(data_dir=few_digits, output=str(tmp_path), experiment='other', **{
            **STILL, 'epochs': 9, **values}))
    return epochs[0], *states[0]


def test_the_first_epoch_may_be_set(few_digits, half, tmp_path, monkeypatch):
    resumed = dict(resume=str(half / 'last.pth.tar'))
    assert first_epoch(few_digits, tmp_path, monkeypatch, **resumed)[::2] == (2, pytest.approx(.05 * .01))
    assert first_epoch(few_digits, tmp_path, monkeypatch, **resumed, start_epoch=1)[::2] == (1, pytest.approx(.005))
    assert first_epoch(few_digits, tmp_path, monkeypatch, **resumed, start_epoch=0)[0] == 0
    assert first_epoch(few_digits, tmp_path, monkeypatch, start_epoch=1)[::2] == (1, pytest.approx(.005))
    assert first_epoch(few_digits, tmp_path, monkeypatch)[::2] == (0, .05)


@pytest.mark.parametrize('on_updates', [False, True])
def test_the_schedule_continues_on_epochs_and_on_updates(few_digits, half, tmp_path, monkeypatch, on_updates):
    _, _, rate = first_epoch(few_digits, tmp_path, monkeypatch, resume=str(half / 'last.pth.tar'), sched='multistep',
                             decay_milestones=[2], decay_rate=.5, sched_on_updates=on_updates)
    assert rate == pytest.approx(.025)


def test_the_optimizer_may_be_left_behind(few_digits, half, tmp_path, monkeypatch):
    resumed = dict(resume=str(half / 'last.pth.tar'))
    _, with_momentum, _ = first_epoch(few_digits, tmp_path, monkeypatch, **resumed)
    _, without, _ = first_epoch(few_digits, tmp_path, monkeypatch, **resumed, no_resume_opt=True)
    assert with_momentum['state'] and not without['state']


@pytest.mark.parametrize('values', [dict(batch_size=8), dict(grad_accum_steps=2), dict(seed=7)], ids=str)
def test_an_epoch_of_other_batches_begins_anew(few_digits, tmp_path, caplog, values):
    run(few_digits, tmp_path, epochs=1, recovery_interval=2)
    recovery = str(tmp_path / 'run/recovery-0-1.pth.tar')
    with caplog.at_level('INFO'):
        other = run(few_digits, tmp_path / 'other', epochs=1, resume=recovery, **values)
    assert 'epoch 0 begins anew' in caplog.text
    batches = 8 if 'batch_size' in values else 4
    assert load(other / 'last.pth.tar')['state_dict']['bn1.num_batches_tracked'] == 2 + batches


def test_an_epoch_of_other_images_begins_anew(few_digits, tmp_path, caplog):
    run(few_digits, tmp_path, epochs=1, recovery_interval=2)
    shutil.copytree(few_digits, tmp_path / 'fewer')
    next((tmp_path / 'fewer/train').glob('*/*')).unlink()
    for data, anew in ((few_digits, False), (str(tmp_path / 'fewer'), True)):
        parts, *_ = prepare(train_settings(data_dir=data, resume=str(tmp_path / 'run/recovery-0-1.pth.tar')))
        assert parts.start.update == (0 if anew else 2)
        assert ('epoch 0 begins anew' in caplog.text) is anew


def test_another_architecture_is_refused(few_digits, half, tmp_path):
    path = str(half / 'last.pth.tar')
    values = dict(model='test_efficientnet_ap', data_dir=few_digits)
    for loaded_by in (
            lambda: train(train_settings(output=str(tmp_path / 'other'), resume=path, **values)),
            lambda: train(train_settings(output=str(tmp_path / 'other'), initial_checkpoint=path, **values)),
            lambda: validate(eval_settings(checkpoint=path, **values))):
        with pytest.raises(InputError) as error:
            loaded_by()
        assert str(error.value) == f'{path} is of test_resnet_ap, --model says test_efficientnet_ap: it does not fit.'
    with pytest.raises(InputError, match=r'does not fit test_resnet_ap: .*conv1.0.weight: .* in the model'):
        prepare(train_settings(data_dir=few_digits, in_chans=1, initial_checkpoint=path))
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize('values, number', [
    (dict(adv_eps=[2., 4.]), 2), (dict(model='test_resnet', regime='vanilla', adv_eps=None), 0)])
def test_another_number_of_norms_is_refused(few_digits, half, values, number):
    values = dict(data_dir=few_digits, resume=str(half / 'last.pth.tar'), **values)
    with pytest.raises(InputError) as error:
        prepare(train_settings(**values))
    assert str(error.value) == (f'{half}/last.pth.tar has 1 auxiliary norm for each norm, this run {number} (--model, '
                                '--adv-eps, --adv-source): give the same number.')
    if number > 1:  # further norms start as copies
        assert prepare(train_settings(**values, no_resume_opt=True))[0].start.epoch == 2


def test_weights_alone_are_resumed_from_the_first_epoch(few_digits, half, tmp_path, monkeypatch):
    torch.save(load(half / 'last.pth.tar')['state_dict'], tmp_path / 'weights.pth')
    assert first_epoch(few_digits, tmp_path, monkeypatch, resume=str(tmp_path / 'weights.pth'))[0] == 0


@pytest.mark.parametrize('changes, told', [({}, None), (dict(adv_eps=[2.]), '--adv-eps'), (
    dict(regime='advprop', adv_source=['gaussian-noise'], adv_target=None, adv_random_start=None),
    '--adv-')])
def test_a_run_that_goes_on_with_another_regime_or_source_says_so(few_digits, half, tmp_path, caplog, changes, told):
    run(few_digits, tmp_path / 'on', epochs=3, resume=str(half / 'last.pth.tar'), **{**STILL, **changes})
    lines = [message for message in caplog.messages if 'was trained with other settings' in message]
    assert len(lines) == (told is not None) and (told is None or f'settings of {told}' in lines[0])
