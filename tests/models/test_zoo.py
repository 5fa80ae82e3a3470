"""The table of the zoo, and what timm's registry makes of it."""
import dataclasses
import pickle
import subprocess
import sys
from importlib.util import find_spec

import pytest
import timm
from timm.models import get_pretrained_cfg, is_model_pretrained, list_models, list_pretrained, model_entrypoint
from torch.nn.modules.batchnorm import _BatchNorm

import timm_advprop.models
from tests.models.zoo_models import LARGE, SMALL, ZOO, family_of
from timm_advprop.models import base_of, left_out_models
from timm_advprop.models.skeleton import create_skeleton
from timm_advprop.models.zoo import FAMILIES

EFFICIENTNETS = [f'efficientnet_b{i}_ap' for i in range(9)]


# The table


def test_every_family_is_one_of_timms():
    timms = {family for family in FAMILIES if find_spec(f'timm.models.{family}')}  # an older timm has fewer
    assert len(timms) > 50
    assert {family_of(variant) for variant in ZOO} == timms
    assert {family_of(f'{name}_ap') for name in (*SMALL, *LARGE)} == timms


@pytest.mark.parametrize('family', FAMILIES)
def test_family_lists_its_variants_with_their_kin(family):
    variants = {variant for variant in ZOO if family_of(variant) == family}
    assert variants == set(timm.list_models('*_ap', module=family))
    assert variants == {variant for variant in getattr(timm_advprop.models, family).__all__}


def test_every_architecture_of_timm_is_in_the_zoo_or_left_out_with_a_reason():
    own = {name for name in list_models() if model_entrypoint(name).__module__.startswith('timm.models.')}
    assert own == set(ZOO.values()) | set(left_out_models())
    assert not set(ZOO.values()) & set(left_out_models())
    assert all(left_out_models().values())


@pytest.mark.slow
def test_models_left_out_for_lack_of_batch_norms_have_none():
    for name, reason in left_out_models().items():
        if reason.startswith('no '):
            model = create_skeleton(name)
            assert not [key for key, module in model.named_modules() if isinstance(module, _BatchNorm)], name


def test_architectures_that_the_names_promise_are_there():
    for name in (
            'efficientnet_lite0', 'efficientnet_es', 'efficientnetv2_s', 'tf_efficientnetv2_b0', 'tinynet_a',
            'mixnet_s', 'mnasnet_100', 'fbnetc_100', 'spnasnet_100', 'mobilenetv3_large_100', 'mobilenetv4_conv_small',
            'lcnet_100', 'hardcorenas_a', 'resnet50d', 'resnext50_32x4d', 'wide_resnet50_2', 'seresnet50',
            'ecaresnet50d', 'resnetrs50', 'resnet50_clip', 'resnetv2_50', 'resnetv2_50d_gn', 'resnetv2_50d_evos',
            'regnetx_032', 'regnety_032', 'regnetz_040', 'repvgg_a0', 'mobileone_s0', 'vgg16_bn', 'coatnet_0_rw_224',
            'maxvit_tiny_tf_224', 'convnext_tiny', 'convnextv2_atto', 'vit_tiny_patch16_224', 'vit_small_patch16_224',
            'vit_base_patch16_224', 'deit3_small_patch16_224', 'swin_tiny_patch4_window7_224',
    ):
        assert base_of(f'{name}_ap') == name
    for i in range(9):
        assert base_of(f'efficientnet_b{i}_ap') == f'tf_efficientnet_b{i}'


# timm's registry


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


IMPORT_SCRIPT = '''
import pickle, sys, timm, types
import timm.models.resnet
from timm.models import _registry, register_model

timms = timm.models.resnet

def resnet_of_tomorrow(pretrained=False, **kwargs):
    return timms.resnet18(pretrained, **kwargs)

resnet_of_tomorrow.__module__ = timms.__name__
timms.resnet_of_tomorrow = resnet_of_tomorrow
timms.default_cfgs['resnet_of_tomorrow'] = timms.default_cfgs['resnet18']
register_model(resnet_of_tomorrow)
del _registry._module_to_models['starnet']

def resnet_of_others(pretrained=False, **kwargs):
    return timms.resnet18(pretrained, **kwargs)

resnet_of_others.__module__ = 'others.resnet'
sys.modules['others.resnet'] = types.ModuleType('others.resnet')
register_model(resnet_of_others)

entry_point = pickle.loads(bytes.fromhex(sys.argv[1]))  # imports what it needs
assert entry_point is timm.model_entrypoint('test_resnet_ap')
import timm_advprop.models.resnet as family
from timm_advprop.models import left_out_models, resnet, split_models, starnet
assert family is resnet is sys.modules['timm_advprop.models.resnet']
assert split_models()['resnet_of_tomorrow_ap'] == 'resnet_of_tomorrow'
assert 'resnet_of_tomorrow_ap.plain_a1_in1k' in timm.list_pretrained('*_ap.*')
assert family.resnet_of_tomorrow_ap().state_dict().keys() == timm.create_model('resnet18_ap').state_dict().keys()
assert not {'resnet_of_others', 'resnet_of_others_ap'} & {*split_models(), *left_out_models()}
assert not starnet.__all__ and not timm.list_models('starnet*_ap')
print('done')
'''


def test_a_fresh_process_finds_families_without_files_and_models_of_another_timm():
    result = subprocess.run(
        [sys.executable, '-c', IMPORT_SCRIPT, pickle.dumps(model_entrypoint('test_resnet_ap')).hex()],
        capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'done\n'
