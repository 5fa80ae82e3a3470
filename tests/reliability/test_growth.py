"""A long run needs no more memory and no more open files at its end than near its beginning."""
import os

import pytest

from tests.engine.runs import train_settings
from timm_advprop.engine.loop import Trainer
from timm_advprop.engine.training import train

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='reads Linux\'s /proc')]
MEGABYTE = 2 ** 20


def memory():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.parametrize('values', [
    dict(regime='advprop'), dict(regime='fast-advprop', adv_budget='epochs', adv_eps=[1.]), dict(workers=1)], ids=str)
def test_300_updates(few_digits, tmp_path, monkeypatch, values):
    train_epoch, seen = Trainer.train_epoch, []

    def measured(self, epoch, start=None):
        metrics = train_epoch(self, epoch, start)
        self.keeper.wait()  # for a file that is being written
        seen.append((memory(), len(os.listdir('/proc/self/fd'))))
        return metrics

    monkeypatch.setattr(Trainer, 'train_epoch', measured)
    train(train_settings(
        data_dir=few_digits, output=str(tmp_path), experiment='run', epochs=75, recovery_interval=2, model_ema=True,
        checkpoint_hist=2, val_interval=5, **values))
    assert len(seen) == 75
    early, late = (tuple(map(max, zip(*part))) for part in (seen[15:30], seen[-15:]))
    assert late[1] <= early[1]
    assert late[0] - early[0] < 8 * MEGABYTE
