"""Checkpoints that survive a kill, and what a run takes up from them."""
import math
import os
from argparse import Namespace

import pytest
import timm
import torch
from timm.utils import CheckpointSaver

from tests.engine.runs import equal_states, load
from tests.stock_timm import REMEMBERS
from timm_advprop.engine.saver import CheckpointKeeper, Position, newest_checkpoint, resume, resume_ema
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


def make_keeper(folder, task, optimizer=None, **kwargs):
    optimizer = optimizer or make_optimizer(task)
    return CheckpointKeeper(
        folder=str(folder), task=task, optimizer=optimizer, args=Namespace(model='test_resnet_ap', lr=.1), **kwargs)


def make_optimizer(task):
    return torch.optim.SGD(task.get_trainable_module().parameters(), lr=.1, momentum=.9)


def take_up(keeper, name='last', start_epoch=9):
    path = os.path.join(keeper.folder, f'{name}.pth.tar')
    keeper.take_up(open_checkpoint(path, use_ema=False), start_epoch)


def epochs_of(folder):
    return {name.removesuffix('.pth.tar'): content['epoch'] for name, content in files_of(folder).items()}


def files_of(folder):
    return {file.name: load(file) for file in folder.iterdir()}


def step(optimizer, model):
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()


# atomic files

@pytest.mark.parametrize('metrics', [(1., 3., 2., 0.), (1., 1., 1., 1.), (4., 3., 2., 1.), (2., 3., 2., 3.)])
@pytest.mark.parametrize('decreasing', [True, False])
def test_the_files_are_timms(tmp_path, metrics, decreasing):
    ours, theirs = (tmp_path / name for name in ('ours', 'theirs'))
    for folder in (ours, theirs):
        folder.mkdir()
    task = make_task()
    keeper = make_keeper(ours, task, max_history=2, decreasing=decreasing)
    saver = CheckpointSaver(
        model=task.get_trainable_module(), optimizer=make_optimizer(task), args=Namespace(model='test_resnet_ap'),
        checkpoint_dir=str(theirs), recovery_dir=str(theirs), task=task, max_history=2, decreasing=decreasing)
    for epoch, metric in enumerate(metrics):
        assert keeper.save_checkpoint(epoch, metric) == saver.save_checkpoint(epoch, metric)
    keeper.save_recovery(4, 8, [])
    saver.save_recovery(4, 7)
    ours, theirs = files_of(ours), files_of(theirs)
    assert sorted(ours) == sorted(theirs)
    for name, content in ours.items():
        assert (content['epoch'], content.get('metric')) == (theirs[name]['epoch'], theirs[name].get('metric'))
        assert equal_states(content['state_dict'], theirs[name]['state_dict'])
        assert content.keys() - theirs[name].keys() <= {'position', 'shares', *([] if REMEMBERS else ['saver'])}


@pytest.mark.skipif(not REMEMBERS, reason='timm before 1.0.31 keeps no history')
def test_timms_saver_takes_up_the_history(tmp_path):
    keeper = make_keeper(tmp_path, make_task(), max_history=2)
    for epoch, metric in enumerate((1., 3., 2.)):
        keeper.save_checkpoint(epoch, metric)
    saver = CheckpointSaver(model=None, optimizer=None, checkpoint_dir=str(tmp_path), max_history=2)
    saver.load_state_dict(load(tmp_path / 'last.pth.tar')['saver'])
    assert (saver.best_metric, saver.best_epoch) == (3., 1)
    assert [os.path.basename(path) for path, _ in saver.checkpoint_files] == [
        'checkpoint-1.pth.tar', 'checkpoint-2.pth.tar']


def test_the_two_newest_recovery_checkpoints_are_kept(tmp_path):
    for _ in range(2):  # by a resumed run, too
        keeper = make_keeper(tmp_path, make_task())
        for update in (1, 9, 10):
            keeper.save_recovery(0, update, [])
    assert sorted(files_of(tmp_path)) == ['recovery-0-8.pth.tar', 'recovery-0-9.pth.tar']


