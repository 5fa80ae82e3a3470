"""Fixtures of the tests of the Hub."""
import time
from argparse import Namespace

import pytest
import timm
import torch
from huggingface_hub import constants, file_download, utils
from timm.utils import ModelEmaV3

from tests.hub.publishing import RUN, TOKEN, url_template
from timm_advprop.cli.train import parse_args
from timm_advprop.hub import layout


@pytest.fixture
def use_hub(monkeypatch, tmp_path):
    """A function that makes a Hub the one of this process, with an empty cache; huggingface_hub reads it at import."""
    def use(hub, token=TOKEN, cache='cache', offline=False):
        monkeypatch.setattr(constants, 'ENDPOINT', hub.endpoint)
        for module in (constants, file_download):  # clients before 1.0 look into the second
            monkeypatch.setattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE', url_template(hub), raising=False)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / cache))
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no token'))
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)
        monkeypatch.delenv('HF_TOKEN', raising=False)
        if token:
            monkeypatch.setenv('HF_TOKEN', token)
        getattr(utils, 'reset_sessions', lambda: None)()  # of clients before 1.0, which remember that they are offline
        return hub
    return use


@pytest.fixture
def hub(loopback_hub, use_hub, monkeypatch):
    """The Hub of this process. Nobody waits between attempts, and pictures, which take long, are not drawn."""
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    monkeypatch.setattr(layout, 'draw_pictures', lambda *args: None)
    return use_hub(loopback_hub)


@pytest.fixture
def split_model(randomize_norms):
    return randomize_norms(timm.create_model('test_resnet_ap', num_aux=2, num_classes=7))


@pytest.fixture
def checkpoint(tmp_path, randomize_norms):
    """A function that writes a checkpoint as the training program does, and returns its path and its model."""
    def write(averaged=False, summary='epoch,eval_top1,eval_top5\n3,71.5,93.25\n'):
        model = randomize_norms(timm.create_model('test_resnet_ap', num_classes=10))
        folder = tmp_path / 'run'
        folder.mkdir(exist_ok=True)
        (folder / 'summary.csv').write_text(summary)
        args = Namespace(**parse_args(['--data-dir', str(tmp_path / 'digits'), *RUN]).given)
        content = dict(epoch=3, arch='test_resnet_ap', state_dict=model.state_dict(), args=args)
        if averaged:
            average = ModelEmaV3(model)
            for value in average.parameters():
                value.data.mul_(0.5)
            model, content['state_dict_ema'] = average.module, average.module.state_dict()
        torch.save(content, folder / 'model_best.pth.tar')
        return folder / 'model_best.pth.tar', model
    return write
