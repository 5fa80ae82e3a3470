"""What a checkpoint's own arguments say of an evaluation, and what the command line says against them."""
import logging

import pytest
import timm
import torch

from tests.engine.runs import EvalSettings, eval_settings, run
from timm_advprop.engine.checkpoint_settings import with_settings_of
from timm_advprop.engine.validation import validate
from timm_advprop.errors import InputError
from timm_advprop.weights import Checkpoint

SAID = dict(model='test_resnet_ap', num_classes=10, gp='max', model_kwargs=dict(drop_rate=.1), img_size=32,
            input_size=None, in_chans=1, mean=[.5], std=(.25,), crop_pct=.9, interpolation='bilinear', lr=.1)


def checkpoint(**args):
    return Checkpoint('last.pth.tar', {}, averaged=False, args=args, epoch=None, raw={})


def settings(**values):
    return EvalSettings.from_values(dict(values, checkpoint='last.pth.tar'))


def test_settings_that_are_not_given_are_those_of_the_checkpoint(caplog):
    with caplog.at_level(logging.INFO):
        taken = with_settings_of(checkpoint(**SAID), settings())
    model, image = taken.model, taken.image
    assert (model.model, model.num_classes, model.gp, dict(model.model_kwargs)) == (
        'test_resnet_ap', 10, 'max', dict(drop_rate=.1))
    assert (image.img_size, image.channels, image.mean, image.std, image.crop_pct, image.interpolation) == (
        32, 1, (.5,), (.25,), .9, 'bilinear')
    (line,) = caplog.messages
    assert line == ('last.pth.tar says, where the command line does not: model test_resnet_ap, num_classes 10, gp max, '
                    'model_kwargs drop_rate=0.1, img_size 32, mean 0.5, std 0.25, crop_pct 0.9, interpolation '
                    'bilinear, in_chans 1.')


@pytest.mark.parametrize('values', [
    dict(model='test_resnet'), dict(num_classes=1000), dict(img_size=64), dict(input_size=[3, 64, 48]),
    dict(in_chans=3), dict(mean=[.1]), dict(std=[.1]), dict(crop_pct=1.), dict(interpolation='bicubic')], ids=str)
def test_what_is_given_wins(values):
    asked = settings(**values)
    taken = with_settings_of(checkpoint(**SAID), asked)
    for name in values:
        group = 'model' if hasattr(asked.model, name) else 'image'
        assert getattr(getattr(taken, group), name) == getattr(getattr(asked, group), name)
    if 'input_size' in values:
        assert (taken.image.img_size, taken.image.in_chans) == (None, None)


def test_channels_are_the_checkpoints_where_the_size_is_given():
    taken = with_settings_of(checkpoint(**dict(SAID, img_size=None, in_chans=None, input_size=[1, 32, 32])), settings(
        img_size=64))
    assert (taken.image.img_size, taken.image.input_size, taken.image.channels) == (64, None, 1)


@pytest.mark.parametrize('args, values, words', [
    ({}, {}, 'last.pth.tar does not say which model it is of: give --model'),
    (dict(model='test_resnet', mean=[2.]), {}, 'mean must be from 0 to 1'),
    (dict(model='test_resnet', input_size=[3, 32, 32]), dict(in_chans=1), 'differ in the number of channels'),
    (dict(model='test_resnet', model_kwargs=dict(checkpoint_path='/etc/passwd')), {},
     'last.pth.tar has the model argument checkpoint_path, which is not one'),
    (dict(model='test_resnet', model_kwargs=dict(num_aux=20000)), {}, 'num_aux=20000: it must be from 0 to 100'),
    (dict(model='test_resnet', model_kwargs='pretrained'), {}, 'has no names for the arguments of its model'),
], ids=str)
def test_what_cannot_be_is_one_line(args, values, words):
    with pytest.raises(InputError, match=words):
        with_settings_of(checkpoint(**args), settings(**values))


def test_a_command_line_may_say_what_is_loaded():
    given = dict(pretrained=True)
    said = dict(SAID, model_kwargs=dict(pretrained_cfg={}))
    taken = with_settings_of(checkpoint(**said), settings(model_kwargs=given))
    assert taken.model.model_kwargs == given


def test_weights_alone_say_nothing(caplog):
    asked = settings(model='test_resnet')
    with caplog.at_level(logging.INFO):
        taken = with_settings_of(checkpoint(), asked)
    assert (taken.model, taken.image) == (asked.model, asked.image)
    assert not caplog.messages


def test_a_checkpoint_is_validated_as_it_was_trained(few_digits, tmp_path):
    path = str(run(few_digits, tmp_path, crop_pct=1., mean=[.5], std=[.25], in_chans=1) / 'last.pth.tar')
    expected = validate(eval_settings(
        data_dir=few_digits, checkpoint=path, crop_pct=1., mean=[.5], std=[.25], in_chans=1))
    alone = validate(EvalSettings.from_values(dict(data_dir=few_digits, checkpoint=path, workers=0, device='cpu')))
    assert alone == expected and alone['model'] == 'test_resnet_ap'


def test_weights_alone_want_a_model(few_digits, tmp_path):
    torch.save(timm.create_model('test_resnet').state_dict(), tmp_path / 'weights.pth')
    with pytest.raises(InputError, match='weights.pth does not say which model it is of'):
        validate(EvalSettings.from_values(dict(
            data_dir=few_digits, checkpoint=str(tmp_path / 'weights.pth'), workers=0, device='cpu')))
