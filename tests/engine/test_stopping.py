"""Signals that end a run, and the processes of its loaders."""
import signal
import subprocess

import pytest

from tests.engine.runs import CONFIG, CPU, train_settings
from timm_advprop.engine.datasets import torch_loader
from timm_advprop.engine.loaders import build_loaders

pytestmark = pytest.mark.skipif(not hasattr(signal, 'sigwaitinfo'), reason='the system does not say who sent a signal')


@pytest.fixture(params=['train', 'eval'])
def loader(request, few_digits):
    """A loader of a run, with one process."""
    loaders = build_loaders(train_settings(data_dir=few_digits, workers=1), CONFIG, 10, CPU)
    return loaders.train.loader if request.param == 'train' else loaders.eval


def process_of(loader):
    return torch_loader(loader)._iterator._workers[0]


@pytest.mark.parametrize('name', ['TERM', 'USR1', 'INT'])
def test_a_loaders_process_goes_on_at_a_signal_to_all_processes(loader, name):
    count = len(list(loader))
    process = process_of(loader)
    for _ in range(2):
        subprocess.run(['kill', f'-{name}', str(process.pid)], check=True)  # os.kill would be the parent's
        assert len(list(loader)) == count
    assert process_of(loader) is process and process.is_alive()


def test_its_parent_can_end_it(loader):
    next(iter(loader))
    process = process_of(loader)
    process.terminate()
    process.join(10)
    assert process.exitcode == 0
