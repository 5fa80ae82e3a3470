"""Fixtures that the tests share."""
import logging

import pytest
import torch
from loopback_hub import LoopbackHub
from torch.nn.modules.batchnorm import _BatchNorm

from timm_advprop.norms import SplitNorm, split_norms

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def restore_logging():
    """The programs add a handler to the root logger each time they run."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


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
