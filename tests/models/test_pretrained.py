"""Weights that a model is created with: a file, a state dict, a folder; plain, or with auxiliary norms."""
import dataclasses
import re

import pytest
import timm
import torch
from timm.models import VisionTransformer, get_pretrained_cfg, is_model_pretrained, save_for_hf

from tests.models.split_states import SMALL_VARIANTS, aux_equals_main, equal_states
from tests.models.zoo_models import ZOO
from timm_advprop import split_state_dict
from timm_advprop.models import base_of
from timm_advprop.norms import num_aux_norms, split_norms


def test_asking_for_weights_that_do_not_exist_names_the_way_out():
    with pytest.raises(RuntimeError, match='resnet18_ap') as error:
        timm.create_model('resnet18_ap', pretrained=True)
    for hint in ('pretrained=False', "'resnet18_ap.plain_a1_in1k'", 'pretrained_cfg_overlay=dict(file='):
        assert hint in str(error.value)


def test_the_way_out_is_one_that_exists():
    for variant, base in ZOO.items():
        if is_model_pretrained(variant):
            continue
        with pytest.raises(RuntimeError, match='No AdvProp weights') as error:
            timm.create_model(variant, pretrained=True)
        hint = re.search(r"create_model\('([^']+)'", str(error.value))
        assert bool(hint) == is_model_pretrained(base)
        assert hint is None or is_model_pretrained(hint[1])


ADAPTATIONS = [
    {}, dict(num_classes=7), dict(in_chans=1), dict(num_classes=7, in_chans=4), dict(features_only=True),
    dict(features_only=True, in_chans=1), dict(num_aux=3, num_classes=7),
]


@pytest.mark.parametrize('kwargs', ADAPTATIONS, ids=str)
def test_plain_weights_fill_the_auxiliary_norms(variant, kwargs, save_weights):
    file, _ = save_weights(base_of(variant))
    source = dict(pretrained=True, pretrained_cfg_overlay=dict(file=file))
    torch.manual_seed(1)
    plain = timm.create_model(base_of(variant), **source, **{k: v for k, v in kwargs.items() if k != 'num_aux'})
    torch.manual_seed(1)
    model = timm.create_model(variant, **source, **kwargs)
    assert equal_states(split_state_dict(model.state_dict())[0], plain.state_dict())
    assert aux_equals_main(model)
    assert num_aux_norms(model) == kwargs.get('num_aux', 1)


@pytest.mark.parametrize('kwargs', ADAPTATIONS, ids=str)
def test_weights_with_auxiliary_norms_load_them(variant, kwargs, save_weights):
    num_aux = kwargs.get('num_aux', 1)
    file, state = save_weights(variant, num_aux=num_aux)
    model = timm.create_model(variant, pretrained=True, pretrained_cfg_overlay=dict(file=file), **kwargs)
    aux = split_state_dict(model.state_dict())[1]
    state = {key.replace('.', '_'): value for key, value in state.items()}  # features_only makes stem.0 stem_0
    assert aux and all(torch.equal(value, state[key.replace('.', '_')]) for key, value in aux.items())
    assert not aux_equals_main(model)
    for norm in split_norms(model):
        assert len(norm.aux_bn) == num_aux


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7), dict(features_only=True)], ids=str)
@pytest.mark.parametrize('as_type', [lambda cfg: cfg, dataclasses.asdict], ids=['cfg', 'dict'])
def test_plain_weights_load_through_the_base_models_cfg(kwargs, as_type, save_weights):
    file, state = save_weights('test_resnet')
    cfg = as_type(dataclasses.replace(get_pretrained_cfg('test_resnet'), file=file))
    model = timm.create_model('test_resnet_ap', pretrained=True, pretrained_cfg=cfg, **kwargs)
    assert torch.equal(model.state_dict()['bn1.running_mean'], state['bn1.running_mean'])
    assert aux_equals_main(model)
    if 'features_only' not in kwargs:
        assert model.pretrained_cfg['architecture'] == 'test_resnet_ap'


def test_weights_given_as_a_state_dict_load(save_weights):
    _, state = save_weights('test_resnet_ap')
    model = timm.create_model('test_resnet_ap', pretrained=True, pretrained_cfg_overlay=dict(state_dict=state))
    assert equal_states(model.state_dict(), state)


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7), dict(num_classes=0)], ids=str)
@pytest.mark.parametrize('source, source_kwargs, message', [
    ('test_efficientnet', {}, 'Missing keys: .*Unexpected keys: conv_stem.weight'),
    ('test_resnet_ap', dict(num_aux=2), '1 more auxiliary norms .* num_aux=2'),
])
def test_weights_of_another_model_are_refused_whatever_the_head(source, source_kwargs, message, kwargs):
    state_dict = timm.create_model(source, **source_kwargs).state_dict()
    with pytest.raises(RuntimeError, match=f'(?s){message}'):
        timm.create_model(
            'test_resnet_ap', pretrained=True, pretrained_cfg_overlay=dict(state_dict=state_dict), **kwargs)


def test_missing_first_convolution_is_refused_where_it_is_not_adapted():
    state_dict = timm.create_model('test_resnet_ap').state_dict()
    del state_dict['conv1.0.weight']
    with pytest.raises(RuntimeError, match=r'Missing keys: conv1\.0\.weight \(1 in all\)'):
        timm.create_model(
            'test_resnet_ap', pretrained=True, num_classes=7, pretrained_cfg_overlay=dict(state_dict=state_dict))


def test_weights_that_are_copied_past_the_state_dict_fill_the_auxiliary_norms(monkeypatch):
    def load_pretrained(self, path, *args, **kwargs):
        for parameter in self.parameters():
            parameter.data.fill_(.5)

    monkeypatch.setattr(VisionTransformer, 'load_pretrained', load_pretrained)
    overlay = dict(file='weights.npz', custom_load=True)
    model = timm.create_model('test_vit_ap', pretrained=True, pretrained_cfg_overlay=overlay)
    assert model.norm.weight.eq(.5).all()
    assert aux_equals_main(model)


def test_weights_that_lack_a_part_of_an_auxiliary_norm_are_refused(save_weights):
    _, state = save_weights('test_resnet_ap')
    del state['bn1.aux_bn.0.running_var']
    with pytest.raises(RuntimeError, match=r'Missing key.*bn1\.aux_bn\.0\.running_var'):
        timm.create_model('test_resnet_ap', pretrained=True, pretrained_cfg_overlay=dict(state_dict=state))


@pytest.mark.parametrize('source', SMALL_VARIANTS + [base_of(variant) for variant in SMALL_VARIANTS])
def test_checkpoint_path_loads_plain_and_split_checkpoints(source, save_weights):
    variant = source.removesuffix('_ap') + '_ap'
    file, state = save_weights(source)
    model = timm.create_model(variant, checkpoint_path=file)
    assert equal_states({key: model.state_dict()[key] for key in state}, state)
    assert aux_equals_main(model) == (source != variant)


def test_saved_folder_rebuilds_the_model_with_its_auxiliary_norms(tmp_path, randomize_norms):
    model = randomize_norms(timm.create_model('test_resnet_ap', num_aux=2, num_classes=7)).eval()
    save_for_hf(model, tmp_path, model_args=dict(num_aux=2), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert equal_states(loaded.state_dict(), model.state_dict())
