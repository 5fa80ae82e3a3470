"""Checkpoints that survive a kill, and what a run takes up from them."""
import os
import shutil
from argparse import Namespace

import pytest
import timm
import torch
from timm.utils import CheckpointSaver

from tests.engine.runs import equal_states, load
from timm_advprop.engine.saver import AtomicCheckpointSaver, resume, resume_ema
from timm_advprop.errors import InputError
from timm_advprop.regimes import AdvPropTask, Attack
from timm_advprop.weights import open_checkpoint


def make_task(seed=0, name='test_resnet_ap', ema=False):
    torch.manual_seed(seed)
    task = AdvPropTask(timm.create_model(name, num_classes=10), sources=Attack(eps_px=1), verbose=False)
    if ema:
        task.setup_ema(decay=0.5)
        for value in task.get_trainable_module(ema=True).parameters():
            torch.nn.init.uniform_(value)
    return task


def make_saver(folder, task, kind=AtomicCheckpointSaver, optimizer=None, **kwargs):
    model = task.get_trainable_module()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
    return kind(model=model, optimizer=optimizer, args=Namespace(model='test_resnet_ap', lr=.1),
                checkpoint_dir=str(folder), recovery_dir=str(folder), task=task, **kwargs)


def files_of(folder):
    return {file.name: load(file) for file in folder.iterdir()}


def step(optimizer, model):
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()


# atomic files

def test_the_files_are_timms(tmp_path):
    folders = {kind: tmp_path / kind.__name__ for kind in (AtomicCheckpointSaver, CheckpointSaver)}
    for kind, folder in folders.items():
        folder.mkdir()
        saver = make_saver(folder, make_task(), kind, max_history=2)
        for epoch, metric in enumerate((1., 3., 2., 0.)):
            saver.save_checkpoint(epoch, metric)
        saver.save_recovery(4, 7)
    ours, theirs = (files_of(folder) for folder in folders.values())
    assert sorted(ours) == sorted(theirs) == [
        'checkpoint-1.pth.tar', 'checkpoint-2.pth.tar', 'last.pth.tar', 'model_best.pth.tar', 'recovery-4-7.pth.tar']
    for name, content in ours.items():
        assert (content['epoch'], content.get('metric')) == (theirs[name]['epoch'], theirs[name].get('metric'))
        assert equal_states(content['state_dict'], theirs[name]['state_dict'])
    assert (ours['last.pth.tar']['epoch'], ours['model_best.pth.tar']['epoch']) == (3, 1)


class Killed(BaseException):
    pass


@pytest.mark.parametrize('hard_links', [True, False])
@pytest.mark.parametrize('moment', range(8))
def test_a_kill_at_any_moment_leaves_whole_files_of_one_epoch(tmp_path, monkeypatch, moment, hard_links):
    task = make_task()
    saver = make_saver(tmp_path, task)
    saver.save_checkpoint(0, 1.)
    before = {name: content for name, content in files_of(tmp_path).items()}
    torch.nn.init.constant_(task.get_trainable_module().fc.bias, 7.)
    calls = []

    def killing(function):
        def call(*args, **kwargs):
            calls.append(function)
            if len(calls) > moment:
                raise Killed  # and all that would follow, even what cleans up, does not happen
            return function(*args, **kwargs)
        return call

    with monkeypatch.context() as patch:
        for module, names in ((os, ('replace', 'unlink', 'remove')), (torch, ('save',)), (shutil, ('copy2',))):
            for name in names:
                patch.setattr(module, name, killing(getattr(module, name)))
        patch.setattr(os, 'link', killing(os.link) if hard_links else no_links)
        try:
            saver.save_checkpoint(1, 2.)
        except Killed:
            pass
    after = files_of(tmp_path)  # every file can be read
    for name in before:
        epoch = after[name]['epoch']
        assert epoch in (0, 1) and after[name]['metric'] == epoch + 1.
        assert (after[name]['state_dict']['fc.bias'] == 7).all() == (epoch == 1)
    assert after['checkpoint-0.pth.tar']['epoch'] == 0


