"""What is a user's mistake when a model is opened, and what is a program's; and models that take no such images."""
from argparse import Namespace

import pytest
import timm
import torch
import torch.nn as nn

from tests.engine.runs import CPU
from timm_advprop.engine import open_model as module
from timm_advprop.engine.open_model import open_architecture, open_model, try_images
from timm_advprop.engine.run_settings import ImageSettings, ModelSettings
from timm_advprop.errors import InputError
from timm_advprop.weights import open_checkpoint


@pytest.mark.parametrize('error', [AttributeError, KeyError, TypeError])
def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error('a bug')

    monkeypatch.setattr(module.timm, 'create_model', fail)
    with pytest.raises(error, match='a bug'):
        open_architecture('test_resnet', num_classes=3)
    with pytest.raises(InputError, match='Cannot create test_resnet: .*a bug'):
        open_architecture('test_resnet', dict(stem_width='x'))  # what was named may be the cause


@pytest.mark.parametrize('kwargs', [dict(nope=1), dict(stem_width='x'), dict(layers=3)], ids=str)
def test_arguments_that_a_user_named_are_one_line(kwargs):
    with pytest.raises(InputError, match='Cannot create test_resnet'):
        open_model(ModelSettings(model='test_resnet', model_kwargs=kwargs), ImageSettings())


def test_an_argument_that_a_model_does_not_take_is_one_line():
    with pytest.raises(InputError, match="unexpected keyword argument 'drop_block_rate'"):
        open_architecture('test_vit', drop_block_rate=.1)


@pytest.mark.parametrize('settings', [dict(torchcompile='nope'), dict(torchcompile='inductor', torchcompile_mode='x')])
def test_a_compiler_that_is_not_there_is_one_line(settings):
    with pytest.raises(InputError, match='^--torchcompile .*(Invalid backend|Unrecognized mode)'):
        open_model(ModelSettings(model='test_resnet', **settings), ImageSettings())


@pytest.mark.parametrize('batch_size', [None, 1, 2])
def test_a_model_that_was_tried_is_as_before(batch_size):
    model = timm.create_model('test_resnet', drop_rate=.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    try_images(model, (3, 64, 64), CPU, batch_size)
    assert model.training and all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_images_that_a_model_does_not_take_are_one_line():
    model = timm.create_model('test_resnet')
    for size, batch_size, words in (
            ((1, 64, 64), None, 'images of 1x64x64 .*--in-chans.* in batches of 1: .*3 channels'),
            ((3, 32, 32), 1, 'images of 3x32x32 .* in batches of 1: Expected more than 1 value per channel when')):
        with pytest.raises(InputError, match=words):
            try_images(model, size, CPU, batch_size)
        assert model.training
    try_images(model, (3, 32, 32), CPU, 2)
    try_images(nn.Sequential(nn.Conv2d(3, 1, 32)), (3, 32, 32), CPU, 1)


@pytest.mark.parametrize('name', ['test_resnet', 'test_resnet_ap'])
def test_weights_in_a_file_may_be_of_a_wrapped_model(name, tmp_path):
    plain = timm.create_model('test_resnet')
    torch.save({f'model.{key}': value for key, value in plain.state_dict().items()}, tmp_path / 'wrapped.pth')
    model = open_architecture(name, num_classes=7, pretrained=True, pretrained_cfg_overlay=dict(
        file=str(tmp_path / 'wrapped.pth'), num_classes=-1))
    assert model.num_classes == 7 and torch.equal(model.bn1.weight, plain.bn1.weight)
    assert torch.equal(model.conv1[0].weight, plain.conv1[0].weight)
    assert not model.pretrained_cfg.get('state_dict')


def test_a_vanilla_run_keeps_the_auxiliary_norms_it_began_with(tmp_path, randomize_norms):
    model = randomize_norms(timm.create_model('test_resnet_ap'))
    torch.save(dict(state_dict=model.state_dict(), args=Namespace(regime='vanilla')), tmp_path / 'last.pth.tar')
    opened = open_model(
        ModelSettings(model='test_resnet_ap'), ImageSettings(), open_checkpoint(str(tmp_path / 'last.pth.tar')))
    assert all(torch.equal(value, opened.state_dict()[key]) for key, value in model.state_dict().items())
