"""Blended routes: a plain model between the routes of a split one."""
from copy import deepcopy
from math import nan

import pytest
import timm
import torch
import torch.nn as nn

import timm_advprop
from tests.norms.norm_models import equal_states, plain_models_of, snapshot, split_with_own_norms
from timm_advprop.norms import SplitNorm, convert_split_norm, has_split_norm, split_norms, strip_aux

blend_routes = timm_advprop.blend_routes


@pytest.fixture
def split(plain, randomize_norms):
    return counted(split_with_own_norms(plain, randomize_norms, num_aux=2))


def counted(model):
    """Every norm with a number of batches of its own."""
    for i, (name, value) in enumerate(model.named_buffers()):
        if name.endswith('num_batches_tracked'):
            value.fill_(10 + i)
    return model


def mixed_by_key(models, weights):
    """The mix of plain models by a plain sum, in double precision."""
    states = [model.state_dict() for model in models]
    return {key: sum(weight * state[key].double() for weight, state in zip(weights, states))
            for key in states[0] if states[0][key].is_floating_point()}


@pytest.mark.parametrize('route, weights', [(0, 0), (0, (1, 0, 0)), (1, 1), (1, (0, 1, 0)), (2, (0, 0, 1.))])
def test_a_weight_of_one_is_that_route_bit_for_bit(plain, split, route, weights):
    blend = blend_routes(split, weights)
    assert equal_states(blend.state_dict(), plain_models_of(split, plain)[route].state_dict())
    assert route or equal_states(blend.state_dict(), strip_aux(split).state_dict())
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad(), timm_advprop.norm_route(split.eval(), route):
        assert torch.equal(blend.eval()(images), split(images))


@pytest.mark.parametrize('weights', [(.3, .5, .2), (0, .25, .75), (.6, .4, 0)])
def test_the_mix_is_the_weighted_sum_of_parameters_and_statistics(plain, split, weights):
    blend = blend_routes(split, weights).state_dict()
    expected = mixed_by_key(plain_models_of(split, plain), weights)
    for key, value in expected.items():
        torch.testing.assert_close(blend[key], value.float(), rtol=1e-5, atol=1e-6)
    changed = {key for key in expected if not torch.equal(blend[key], split.state_dict()[key])}
    assert {key.rpartition('.')[2] for key in changed} == {'weight', 'bias', 'running_mean', 'running_var'}
    counts = {key for key in blend if key.endswith('num_batches_tracked')}
    assert counts and all(torch.equal(blend[key], split.state_dict()[key]) for key in counts)


def test_a_number_is_the_share_of_the_first_auxiliary_norm(split):
    assert equal_states(blend_routes(split, .3).state_dict(), blend_routes(split, (.7, .3, 0)).state_dict())


@pytest.mark.parametrize('weights', [.3, .1, 1 / 3, (.1, .2, .7)])
def test_a_mix_of_copies_is_the_copy(plain, weights):
    split = convert_split_norm(deepcopy(plain), num_aux=2)
    assert equal_states(blend_routes(split, weights).state_dict(), plain.state_dict())


def test_the_result_is_plain_and_the_model_stays_as_it_is(split):
    before, modes = snapshot(split), [module.training for module in split.modules()]
    timm_advprop.set_norm_route(split, 'aux')
    blend = blend_routes(split, .4)
    assert not has_split_norm(blend) and has_split_norm(split)
    assert equal_states(split.state_dict(), before)
    assert [module.training for module in split.modules()] == modes
    assert all(norm.route == 1 for norm in split_norms(split))
    for value in blend.parameters():
        assert value.requires_grad and value.is_leaf
        value.data.zero_()
    assert equal_states(split.state_dict(), before)


@pytest.mark.parametrize('name', ['test_vit', 'test_convnext', 'test_resnet', 'test_byobnet'])
def test_stock_timm_loads_a_blend_strictly(name):
    split = timm.create_model(f'{name}_ap', num_classes=4).eval()
    with torch.no_grad():
        for norm in split_norms(split):
            for value in norm.aux_bn.parameters():
                value.uniform_(.5, 1.5)
    blend, stock = blend_routes(split, .5), timm.create_model(name, num_classes=4).eval()
    stock.load_state_dict(blend.state_dict(), strict=True)
    images = torch.randn(2, *stock.pretrained_cfg['input_size'])
    with torch.no_grad():
        assert torch.equal(stock(images), blend(images))
        assert not torch.equal(blend(images), split(images))


def test_an_auxiliary_norm_without_statistics_takes_part_with_those_of_the_main_norm(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms)
    for norm in split_norms(split):
        for name in ('running_mean', 'running_var', 'num_batches_tracked'):
            norm.aux_bn[0].register_buffer(name, None)
    main = strip_aux(split).state_dict()
    for weights in (.4, 1):
        blend = blend_routes(split, weights).state_dict()
        assert all(torch.equal(blend[key], main[key]) for key in main if 'running' in key or 'tracked' in key)
        assert not torch.equal(blend['bn1.weight'], main['bn1.weight'])


def test_synchronised_norms_are_mixed_as_others(plain, split):
    expected = blend_routes(split, (.2, .5, .3))
    blend = blend_routes(timm_advprop.convert_sync_batchnorm(deepcopy(split)), (.2, .5, .3))
    assert equal_states(blend.state_dict(), expected.state_dict())
    kinds = {type(module) for module in blend.modules()}
    assert any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds) and not any(
        issubclass(kind, SplitNorm) for kind in kinds)


def test_parameters_of_a_norms_children_are_mixed(randomize_norms):
    class Shifted(nn.GroupNorm):
        def __init__(self):
            super().__init__(2, 4)
            self.act = nn.PReLU(init=.25)

        def forward(self, x):
            return self.act(super().forward(x))

    split = convert_split_norm(nn.Sequential(Shifted()))
    norm = split[0]
    assert isinstance(norm, SplitNorm)
    nn.init.constant_(norm.aux_bn[0].act.weight, .75)
    assert blend_routes(split, .5)[0].act.weight.item() == .5


def test_half_precision_is_mixed_in_single_precision(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).to(torch.bfloat16)
    blend = blend_routes(split, .3).state_dict()
    wide = blend_routes(deepcopy(split).float(), .3).state_dict()
    assert all(blend[key].dtype == value.dtype or blend[key].dtype == torch.bfloat16 for key, value in wide.items())
    assert all(torch.equal(blend[key], value.to(blend[key].dtype)) for key, value in wide.items())


@pytest.mark.parametrize('weights, message', [
    (1.5, '0 to 1'), (-.2, '0 to 1'), (nan, '0 to 1'), ((.5, .5), '3 weights'), ((.5, .2, .2), '1 in sum'),
    ((1.2, -.2, 0), '0 to 1'), ((), '3 weights'),
])
def test_weights_that_are_none_are_named(split, weights, message):
    with pytest.raises(ValueError, match=message):
        blend_routes(split, weights)


def test_a_plain_model_has_nothing_to_blend(plain):
    with pytest.raises(ValueError, match='no split norms to blend'):
        blend_routes(plain, .5)
