"""Models that the builder makes, and that it leaves timm's own builder alone."""
import threading

import pytest
import timm
import timm.models._builder as timm_builder
import torch
import torch.nn as nn

from tests.models.split_states import aux_equals_main, equal_states
from timm_advprop import has_split_norm, set_norm_route, split_state_dict, strip_aux
from timm_advprop.models import base_of
from timm_advprop.norms import num_aux_norms


def make_images(in_chans=3):
    return torch.randn(2, in_chans, 32, 32)


@pytest.mark.parametrize('name', ['test_resnet_ap', 'test_efficientnet_ap', 'test_convnext_ap', 'test_vit_ap'])
def test_stripped_variant_is_its_base_model(name):
    model, base = timm.create_model(name), timm.create_model(base_of(name))
    assert repr(strip_aux(model)) == repr(base)
    assert model.pretrained_cfg['architecture'] == name
    assert model.default_cfg is model.pretrained_cfg
    assert model.num_classes == base.num_classes


def test_new_model_is_the_plain_model_until_told_otherwise(variant):
    torch.manual_seed(1)
    plain = timm.create_model(base_of(variant))
    torch.manual_seed(1)
    model = timm.create_model(variant)
    assert equal_states(split_state_dict(model.state_dict())[0], plain.state_dict())
    assert aux_equals_main(model)
    images = make_images()
    assert torch.equal(model(images), plain(images))
    assert torch.equal(model.eval()(images), plain.eval()(images))


@pytest.mark.parametrize('kwargs', [
    dict(num_classes=7), dict(num_classes=0), dict(in_chans=1), dict(drop_rate=.5, drop_path_rate=.25),
    dict(features_only=True), dict(features_only=True, out_indices=(1, 3), in_chans=4),
], ids=str)
def test_arguments_of_the_base_model_are_taken(variant, kwargs):
    torch.manual_seed(1)
    plain = timm.create_model(base_of(variant), **kwargs)
    torch.manual_seed(1)
    model = timm.create_model(variant, num_aux=2, **kwargs)
    assert repr(strip_aux(model)) == repr(plain)
    assert num_aux_norms(model) == 2
    assert {'aux_bn.0.', 'aux_bn.1.'} == {
        key[key.index('aux_bn.'):].rpartition('.')[0] + '.' for key in split_state_dict(model.state_dict())[1]}
    images = make_images(in_chans=kwargs.get('in_chans', 3))
    outputs = [network.eval()(images) for network in (model, plain)]
    assert all(torch.equal(*pair) for pair in (zip(*outputs) if 'features_only' in kwargs else [outputs]))


@pytest.mark.parametrize('feature_cls', [None, 'dict', 'hook', 'fx', 'getter'])
def test_features_follow_routes(feature_cls, randomize_norms):
    kwargs = dict(features_only=True, feature_cls=feature_cls)
    model = randomize_norms(timm.create_model('test_resnet_ap', **kwargs)).eval()
    main, aux = split_state_dict(model.state_dict())
    aux = {key.replace('aux_bn.0.', ''): value for key, value in aux.items()}
    images = make_images()
    for route, state in (('main', main), ('aux', {**main, **aux})):
        plain = timm.create_model('test_resnet', **kwargs)
        plain.load_state_dict(state)
        set_norm_route(model, route)
        outputs = [network(images) for network in (model, plain.eval())]
        if feature_cls == 'dict':
            outputs = [output.values() for output in outputs]
        pairs = list(zip(*outputs))
        assert len(pairs) == 5
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize('num_aux', [0, -1])
def test_less_than_one_auxiliary_norm_is_refused(num_aux):
    with pytest.raises(ValueError, match='num_aux'):
        timm.create_model('test_resnet_ap', num_aux=num_aux)


# timm's own builder


def assert_timm_builds_plain_models(save_weights):
    file, state = save_weights('test_resnet')
    for kwargs in ({}, dict(pretrained=True, pretrained_cfg_overlay=dict(file=file))):
        model = timm.create_model('test_resnet', **kwargs)
        assert not has_split_norm(model)
        assert list(model.state_dict()) == list(state)


def test_builder_is_timms_own_after_a_split_model_was_built(save_weights):
    original = timm_builder.load_pretrained
    file, _ = save_weights('test_resnet')
    timm.create_model('test_resnet_ap', pretrained=True, pretrained_cfg_overlay=dict(file=file))
    assert timm_builder.load_pretrained is original
    assert original.__module__ == 'timm.models._builder'
    assert_timm_builds_plain_models(save_weights)


@pytest.mark.parametrize('kwargs, error', [
    (dict(pretrained=True), RuntimeError),
    (dict(pretrained=True, pretrained_cfg_overlay=dict(file='missing.safetensors')), FileNotFoundError),
    (dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict={'a': torch.zeros(1)})), RuntimeError),
    (dict(unknown_argument=1), TypeError),
    (dict(num_aux=0), ValueError),
], ids=str)
def test_builder_is_timms_own_after_a_split_model_failed(kwargs, error, save_weights):
    original = timm_builder.load_pretrained
    with pytest.raises(error):
        timm.create_model('test_resnet_ap', **kwargs)
    assert timm_builder.load_pretrained is original
    assert_timm_builds_plain_models(save_weights)
    assert has_split_norm(timm.create_model('test_resnet_ap'))


def test_another_thread_builds_plain_models_in_the_meantime(save_weights):
    file, _ = save_weights('test_resnet')
    source = dict(pretrained=True, pretrained_cfg_overlay=dict(file=file))
    built = []

    def act_layer(**kwargs):  # called while the split model is under construction
        if not built:
            thread = threading.Thread(target=lambda: built.append(timm.create_model('test_resnet', **source)))
            thread.start()
            thread.join()
        return nn.ReLU(**kwargs)

    model = timm.create_model('test_resnet_ap', act_layer=act_layer, **source)
    assert len(built) == 1
    assert not has_split_norm(built[0])
    assert aux_equals_main(model)


def test_threads_can_build_split_models_at_once(save_weights, monkeypatch):
    file, state = save_weights('test_resnet_ap')
    source = dict(pretrained=True, pretrained_cfg_overlay=dict(file=file))
    original = timm_builder.load_pretrained
    monkeypatch.setattr(timm_builder, 'load_pretrained', original)  # is put back after a failure
    built = []
    threads = [
        threading.Thread(target=lambda: built.append(timm.create_model('test_resnet_ap', **source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 4
    assert all(equal_states(model.state_dict(), state) for model in built)
    assert timm_builder.load_pretrained is original
