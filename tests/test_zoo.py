"""Every entry of the zoo: the plain model of timm, its norms split and nothing else changed."""
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import torch.nn as nn
from timm.models import get_pretrained_cfg, list_models, model_entrypoint
from torch.nn.modules.batchnorm import _BatchNorm

import timm_advprop.models
from timm_advprop import convert_split_norm, set_norm_route, split_state_dict
from timm_advprop.models import _builder, base_of, left_out_models, split_models
from timm_advprop.models._listing import describe_model
from timm_advprop.models._listing import main as list_zoo
from timm_advprop.models._skeleton import create_skeleton
from timm_advprop.norms import num_aux_norms, split_norms

ZOO = split_models()
AUX_KEY = re.compile(r'(.*?)aux_bn\.(\d+)\.(.*)')
PACKAGE = Path(timm_advprop.models.__file__).parent
FAMILIES = sorted(path.stem for path in PACKAGE.glob('[!_]*.py'))

# The smallest model of each family is tried with values. The slow tier has the large ones among them, and all others.
SMALL = [name for name in (
    'test_byobnet', 'cpubone_nano', 'cs3darknet_focus_s', 'cspnext_tiny', 'test_convnext', 'deit_tiny_patch16_224',
    'densenet121', 'dla46x_c', 'dpn48b', 'efficientformer_l1', 'efficientformerv2_s0', 'test_efficientnet',
    'efficientvim_m1', 'efficientvit_b0', 'efficientvit_m0', 'fasternet_t0', 'fastvit_t8', 'ghostnet_050',
    'hardcorenas_b', 'hgnetv2_b0', 'hrnet_w18_small', 'iformer_t', 'inception_next_atto', 'lcnetv2_small', 'levit_128s',
    'lowformer_b0', 'test_coatnet', 'mobilenetv3_small_050', 'mobilevit_xxs', 'regnetx_002', 'repghostnet_050',
    'repvit_m1', 'resnest14d', 'test_resnet', 'resnetv2_18', 'rexnet_100', 'legacy_seresnet18', 'shvit_s1',
    'skresnet18', 'starnet_s050', 'swiftformer_xs', 'tiny_vit_5m_224', 'visformer_tiny', 'test_vit',
    'vit_tiny_r_s16_p8_224', 'ese_vovnet19b_slim_dw', 'xcit_nano_12_p8_224',
) if f'{name}_ap' in ZOO]
LARGE = [name for name in (
    'halonet_h1', 'convmixer_768_32', 'inception_resnet_v2', 'inception_v3', 'inception_v4', 'nasnetalarge',
    'nextvit_small', 'pnasnet5large', 'res2next50', 'selecsls42', 'swin_tiny_patch4_window7_224', 'tresnet_m',
    'vgg11_bn', 'volo_d1_224', 'legacy_xception', 'xception41p',
) if f'{name}_ap' in ZOO]
SMALLEST = [f'{name}_ap' for name in SMALL] + [pytest.param(f'{name}_ap', marks=pytest.mark.slow) for name in LARGE]
OTHERS = sorted(set(ZOO) - {f'{name}_ap' for name in (*SMALL, *LARGE)})


class Observer:
    """Takes the place of `convert_split_norm` in the builder, to look at the plain model before it is converted."""

    def __init__(self, monkeypatch, images=None):
        self.images = images
        monkeypatch.setattr(_builder, 'convert_split_norm', self)

    def __call__(self, model, num_aux):
        self.keys = list(model.state_dict())
        self.architecture = model.pretrained_cfg['architecture']
        self.norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if self.images is not None:
            self.output = forward(model.eval(), self.images)
            model.train()
        return convert_split_norm(model, num_aux)


def forward(model, images):
    with torch.no_grad():
        output = model(images)
    return output if isinstance(output, torch.Tensor) else torch.cat(list(output))


def make_images(variant, size=4):
    cfg = get_pretrained_cfg(variant)
    fixed = cfg.fixed_input_size or family_of(variant) == 'byoanet' or variant.startswith('bat_')
    return torch.randn(size, 3, *(cfg.input_size[1:] if fixed else (96, 96)))


def family_of(variant):
    return model_entrypoint(variant).__module__.rpartition('.')[2]


# The table


def test_every_family_file_is_one_of_timms():
    assert set(FAMILIES) <= set(timm_advprop.models.__all__)
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


# The listing


def test_description_of_a_model_counts_what_the_model_has():
    for variant in ('test_resnet_ap', 'test_vit_ap'):
        model, entry = timm.create_model(variant), describe_model(variant)
        main, aux = split_state_dict(dict(model.named_parameters()))
        assert entry.main_parameters == sum(parameter.numel() for parameter in main.values())
        assert entry.aux_parameters == sum(parameter.numel() for parameter in aux.values())
        assert entry.batch_norms + entry.other_norms == sum(1 for _ in split_norms(model))
        assert bool(entry.batch_norms) == (variant == 'test_resnet_ap')
    assert describe_model('efficientnet_b0_ap').advprop_weights == ['ap_in1k']
    assert describe_model('resnet50_ap').main_parameters == 25_557_032  # as timm's table of results has it


