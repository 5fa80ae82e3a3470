"""Fixtures that the tests share."""
import logging
import os
from pathlib import Path

import pytest
import torch
from timm.layers import set_fast_norm
from timm.utils import FormatterNoInfo
from torch.nn.modules.batchnorm import _BatchNorm

from tests.hub.loopback_hub import LoopbackHub
from timm_advprop.engine.small_datasets import write_digits
from timm_advprop.norms import SplitNorm, split_norms

torch.set_num_threads(1)
LOG_LEVEL = logging.getLogger().level


def pytest_runtest_setup(item):
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request):
    """The CPU, and under the marker `gpu` a CUDA device: what a test does on one it does on the other."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def restore_logging():
    """The programs add a handler to the root logger each time they run, and set its level."""
    _drop_handlers_of_programs()  # a fixture of a module may have run one before this test
    yield
    _drop_handlers_of_programs()


def _drop_handlers_of_programs():
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler.formatter, FormatterNoInfo)]
    root.setLevel(LOG_LEVEL)


@pytest.fixture(autouse=True)
def restore_fast_norm():
    """timm's fast norms, which a run may ask for, stay on in a process."""
    yield
    set_fast_norm(False)


@pytest.fixture
def randomize_norms():
    """A function that gives every norm parameters and statistics of its own, so that no two routes agree."""
    def randomize(model):
        aux = {norm for split in split_norms(model) for norm in split.aux_bn}
        for module in model.modules():
            if isinstance(module, (_BatchNorm, SplitNorm)) or module in aux:
                for name, low, high in (('weight', .5, 1.5), ('bias', -.5, .5), ('running_mean', -.5, .5),
                                        ('running_var', .5, 1.5)):
                    if getattr(module, name, None) is not None:
                        torch.nn.init.uniform_(getattr(module, name), low, high)
        return model
    return randomize


@pytest.fixture
def loopback_hub():
    """A running Hub."""
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(folder)
    return str(folder)


@pytest.fixture(scope='session')
def few_digits(digits, tmp_path_factory):
    """64 training and 40 validation images, four batches of 16."""
    folder = tmp_path_factory.mktemp('few')
    for split, per_class in (('train', (7, 7, 7, 7, 6, 6, 6, 6, 6, 6)), ('validation', (4,) * 10)):
        for digit, count in enumerate(per_class):
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for file in sorted(Path(digits, split, str(digit)).iterdir())[:count]:
                os.link(file, target / file.name)
    return str(folder)


@pytest.fixture
def one_thread():
    # tensors this small only wait for other threads
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
