"""Runs that are stopped after an update and resumed, and what they must leave as one that was never stopped does."""
import pytest
import torch

from tests.engine.runs import load, read_summary, train_settings
from timm_advprop.engine.stopping import StopSignals
from timm_advprop.engine.training import train

# Everything that draws at random, in four updates an epoch.
RANDOM = dict(epochs=2, drop=.1, drop_path=.1, reprob=.5, aa='rand-m5-mstd0.5', color_jitter=.4, model_ema=True,
              model_ema_decay=.9, model_ema_warmup=True, adv_steps=1, recovery_interval=0)


def run_stopped(data, output, update=None, **values):
    """A run that is stopped after an update, counted from 1; None for one that is not."""
    def stops_after(self, done):
        self.signal = 15 if done == update else None
        return done == update

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, 'stops_after', stops_after)
        return train(train_settings(data_dir=data, output=str(output), experiment='run', **values))


def run_in_two_parts(data, output, update, **values):
    """A run that is stopped after an update and resumed."""
    assert run_stopped(data, output, update, **values).stopped_by == 15
    run_stopped(data, output, resume='auto', **values)


def check_equal_runs(one, other):
    """Compare what two runs left, to the last bit."""
    names = sorted(path.name for path in one.glob('*.pth.tar') if not path.name.startswith('recovery'))
    assert names == sorted(path.name for path in other.glob('*.pth.tar') if not path.name.startswith('recovery'))
    assert read_summary(one) == read_summary(other)
    for name in names:
        contents = [load(folder / name) for folder in (one, other)]
        for content in contents:
            del content['args']  # they name the resumed file
        check_equal(*contents, name)


def check_equal(one, other, path):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            check_equal(one[key], other[key], f'{path} {key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for i, entries in enumerate(zip(one, other)):
            check_equal(*entries, f'{path} {i}')
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), path
    else:
        assert one == other, path