def test_listing_prints_a_row_for_each_model(capsys):
    list_zoo(['test_resnet*', 'efficientnet_b0_ap'])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ['model', 'base']
    assert sorted(row.split()[0] for row in rows) == ['efficientnet_b0_ap', 'test_resnet_ap']
    (row,) = (row for row in rows if row.startswith('efficientnet'))
    assert row.split() == [
        'efficientnet_b0_ap', 'tf_efficientnet_b0', '5,288,548', '42,016', '49', 'batch', 'ap_in1k', '+', '3', 'plain',
        '3x224x224']


def test_listing_says_why_a_model_is_left_out(capsys):
    list_zoo(['--left-out', 'efficientnet_b0', 'vgg11', 'beit_*'])
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert 'AdvProp weights' in rows['efficientnet_b0']
    assert rows['vgg11'].startswith('no norms')
    assert 'convert_split_norm' in rows['beit_base_patch16_224']


def test_pattern_without_a_model_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        list_zoo(['test_resnet_ap', 'resnet18'])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: No model matches resnet18. Patterns are wildcards: '*resnet18*'.\n"


def test_listing_ends_quietly_when_its_reader_has_enough():
    process = subprocess.Popen(
        [sys.executable, '-m', 'timm_advprop.models', 'test_*'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b''
    assert process.wait() == 0


# Conversion


@pytest.mark.parametrize('variant', ZOO)
def test_every_norm_of_a_variant_is_split_and_no_key_changes(variant, monkeypatch):
    plain = Observer(monkeypatch)
    model = create_skeleton(variant)
    main, aux = split_state_dict(model.state_dict())
    assert list(main) == plain.keys
    assert plain.architecture == variant
    names = {module: name for name, module in model.named_modules()}
    split = [names[norm] for norm in split_norms(model)]
    assert split == (plain.norms or split)
    assert split
    assert {AUX_KEY.fullmatch(key)[1].rstrip('.') for key in aux} == set(split)
    for key, value in aux.items():
        prefix, index, name = AUX_KEY.fullmatch(key).groups()
        assert index == '0' and value.shape == main[prefix + name].shape
    if not plain.norms:
        shared = [name for name, module in model.named_modules() if is_shared_affine_norm(module, set(split), name)]
        assert not shared


def is_shared_affine_norm(module, split, name):
    """Whether a layer or group norm with parameters is neither split nor an auxiliary norm."""
    return (isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and any(True for _ in module.parameters())
            and name not in split and '.aux_bn.' not in name)


def check_values(variant, monkeypatch, randomize_norms):
    images = make_images(variant)
    plain = Observer(monkeypatch, images[:2])
    model = timm.create_model(variant)
    assert torch.equal(forward(model.eval(), images[:2]), plain.output)

    randomize_norms(model)
    outputs = []
    for route in ('clean', 'aux'):
        set_norm_route(model, route)
        outputs.append(forward(model, images[:2]))
    assert not torch.equal(*outputs)

    model.train()
    for route, touched in (('clean', {None}), ('aux', {'0'}), ('split', {None, '0'})):
        set_norm_route(model, route)
        before = {key: value.clone() for key, value in model.named_buffers()}
        assert forward(model, images).isfinite().all()
        changed = {key for key, value in model.named_buffers() if not torch.equal(value, before[key])}
        statistics = {key for key in before if key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))}
        assert changed == {key for key in statistics if index_of(key) in touched}

    output = model(images)
    sum(part.sum() for part in ([output] if isinstance(output, torch.Tensor) else output)).backward()
    main, aux = split_state_dict(dict(model.named_parameters()))
    for key, parameter in aux.items():
        prefix, _, name = AUX_KEY.fullmatch(key).groups()
        assert (parameter.grad is None) == (main[prefix + name].grad is None)
    assert any(parameter.grad is not None for parameter in aux.values())


def index_of(key):
    """Index of the auxiliary norm that a buffer belongs to, None for the main norm."""
    match = AUX_KEY.fullmatch(key)
    return match and match[2]


@pytest.mark.parametrize('variant', SMALLEST)
def test_variant_computes_what_its_base_does_and_routes_keep_apart(variant, monkeypatch, randomize_norms):
    check_values(variant, monkeypatch, randomize_norms)


@pytest.mark.slow
@pytest.mark.parametrize('variant', OTHERS)
def test_every_variant_computes_what_its_base_does_and_routes_keep_apart(variant, monkeypatch, randomize_norms):
    num_parameters = sum(parameter.numel() for parameter in create_skeleton(variant).parameters())
    if num_parameters > 100e6 or make_images(variant).shape[-1] > 288:
        pytest.skip('a giant, whose smaller kin is tried with values')
    check_values(variant, monkeypatch, randomize_norms)


# Weights


@pytest.mark.parametrize('variant', SMALLEST)
def test_weights_of_either_kind_pass_the_familys_own_filter(variant, randomize_norms):
    split = randomize_norms(timm.create_model(variant)).state_dict()
    plain, _ = split_state_dict(split)
    for source, kwargs in ((split, {}), (plain, {}), (plain, dict(num_classes=7))):
        loaded = timm.create_model(
            variant, pretrained=True, pretrained_cfg_overlay=dict(state_dict=dict(source)), **kwargs)
        assert num_aux_norms(loaded) == 1
        main, aux = split_state_dict(loaded.state_dict())
        for key, value in aux.items():
            prefix, _, name = AUX_KEY.fullmatch(key).groups()
            assert torch.equal(value, split[key] if source is split else main[prefix + name])
        if not kwargs:
            assert all(torch.equal(value, plain[key]) for key, value in main.items())