def no_links(*args):
    raise OSError('no hard links here')


@pytest.mark.parametrize('hard_links', [True, False])
def test_what_a_kill_left_behind_is_cleaned_up(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, 'link', no_links)
    for name in ('tmp.pth.tar', 'model_best.pth.tar.tmp', 'checkpoint-0.pth.tar.tmp'):
        (tmp_path / name).write_text('half')
    make_saver(tmp_path, make_task()).save_checkpoint(0, 1.)
    assert sorted(files_of(tmp_path)) == ['checkpoint-0.pth.tar', 'last.pth.tar', 'model_best.pth.tar']


# continuing

@pytest.mark.parametrize('ema', [True, False])
def test_a_task_continues_with_what_was_saved(tmp_path, ema):
    task = make_task(ema=ema)
    model = task.get_trainable_module()
    optimizer = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
    step(optimizer, model)
    make_saver(tmp_path, task, optimizer=optimizer).save_checkpoint(4, 1.)
    checkpoint = open_checkpoint(str(tmp_path / 'last.pth.tar'), use_ema=False)

    other = make_task(seed=1, ema=ema)
    other_optimizer = torch.optim.SGD(other.get_trainable_module().parameters(), lr=7., momentum=.9)
    assert resume(other, checkpoint, other_optimizer) == 5
    if ema:
        resume_ema(other, checkpoint)
        assert equal_states(other.get_trainable_module(ema=True).module.state_dict(),
                            task.get_trainable_module(ema=True).module.state_dict())
    assert equal_states(other.get_trainable_module().state_dict(), model.state_dict())
    assert other_optimizer.param_groups[0]['lr'] == .1
    step(optimizer, model)
    step(other_optimizer, other.get_trainable_module())
    assert equal_states(other.get_trainable_module().state_dict(), model.state_dict())  # the momentum is the same


def test_an_average_starts_from_the_weights_of_a_run_without_one(tmp_path):
    task = make_task()
    make_saver(tmp_path, task).save_checkpoint(0, 1.)
    other = make_task(seed=1, ema=True)
    resume_ema(other, open_checkpoint(str(tmp_path / 'last.pth.tar'), use_ema=False))
    assert equal_states(other.get_trainable_module(ema=True).module.state_dict(),
                        task.get_trainable_module().state_dict())


def test_the_average_does_not_take_the_place_of_the_weights(tmp_path):
    task = make_task(ema=True)
    make_saver(tmp_path, task).save_checkpoint(0, 1.)
    for use_ema in (True, False):
        other = make_task(seed=1)
        resume(other, open_checkpoint(str(tmp_path / 'last.pth.tar'), use_ema=use_ema))
        assert equal_states(other.get_trainable_module().state_dict(), task.get_trainable_module().state_dict())


@pytest.mark.parametrize('content, epoch', [
    (dict(epoch=3, version=2), 4), (dict(epoch=3), 3), (dict(epoch=3, version=1), 3), (dict(), None),
], ids=str)
@pytest.mark.parametrize('key', ['state_dict', 'model'])
def test_the_epoch_to_continue_with(tmp_path, content, epoch, key):
    task = make_task()
    torch.save({key: task.get_trainable_module().state_dict(), **content}, tmp_path / 'run.pth')
    assert resume(make_task(seed=1), open_checkpoint(str(tmp_path / 'run.pth'))) == epoch


def test_weights_alone_can_be_continued(tmp_path):
    task, other = make_task(), make_task(seed=1, ema=True)
    torch.save(task.get_trainable_module().state_dict(), tmp_path / 'weights.pth')
    checkpoint = open_checkpoint(str(tmp_path / 'weights.pth'))
    assert resume(other, checkpoint) is None
    resume_ema(other, checkpoint)
    for ema in (True, False):
        module = other.get_eval_model(ema=ema)
        assert equal_states(getattr(module, 'module', module).state_dict(), task.get_trainable_module().state_dict())


