"""Converters of torch and timm: synchronised batch norms are converted here, the others are refused."""
from copy import deepcopy

import pytest
import torch
import torch.nn as nn
from timm.layers import convert_splitbn_model, freeze_batch_norm_2d
from timm.layers import convert_sync_batchnorm as timm_convert_sync_batchnorm
from timm.utils import freeze, unfreeze
from torch.nn.modules.batchnorm import _BatchNorm

from tests.norms.norm_models import NETS, aux_equals_main, equal_states, make_batch, snapshot, split_with_own_norms
from timm_advprop.norms import (
    SplitSyncBatchNorm,
    SplitSyncBatchNormAct,
    convert_split_norm,
    convert_sync_batchnorm,
    freeze_norms,
    has_split_norm,
    set_norm_route,
    split_norms,
    strip_aux,
)


@pytest.mark.parametrize('synchronised', [False, True], ids=['split', 'split-sync'])
@pytest.mark.parametrize('convert', [
    nn.SyncBatchNorm.convert_sync_batchnorm,
    timm_convert_sync_batchnorm,
    freeze_batch_norm_2d,
    convert_splitbn_model,
    lambda model: freeze(model, list(dict(model.named_children()))),
], ids=['torch-sync', 'timm-sync', 'timm-freeze', 'timm-splitbn', 'timm-freeze-layers'])
@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet'])
def test_converters_that_would_drop_the_auxiliary_norms_are_refused(name, convert, synchronised, randomize_norms):
    split = split_with_own_norms(NETS[name](), randomize_norms).eval()
    if synchronised:
        convert_sync_batchnorm(split)
    before, types = snapshot(split), [type(module) for module in split.modules()]
    images, _ = make_batch()
    set_norm_route(split, 'aux')
    expected = split(images)
    with pytest.raises(TypeError, match='split norms'):
        convert(split)
    assert [type(module) for module in split.modules()] == types
    assert equal_states(split.state_dict(), before)
    assert torch.equal(split(images), expected)


@pytest.mark.parametrize('layers', ['layer1', ['layer1'], ['layer1', 'layer1.0.bn1'], []], ids=str)
def test_timms_freeze_is_refused_with_what_to_do(layers):
    split = convert_split_norm(NETS['test_resnet']())
    with pytest.raises(TypeError, match=r'include_bn_running_stats=False\).*freeze_norms\(layer\)'):
        freeze(split, layers)


def test_what_it_says_freezes_a_layer():
    split = convert_split_norm(NETS['test_resnet']())
    freeze(split, ['layer1'], include_bn_running_stats=False)
    freeze_norms(split.layer1)
    before, frozen = snapshot(split), {name for name in split.state_dict() if name.startswith('layer1.')}
    assert {name for name, value in split.named_parameters() if not value.requires_grad} == {
        name for name, _ in split.named_parameters() if name in frozen}
    split.train()
    images, _ = make_batch()
    for route in ('main', 'aux'):
        set_norm_route(split, route)
        split(images)
    changed = {name for name, value in split.state_dict().items() if not torch.equal(value, before[name])}
    assert not changed & frozen
    assert {'layer2.0.bn1.running_mean', 'layer2.0.bn1.aux_bn.0.running_mean'} <= changed
    unfreeze(split, ['layer1'])
    freeze_norms(split.layer1, main=False, aux=False)
    assert all(value.requires_grad for value in split.parameters())
    split.train()(images)
    assert not torch.equal(split.layer1[0].bn1.aux_bn[0].running_mean, before['layer1.0.bn1.aux_bn.0.running_mean'])


def test_convert_sync_batchnorm_keeps_every_route(plain, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms)
    synchronised = convert_sync_batchnorm(deepcopy(split))
    expected_types = {SplitSyncBatchNorm, SplitSyncBatchNormAct}
    assert {type(norm) for norm in split_norms(synchronised)} <= expected_types
    assert {type(aux) for norm in split_norms(synchronised) for aux in norm.aux_bn} == {nn.SyncBatchNorm}
    assert equal_states(synchronised.state_dict(), split.state_dict())
    for training in (True, False):
        for route in ('main', 'aux', 'split'):
            images, _ = make_batch()
            outputs = []
            for model in (split, synchronised):
                model.train(training)
                set_norm_route(model, route)
                outputs.append(model(images))
            torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for key, value in synchronised.state_dict().items():
        torch.testing.assert_close(value, split.state_dict()[key], rtol=1e-5, atol=1e-5)


def test_convert_sync_batchnorm_can_be_repeated(resnet, randomize_norms):
    split = convert_sync_batchnorm(split_with_own_norms(resnet, randomize_norms))
    state = snapshot(split)
    assert has_split_norm(convert_sync_batchnorm(split))
    assert equal_states(split.state_dict(), state)


def test_convert_sync_batchnorm_gives_every_norm_the_process_group(resnet):
    group = object()
    split = convert_sync_batchnorm(convert_split_norm(resnet), group)
    norms = [module for module in split.modules() if isinstance(module, _BatchNorm)]
    assert {norm.process_group for norm in norms} == {group}
    assert convert_split_norm(nn.SyncBatchNorm(3, process_group=group)).aux_bn[0].process_group is group
    assert SplitSyncBatchNorm(3).aux_bn[0].process_group is None


def test_convert_sync_batchnorm_takes_plain_models_as_timm_does(plain):
    expected = timm_convert_sync_batchnorm(deepcopy(plain))
    model = convert_sync_batchnorm(plain)
    assert [type(module) for module in model.modules()] == [type(module) for module in expected.modules()]


def test_plain_synchronised_models_can_be_split_and_stripped(plain):
    synchronised = timm_convert_sync_batchnorm(plain).eval()
    types = [type(module) for module in synchronised.modules()]
    images, _ = make_batch()
    expected = synchronised(images)
    split = convert_split_norm(synchronised)
    assert {type(norm) for norm in split_norms(split)} <= {SplitSyncBatchNorm, SplitSyncBatchNormAct}
    assert aux_equals_main(split)
    assert torch.equal(split(images), expected)
    assert [type(module) for module in strip_aux(split).modules()] == types


def test_converters_that_leave_the_auxiliary_norms_as_they_are_may_pass():
    split = convert_split_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)))
    modules = list(split.modules())
    for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, timm_convert_sync_batchnorm, freeze_batch_norm_2d):
        assert list(convert(split).modules()) == modules


def replace_by_setattr(model):
    for module in model.modules():
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, nn.GroupNorm(1, child.num_features))


def replace_by_index(model):
    next(split_norms(model)).aux_bn[0] = nn.Identity()


@pytest.mark.parametrize('convert', [replace_by_setattr, replace_by_index])
def test_auxiliary_norms_cannot_be_assigned(resnet, convert):
    split = convert_split_norm(resnet)
    with pytest.raises(TypeError, match='would drop the split norms'):
        convert(split)
    assert aux_equals_main(split)
    norms = next(split_norms(split)).aux_bn
    norms[0] = norms[0]
    assert not norms.eval().training
