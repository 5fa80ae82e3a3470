"""A kill at any write of the checkpoints leaves a run that, resumed, is the run that was never killed."""
import builtins
import os
import shutil
from collections import OrderedDict
from contextlib import contextmanager, nullcontext

import pytest
import torch
from timm.task import ClassificationTask

from tests.engine.runs import load
from tests.engine.test_saver import make_keeper
from timm_advprop.engine.saver import newest_checkpoint
from timm_advprop.weights import open_checkpoint

METRICS = (2., 1., 3., 0., 4.)
BRANCH = (None, None, None, 1., 2.)  # of a run that goes on with epoch 3 once more: the best is one before it
HISTORY = 2


class Killed(BaseException):
    pass


@contextmanager
def killed_at(moment, hard_links=True):
    """Let nothing more be written from a moment on, not even by what cleans up; counts what was."""
    done = []

    def counting(function, writes=lambda *args, **kwargs: True):
        def call(*args, **kwargs):
            if writes(*args, **kwargs):
                done.append(function.__name__)
                if len(done) > moment:
                    raise Killed
            return function(*args, **kwargs)
        return call

    def opens_to_write(path, mode='r', *args, **kwargs):
        return 'w' in mode

    with pytest.MonkeyPatch.context() as patch:
        for module, names in ((os, ('replace', 'unlink', 'remove', 'fsync')), (torch, ('save',)), (shutil, ('copy2',))):
            for name in names:
                patch.setattr(module, name, counting(getattr(module, name)))
        patch.setattr(builtins, 'open', counting(open, opens_to_write))
        patch.setattr(os, 'link', counting(os.link) if hard_links else no_links)
        try:
            yield done
        except Killed:
            pass


def no_links(*args):
    raise OSError('no hard links here')


def save_epochs(folder, in_background=True, metrics=METRICS, go_on_from=None, start=None):
    """What a run does with its checkpoints, from one on, its newest by default; a value of the model is the epoch."""
    model = torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(2, 3)))
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
    keeper = make_keeper(folder, task, max_history=HISTORY)
    keeper.clean()
    checkpoint, first = open_checkpoint(str(folder / go_on_from)) if go_on_from else newest_checkpoint(str(folder)), 0
    if checkpoint is not None:
        first = checkpoint.epoch + ('position' not in checkpoint.raw) if start is None else start
        keeper.take_up(checkpoint, first)
    with keeper.in_background() if in_background else nullcontext():
        for epoch in range(first, len(metrics)):
            torch.nn.init.constant_(task.get_trainable_module().fc.bias, epoch)
            keeper.save_recovery(epoch, 1, [])
            keeper.save_checkpoint(epoch, metrics[epoch])
            torch.nn.init.constant_(task.get_trainable_module().fc.bias, -1)  # while files are written


def summary(folder):
    files = {path.name: load(path) for path in folder.iterdir() if not path.name.startswith('recovery')}
    for content in files.values():  # all of a file is of one epoch
        assert (content['state_dict']['fc.bias'] == content['epoch']).all()
    return {name: (content['epoch'], content['metric'], content['saver']) for name, content in files.items()}


def num_writes(folder, *how):
    with killed_at(10 ** 6, how[0]) as done:
        save_epochs(folder, how[1])
    return len(done)


@pytest.mark.parametrize('hard_links, in_background', [
    (True, True), pytest.param(False, True, marks=pytest.mark.slow), pytest.param(True, False, marks=pytest.mark.slow)])
def test_a_kill_at_any_write(tmp_path, hard_links, in_background):
    (tmp_path / 'whole').mkdir()
    writes = num_writes(tmp_path / 'whole', hard_links, in_background)
    expected = summary(tmp_path / 'whole')
    assert writes > 60 and sorted(expected) == [
        'checkpoint-2.pth.tar', 'checkpoint-4.pth.tar', 'last.pth.tar', 'model_best.pth.tar']
    for moment in range(writes):
        folder = tmp_path / str(moment)
        folder.mkdir()
        with killed_at(moment, hard_links):
            save_epochs(folder, in_background)
        for path in folder.glob('*.tar'):
            if not path.name.endswith('.tmp'):
                load(path)  # whole
        save_epochs(folder)
        assert summary(folder) == expected, moment
        shutil.rmtree(folder)


@pytest.mark.parametrize('branch', [dict(go_on_from='checkpoint-2.pth.tar'), dict(go_on_from='last.pth.tar', start=3)])
@pytest.mark.parametrize('hard_links', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_after_a_run_went_on_from_an_earlier_epoch(tmp_path, hard_links, branch):
    old, new = tmp_path / 'old', tmp_path / 'new'
    old.mkdir()
    save_epochs(old)
    shutil.copytree(old, new)
    with killed_at(10 ** 6, hard_links) as done:
        save_epochs(new, metrics=BRANCH, **branch)
    expected_old, expected_new = summary(old), summary(new)
    assert {name: epoch for name, (epoch, *_) in expected_new.items()} == {
        'checkpoint-2.pth.tar': 2, 'checkpoint-4.pth.tar': 4, 'last.pth.tar': 4, 'model_best.pth.tar': 2}
    ends = []
    for moment in range(len(done)):
        folder = tmp_path / str(moment)
        shutil.copytree(old, folder)
        with killed_at(moment, hard_links):
            save_epochs(folder, metrics=BRANCH, **branch)
        save_epochs(folder, metrics=BRANCH)
        ends.append(summary(folder))
        assert ends[-1] in (expected_old, expected_new), moment
        shutil.rmtree(folder)
    changes = sum(one != other for one, other in zip(ends, ends[1:]))
    assert ends[0] == expected_old and ends[-1] == expected_new and changes == 1