def test_a_loss_scaler_continues(tmp_path):
    class Scaler:
        state_dict_key = 'amp_scaler'
        scale = 3.

        def state_dict(self):
            return dict(scale=self.scale)

        def load_state_dict(self, state):
            self.scale = state['scale']

    scaler, other = Scaler(), Scaler()
    scaler.scale = 9.
    make_saver(tmp_path, make_task(), amp_scaler=scaler).save_checkpoint(0, 1.)
    resume(make_task(), open_checkpoint(str(tmp_path / 'last.pth.tar')), loss_scaler=other)
    assert other.scale == 9.


def test_a_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path):
    task = make_task()
    make_saver(tmp_path, task).save_checkpoint(0, 1.)
    checkpoint = open_checkpoint(str(tmp_path / 'last.pth.tar'))
    with pytest.raises(InputError, match='last.pth.tar does not fit this model and optimizer'):
        resume(make_task(name='test_efficientnet_ap'), checkpoint)
    few = torch.optim.SGD([task.get_trainable_module().fc.weight], lr=.1)
    with pytest.raises(InputError, match='last.pth.tar does not fit this model and optimizer'):
        resume(task, checkpoint, few)


# the ranking

def test_a_run_that_continues_in_its_folder_keeps_the_ranking(tmp_path):
    saver = make_saver(tmp_path, make_task(), max_history=2)
    for epoch, metric in enumerate((1., 5., 2.)):
        saver.save_checkpoint(epoch, metric)
    other = make_saver(tmp_path, make_task(), max_history=2)
    other.restore_history(open_checkpoint(str(tmp_path / 'last.pth.tar')))
    assert (other.best_metric, other.best_epoch) == (5., 1)
    assert other.save_checkpoint(3, 4.) == (5., 1)
    assert load(tmp_path / 'model_best.pth.tar')['epoch'] == 1
    assert sorted(file.name for file in tmp_path.glob('checkpoint-*')) == [
        'checkpoint-1.pth.tar', 'checkpoint-3.pth.tar']


def test_a_checkpoint_of_another_folder_is_no_history(tmp_path):
    (tmp_path / 'new').mkdir()
    make_saver(tmp_path, make_task()).save_checkpoint(0, 9.)
    saver = make_saver(tmp_path / 'new', make_task())
    saver.restore_history(open_checkpoint(str(tmp_path / 'last.pth.tar')))
    assert saver.best_metric is None and not saver.checkpoint_files


def test_the_best_checkpoint_stands_for_a_history_that_was_not_saved(tmp_path):
    saver = make_saver(tmp_path, make_task())
    saver.save_checkpoint(0, 9.)
    saver.save_checkpoint(1, 3.)
    for name in ('last', 'model_best'):  # as timm before 1.0.31 wrote them
        content = load(tmp_path / f'{name}.pth.tar')
        del content['saver']
        (tmp_path / f'{name}.pth.tar').unlink()
        torch.save(content, tmp_path / f'{name}.pth.tar')
    other = make_saver(tmp_path, make_task())
    other.restore_history(open_checkpoint(str(tmp_path / 'last.pth.tar')))
    assert (other.best_metric, other.best_epoch) == (9., 0)


def test_a_timm_that_keeps_no_history_takes_up_the_best_checkpoint(tmp_path, monkeypatch):
    make_saver(tmp_path, make_task()).save_checkpoint(0, 9.)
    saver = make_saver(tmp_path, make_task())
    monkeypatch.delattr(CheckpointSaver, 'load_state_dict', raising=False)
    saver.restore_history(open_checkpoint(str(tmp_path / 'last.pth.tar')))
    assert (saver.best_metric, saver.best_epoch) == (9., 0)
