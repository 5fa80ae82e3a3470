import dataclasses
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import timm.models._builder as timm_builder
import torch
import torch.nn as nn
from safetensors.torch import save_file
from timm.models import (
    VisionTransformer,
    get_pretrained_cfg,
    is_model_pretrained,
    list_pretrained,
    model_entrypoint,
    save_for_hf,
)

from timm_advprop import has_split_norm, set_norm_route, split_state_dict, strip_aux
from timm_advprop.models import base_of, split_models
from timm_advprop.norms import num_aux_norms, split_norms

ZOO = split_models()
SMALL_VARIANTS = ['test_resnet_ap', 'test_efficientnet_ap', 'test_convnext_ap']
EFFICIENTNETS = [f'efficientnet_b{i}_ap' for i in range(9)]


def make_images(size=32, in_chans=3):
    return torch.randn(2, in_chans, size, size)


def equal_states(left, right):
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def aux_equals_main(model):
    clean, aux = split_state_dict(model.state_dict())
    return bool(aux) and all(
        torch.equal(value, clean[re.sub(r'aux_bn\.\d+\.', '', key)]) for key, value in aux.items())


@pytest.fixture(params=SMALL_VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def save_weights(tmp_path, randomize_norms):
    """A function that saves weights of a registered model whose norms are not at their default initialisation."""
    def save(name, path=tmp_path / 'weights.safetensors', **kwargs):
        state = randomize_norms(timm.create_model(name, **kwargs)).state_dict()
        save_file(state, path)
        return str(path), state
    return save


# Registry


def test_every_variant_is_listed():
    assert {'resnet50_ap', 'test_resnet_ap', 'test_efficientnet_ap', *EFFICIENTNETS} <= set(ZOO)
    assert set(ZOO) <= set(timm.list_models('*_ap'))


def test_entry_points_are_documented_functions_of_their_families():
    for variant, base in ZOO.items():
        assert timm.is_model(variant)
        entry_point = timm.model_entrypoint(variant)
        assert entry_point is getattr(sys.modules[entry_point.__module__], variant)
        assert entry_point.__module__ == model_entrypoint(base).__module__.replace('timm.', 'timm_advprop.', 1)
        assert entry_point.__name__ == variant
        assert f'`{base}`' in entry_point.__doc__


@pytest.mark.parametrize('name', EFFICIENTNETS)
def test_efficientnets_have_the_published_advprop_weights(name):
    source = get_pretrained_cfg(f'{base_of(name)}.ap_in1k')
    cfg = get_pretrained_cfg(name)
    assert cfg == dataclasses.replace(source, architecture=name)
    assert cfg.hf_hub_id == f'timm/{base_of(name)}.ap_in1k'
    assert cfg.mean == cfg.std == (.5, .5, .5)
    assert source.architecture == base_of(name)
    assert is_model_pretrained(name)
    assert f'{name}.ap_in1k' in list_pretrained('*_ap*')


def test_no_other_variant_has_weights_by_default():
    fields = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'num_classes', 'classifier', 'first_conv')
    for variant, base in ZOO.items():
        if variant in EFFICIENTNETS:
            continue
        cfg, plain = get_pretrained_cfg(variant), get_pretrained_cfg(base)
        assert not is_model_pretrained(variant)
        assert not (cfg.has_weights or cfg.state_dict)
        assert cfg.architecture == variant
        assert plain.architecture == base
        assert all(getattr(cfg, field) == getattr(plain, field) for field in fields)


def test_plain_weights_of_timm_have_a_tag_that_says_what_they_are():
    for variant, base in ZOO.items():
        tags = {name.partition('.')[2] for name in list_pretrained(base) if name.partition('.')[0] == base}
        expected = {tag if tag == 'ap_in1k' else f'plain_{tag}' if tag else 'plain' for tag in tags}
        own = [name for name in list_pretrained(variant) if name.partition('.')[0] == variant]
        assert {name.partition('.')[2] for name in own} == expected
    source, cfg = get_pretrained_cfg('resnet50.a1_in1k'), get_pretrained_cfg('resnet50_ap.plain_a1_in1k')
    assert cfg == dataclasses.replace(source, architecture='resnet50_ap', tag='plain_a1_in1k')
    assert cfg.hf_hub_id == 'timm/resnet50.a1_in1k'
    assert get_pretrained_cfg('efficientnet_b0_ap.plain_aa_in1k').hf_hub_id == 'timm/tf_efficientnet_b0.aa_in1k'


