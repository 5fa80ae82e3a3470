"""Every entry of the zoo: the plain model of timm, its norms split and nothing else changed."""
import re

import pytest
import timm
import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.models.zoo_models import BUILT, OTHERS, SMALLEST, make_images
from timm_advprop import convert_split_norm, set_norm_route, split_state_dict
from timm_advprop.models import builder
from timm_advprop.models.skeleton import create_skeleton
from timm_advprop.norms import num_aux_norms, split_norms

AUX_KEY = re.compile(r'(.*?)aux_bn\.(\d+)\.(.*)')


class Observer:
    """Takes the place of `convert_split_norm` in the builder, to look at the plain model before it is converted."""

    def __init__(self, monkeypatch, images=None):
        self.images = images
        monkeypatch.setattr(builder, 'convert_split_norm', self)

    def __call__(self, model, num_aux, share):
        self.keys = list(model.state_dict())
        self.architecture = model.pretrained_cfg['architecture']
        self.norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if self.images is not None:
            self.output = forward(model.eval(), self.images)
            model.train()
        return convert_split_norm(model, num_aux, share)


def forward(model, images):
    with torch.no_grad():
        output = model(images)
    return output if isinstance(output, torch.Tensor) else torch.cat(list(output))


@pytest.mark.parametrize('variant', BUILT)
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
    for route in ('main', 'aux'):
        set_norm_route(model, route)
        outputs.append(forward(model, images[:2]))
    assert not torch.equal(*outputs)

    model.train()
    for route, touched in (('main', {None}), ('aux', {'0'}), ('split', {None, '0'})):
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