def test_an_epoch_that_is_trained_once_more_counts_once(tmp_path):
    keeper = make_keeper(tmp_path, make_task(), max_history=2)
    for epoch, metric in ((0, 1.), (1, 3.), (1, 2.), (2, 0.)):
        keeper.save_checkpoint(epoch, metric)
    assert keeper.ranking == [(1, 2.), (0, 1.)]
    assert epochs_of(tmp_path) == {'last': 2, 'checkpoint-0': 0, 'checkpoint-1': 1, 'model_best': 1}
    keeper.save_checkpoint(1, .5)
    assert epochs_of(tmp_path) == {'last': 1, 'checkpoint-0': 0, 'checkpoint-1': 1, 'model_best': 0}


def test_a_metric_that_is_no_number_is_the_worst(tmp_path):
    keeper = make_keeper(tmp_path, make_task(), max_history=2)
    for epoch, metric in enumerate((math.nan, 1., 2.)):
        keeper.save_checkpoint(epoch, metric)
    assert sorted(file.name for file in tmp_path.glob('checkpoint-*')) == [
        'checkpoint-1.pth.tar', 'checkpoint-2.pth.tar']


def test_an_epoch_without_the_metric_is_the_last_one_and_no_candidate(tmp_path):
    task = make_task()
    keeper = make_keeper(tmp_path, task)
    assert keeper.save_checkpoint(0, None) == (None, None)
    assert {path.name for path in tmp_path.iterdir()} == {'last.pth.tar'}
    keeper.save_checkpoint(1, 5.)
    assert keeper.save_checkpoint(2, None) == (5., 1)
    assert {name: content['epoch'] for name, content in files_of(tmp_path).items()} == {
        'last.pth.tar': 2, 'checkpoint-1.pth.tar': 1, 'model_best.pth.tar': 1}
    other = make_keeper(tmp_path, task)
    take_up(other, 'last', 1)
    assert other.best == (None, None)
    assert other.save_checkpoint(1, None) == (None, None)  # trained once more
    assert {path.name for path in tmp_path.glob('checkpoint-*')} == set()


# continuing

@pytest.mark.parametrize('ema', [True, False])
def test_a_task_continues_with_what_was_saved(tmp_path, ema):
    task = make_task(ema=ema)
    model = task.get_trainable_module()
    optimizer = make_optimizer(task)
    step(optimizer, model)
    make_keeper(tmp_path, task, optimizer=optimizer).save_checkpoint(4, 1.)
    checkpoint = open_checkpoint(str(tmp_path / 'last.pth.tar'), use_ema=False)

    other = make_task(seed=1, ema=ema)
    other_optimizer = make_optimizer(other)
    assert resume(other, checkpoint, other_optimizer) == Position(5)
    if ema:
        resume_ema(other, checkpoint)
        assert equal_states(other.get_trainable_module(ema=True).module.state_dict(),
                            task.get_trainable_module(ema=True).module.state_dict())
    assert equal_states(other.get_trainable_module().state_dict(), model.state_dict())
    step(optimizer, model)
    step(other_optimizer, other.get_trainable_module())
    assert equal_states(other.get_trainable_module().state_dict(), model.state_dict())  # the momentum is the same


def test_an_average_starts_from_the_weights_of_a_run_without_one(tmp_path):
    task = make_task()
    make_keeper(tmp_path, task).save_checkpoint(0, 1.)
    other = make_task(seed=1, ema=True)
    resume_ema(other, open_checkpoint(str(tmp_path / 'last.pth.tar'), use_ema=False))
    assert equal_states(other.get_trainable_module(ema=True).module.state_dict(),
                        task.get_trainable_module().state_dict())


def test_the_average_does_not_take_the_place_of_the_weights(tmp_path):
    task = make_task(ema=True)
    make_keeper(tmp_path, task).save_checkpoint(0, 1.)
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
    position = resume(make_task(seed=1), open_checkpoint(str(tmp_path / 'run.pth')))
    assert position == (None if epoch is None else Position(epoch))


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
    make_keeper(tmp_path, make_task(), loss_scaler=scaler).save_checkpoint(0, 1.)
    resume(make_task(), open_checkpoint(str(tmp_path / 'last.pth.tar')), loss_scaler=other)
    assert other.scale == 9.