# Architecture


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
    clean, aux = split_state_dict(model.state_dict())
    aux = {key.replace('aux_bn.0.', ''): value for key, value in aux.items()}
    images = make_images()
    for route, state in (('clean', clean), ('aux', {**clean, **aux})):
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


# Weights


def test_asking_for_weights_that_do_not_exist_names_the_way_out():
    with pytest.raises(RuntimeError, match='resnet18_ap') as error:
        timm.create_model('resnet18_ap', pretrained=True)
    for hint in ('pretrained=False', "'resnet18_ap.plain_a1_in1k'", 'pretrained_cfg_overlay=dict(file='):
        assert hint in str(error.value)


def test_the_way_out_is_one_that_exists():
    for variant, base in ZOO.items():
        if variant in EFFICIENTNETS:
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


HUB_SCRIPT = '''
import timm, torch, timm_advprop
from timm_advprop import split_state_dict

def split(model):
    main, aux = split_state_dict(model.state_dict())
    assert aux
    for key, value in aux.items():
        norm, _, name = key.partition('.aux_bn.0.')
        assert torch.equal(value, main[f'{norm}.{name}']), key
    return model.eval()

images = torch.randn(2, 3, 64, 64)
plain = timm.create_model('tf_efficientnet_b0.ap_in1k', pretrained=True).eval()
expected = plain(images)
for name in ('efficientnet_b0_ap', 'efficientnet_b0_ap.ap_in1k'):
    model = split(timm.create_model(name, pretrained=True))
    assert torch.equal(model(images), expected), name
model = split(timm.create_model('efficientnet_b0_ap', pretrained=True, num_classes=10))
assert torch.equal(model.forward_features(images), plain.forward_features(images))
model = split(timm.create_model('efficientnet_b0_ap', pretrained=True, features_only=True))
features = timm.create_model('tf_efficientnet_b0.ap_in1k', pretrained=True, features_only=True).eval()
assert all(torch.equal(a, b) for a, b in zip(model(images), features(images)))

expected = timm.create_model('test_resnet.r160_in1k', pretrained=True).eval()(images)
for kwargs in (dict(pretrained_cfg=timm.get_pretrained_cfg('test_resnet')), dict(pretrained_cfg='plain_r160_in1k'), {}):
    name = 'test_resnet_ap' if kwargs else 'test_resnet_ap.plain_r160_in1k'
    assert torch.equal(split(timm.create_model(name, pretrained=True, **kwargs))(images), expected), kwargs
print('done')
'''


def test_published_weights_come_from_the_hub(loopback_hub, tmp_path, save_weights):
    urls = []
    for name in ('tf_efficientnet_b0.ap_in1k', 'test_resnet'):
        repo_id = get_pretrained_cfg(name).hf_hub_id
        loopback_hub.add_repo(repo_id, {'model.safetensors': Path(save_weights(name)[0])})
        urls.append(f'GET /{repo_id}/resolve/main/model.safetensors')
    assert urls[0] == 'GET /timm/tf_efficientnet_b0.ap_in1k/resolve/main/model.safetensors'
    result = subprocess.run(
        [sys.executable, '-c', HUB_SCRIPT],
        env={**loopback_hub.environment(tmp_path / 'home'), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'done\n'
    assert [request for request in loopback_hub.requests if request.endswith('.safetensors')
            and request.startswith('GET')] == urls


SIZE_SCRIPT = '''
import sys, timm, torch, timm_advprop
from timm_advprop import split_state_dict

name = sys.argv[1]
plain = timm.create_model(f'tf_{name}.ap_in1k', pretrained=True).state_dict()
main, aux = split_state_dict(timm.create_model(f'{name}_ap', pretrained=True).state_dict())
assert list(main) == list(plain)
assert all(torch.equal(value, plain[key]) for key, value in main.items())
assert aux and all(torch.equal(value, plain[key.replace('aux_bn.0.', '')]) for key, value in aux.items())
print('done')
'''


@pytest.mark.slow
@pytest.mark.parametrize('name', EFFICIENTNETS)
def test_published_weights_of_every_size_come_from_the_hub(name, loopback_hub, tmp_path, save_weights):
    plain = f'{base_of(name)}.ap_in1k'
    loopback_hub.add_repo(f'timm/{plain}', {'model.safetensors': Path(save_weights(plain)[0])})
    result = subprocess.run(
        [sys.executable, '-c', SIZE_SCRIPT, name.removesuffix('_ap')],
        env={**loopback_hub.environment(tmp_path / 'home'), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'done\n'


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