def test_a_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path):
    task = make_task()
    make_keeper(tmp_path, task).save_checkpoint(0, 1.)
    checkpoint = open_checkpoint(str(tmp_path / 'last.pth.tar'))
    with pytest.raises(InputError, match='last.pth.tar does not fit this model and optimizer'):
        resume(make_task(name='test_efficientnet_ap'), checkpoint)
    few = torch.optim.SGD([task.get_trainable_module().fc.weight], lr=.1)
    with pytest.raises(InputError, match='last.pth.tar does not fit this model and optimizer'):
        resume(task, checkpoint, few)


# the ranking

def test_a_run_that_continues_in_its_folder_keeps_the_ranking(tmp_path):
    saver = make_keeper(tmp_path, make_task(), max_history=2)
    for epoch, metric in enumerate((1., 5., 2.)):
        saver.save_checkpoint(epoch, metric)
    other = make_keeper(tmp_path, make_task(), max_history=2)
    take_up(other)
    assert other.best == (5., 1)
    assert other.save_checkpoint(3, 4.) == (5., 1)
    assert load(tmp_path / 'model_best.pth.tar')['epoch'] == 1
    assert sorted(file.name for file in tmp_path.glob('checkpoint-*')) == [
        'checkpoint-1.pth.tar', 'checkpoint-3.pth.tar']


@pytest.mark.parametrize('name', ['checkpoint-1', 'last'])
def test_epochs_that_are_trained_anew_are_ranked_no_more(tmp_path, name):
    keeper = make_keeper(tmp_path, make_task())
    for epoch, metric in enumerate((3., 2., 1., 5., 4.)):
        keeper.save_checkpoint(epoch, metric)
    old = epochs_of(tmp_path)
    other = make_keeper(tmp_path, make_task())
    take_up(other, name, 2)
    assert other.ranking == [(0, 3.), (1, 2.)]
    other.save_recovery(2, 1, [])
    assert epochs_of(tmp_path) == {**old, 'recovery-2-0': 2}  # the old branch is whole until the new one has an epoch
    assert other.save_checkpoint(2, 2.5) == (3., 0)
    new = {'last': 2, 'checkpoint-0': 0, 'checkpoint-1': 1, 'checkpoint-2': 2, 'model_best': 0, 'recovery-2-0': 2}
    assert epochs_of(tmp_path) == new
    assert load(tmp_path / 'checkpoint-2.pth.tar')['metric'] == 2.5


def test_what_the_other_branch_removed_is_ranked_no_more(tmp_path):
    keeper = make_keeper(tmp_path, make_task(), max_history=1)
    keeper.save_checkpoint(0, 1.)
    keeper.save_recovery(1, 1, [])
    keeper.save_checkpoint(1, 2.)
    other = make_keeper(tmp_path, make_task(), max_history=1)
    take_up(other, 'recovery-1-0', 1)
    assert other.ranking == []
    assert other.save_checkpoint(1, None) == (None, None)
    assert epochs_of(tmp_path) == {'last': 1, 'recovery-1-0': 1}
    assert other.save_checkpoint(2, .5) == (.5, 2)
    assert epochs_of(tmp_path) == {'last': 2, 'recovery-1-0': 1, 'checkpoint-2': 2, 'model_best': 2}


def test_a_run_that_goes_on_from_its_end_leaves_nothing(tmp_path):
    keeper = make_keeper(tmp_path, make_task())
    for epoch, metric in enumerate((3., 2.)):
        keeper.save_checkpoint(epoch, metric)
    other = make_keeper(tmp_path, make_task())
    take_up(other, 'last', 2)
    other.save_checkpoint(2, 1.)
    assert epochs_of(tmp_path) == {
        'last': 2, 'checkpoint-0': 0, 'checkpoint-1': 1, 'checkpoint-2': 2, 'model_best': 0}


def test_a_checkpoint_of_another_folder_is_no_history(tmp_path):
    (tmp_path / 'new').mkdir()
    make_keeper(tmp_path, make_task()).save_checkpoint(0, 9.)
    saver = make_keeper(tmp_path / 'new', make_task())
    saver.take_up(open_checkpoint(str(tmp_path / 'last.pth.tar')), 1)
    assert saver.best == (None, None)


def test_the_best_checkpoint_stands_for_a_history_that_was_not_saved(tmp_path):
    saver = make_keeper(tmp_path, make_task())
    saver.save_checkpoint(0, 9.)
    saver.save_checkpoint(1, 3.)
    for name in ('last', 'model_best'):  # as timm before 1.0.31 wrote them
        content = load(tmp_path / f'{name}.pth.tar')
        del content['saver']
        (tmp_path / f'{name}.pth.tar').unlink()
        torch.save(content, tmp_path / f'{name}.pth.tar')
    other = make_keeper(tmp_path, make_task())
    take_up(other)
    assert other.best == (9., 0)


@pytest.mark.skipif(not REMEMBERS, reason='timm before 1.0.31 keeps no history')
def test_a_history_of_timms_saver_is_taken_up(tmp_path):
    task = make_task()
    saver = CheckpointSaver(
        model=task.get_trainable_module(), optimizer=make_optimizer(task), args=Namespace(model='test_resnet_ap'),
        checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), task=task, max_history=2)
    for epoch, metric in enumerate((1., 5., 2.)):
        saver.save_checkpoint(epoch, metric)
    keeper = make_keeper(tmp_path, task, max_history=2)
    take_up(keeper)
    assert keeper.best == (5., 1)
    keeper.save_checkpoint(3, 4.)
    assert sorted(file.name for file in tmp_path.glob('checkpoint-*')) == [
        'checkpoint-1.pth.tar', 'checkpoint-3.pth.tar']


# the newest one

def test_the_newest_good_checkpoint_is_found(tmp_path, caplog):
    assert newest_checkpoint(str(tmp_path)) is None
    keeper = make_keeper(tmp_path, make_task())
    keeper.save_checkpoint(0, 1.)
    assert newest_checkpoint(str(tmp_path)).epoch == 0
    path = keeper.save_recovery(1, 2, [])
    assert newest_checkpoint(str(tmp_path)).path == path
    with open(path, 'r+b') as file:
        file.truncate(1000)
    assert os.path.basename(newest_checkpoint(str(tmp_path)).path) in ('last.pth.tar', 'checkpoint-0.pth.tar',
                                                                      'model_best.pth.tar')
    assert f'{path} cannot be loaded' in caplog.text and 'the one before' in caplog.text
    with open(tmp_path / 'last.pth.tar', 'r+b') as file:  # the others are links to it
        file.truncate(1000)
    with pytest.raises(InputError, match='No checkpoint in .* can be read'):
        newest_checkpoint(str(tmp_path))


def test_a_run_goes_on_where_it_stopped_in_a_copy_of_its_folder_too(tmp_path):
    keeper = make_keeper(tmp_path, make_task())
    for epoch, metric in enumerate((2., 1.)):
        keeper.save_checkpoint(epoch, metric)
    for age, name in enumerate(('model_best', 'checkpoint-0', 'checkpoint-1', 'last')):  # newest first, as copied
        copy = (tmp_path / f'{name}.pth.tar').read_bytes()
        (tmp_path / f'{name}.pth.tar').unlink()
        (tmp_path / f'{name}.pth.tar').write_bytes(copy)
        os.utime(tmp_path / f'{name}.pth.tar', (0, 100 - age))
    assert newest_checkpoint(str(tmp_path)).epoch == 1


# the rate

def test_a_rate_that_is_asked_for_now_holds(tmp_path):
    task = make_task()
    make_keeper(tmp_path, task).save_checkpoint(0, 1.)
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=.01, momentum=.9)
    resume(task, open_checkpoint(str(tmp_path / 'last.pth.tar')), optimizer)
    assert optimizer.param_groups[0]['lr'] == optimizer.param_groups[0]['initial_lr'] == .01
