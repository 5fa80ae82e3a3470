"""From plain norms to split norms and back."""
from functools import partial

import pytest
import timm
import torch
import torch.nn as nn
from timm.layers import SplitBatchNorm2d as TimmSplitBatchNorm2d
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d

import timm_advprop
from tests.norms.norm_models import (
    NORM_TENSORS,
    aux_equals_main,
    equal_states,
    make_batch,
    norm_index,
    plain_models_of,
    snapshot,
    split_with_own_norms,
    train_step,
)
from timm_advprop.norms import (
    SplitBatchNorm2d,
    convert_split_norm,
    has_split_norm,
    num_aux_norms,
    set_norm_route,
    split_norms,
    split_state_dict,
    strip_aux,
)


def test_conversion_leaves_eval_output_unchanged_bit_for_bit(plain):
    images, _ = make_batch()
    expected = plain.eval()(images)
    assert torch.equal(convert_split_norm(plain)(images), expected)


@pytest.mark.parametrize('num_aux', [1, 3])
def test_conversion_keeps_keys_and_adds_copies_of_the_main_norm(plain, num_aux):
    before = snapshot(plain)
    norms = [name for name, module in plain.named_modules() if isinstance(module, _BatchNorm)]
    split = convert_split_norm(plain, num_aux=num_aux)
    assert split is plain
    after = split.state_dict()
    assert equal_states({key: value for key, value in after.items() if not norm_index(key)}, before)
    assert set(after) - set(before) == {
        f'{name}.aux_bn.{i}.{tensor}' for name in norms for i in range(num_aux) for tensor in NORM_TENSORS}
    assert aux_equals_main(split)
    assert num_aux_norms(split) == num_aux


def test_conversion_copies_zero_initialised_last_norms():
    split = convert_split_norm(timm.create_model('test_resnet', zero_init_last=True))
    assert split.layer1[0].bn2.aux_bn[0].weight.count_nonzero() == 0
    assert aux_equals_main(split)


def test_auxiliary_norms_take_the_main_norms_settings():
    norm = nn.BatchNorm2d(4, eps=1e-3, momentum=.3, dtype=torch.float64).eval()
    norm.weight.requires_grad_(False)
    aux = convert_split_norm(norm).aux_bn[0]
    assert (aux.eps, aux.momentum, aux.training) == (1e-3, .3, False)
    assert (aux.weight.requires_grad, aux.bias.requires_grad) == (False, True)
    assert {value.dtype for value in (aux.weight, aux.bias, aux.running_mean, aux.running_var)} == {torch.float64}


def test_auxiliary_norms_share_no_storage_with_the_main_norm(plain):
    before = snapshot(plain)
    split = convert_split_norm(plain)
    with torch.no_grad():
        for key, value in split.state_dict(keep_vars=True).items():
            if norm_index(key):
                value.add_(1)
    assert equal_states(split_state_dict(split.state_dict())[0], before)


def test_conversion_works_on_the_meta_device():
    with torch.device('meta'):
        split = convert_split_norm(timm.create_model('test_efficientnet'))
    assert all(value.is_meta for value in split.state_dict().values())
    assert num_aux_norms(split) == 1


def test_conversion_takes_a_batch_norm_as_root():
    norm = nn.BatchNorm2d(4)
    assert convert_split_norm(norm) is norm
    assert type(norm) is SplitBatchNorm2d
    set_norm_route(norm, 'aux')
    norm(torch.randn(8, 4, 3, 3) + 5)
    assert norm.running_mean.count_nonzero() == 0
    assert norm.aux_bn[0].running_mean.count_nonzero() == 4


def test_conversion_keeps_a_shared_norm_shared():
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.Conv2d(3, 3, 1), norm)
    state = snapshot(model)
    images = torch.randn(4, 3, 8, 8)
    expected = model.eval()(images)
    convert_split_norm(model)
    assert model[0] is model[2]
    assert len(list(split_norms(model))) == 1
    assert torch.equal(model(images), expected)
    model.load_state_dict(state)
    assert aux_equals_main(model)


def test_conversion_keeps_hooks():
    model = nn.Sequential(nn.BatchNorm2d(3))
    calls = []
    model[0].register_forward_pre_hook(lambda *args: calls.append('pre'))
    model[0].register_forward_hook(lambda *args: calls.append('post'))
    convert_split_norm(model)(torch.randn(4, 3, 8, 8))
    assert calls == ['pre', 'post']


class NormSubclass(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize('norm', [
    nn.BatchNorm3d(3),
    nn.InstanceNorm2d(3, track_running_stats=True),
    FrozenBatchNorm2d(3),
    TimmSplitBatchNorm2d(3),
    NormSubclass(3),
], ids=lambda norm: type(norm).__name__)
def test_conversion_names_what_it_cannot_convert_and_changes_nothing(norm):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Identity(), norm))
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf'1\.1 \({type(norm).__name__}\)'):
        convert_split_norm(model)
    assert type(model[0]) is nn.BatchNorm2d
    assert equal_states(model.state_dict(), before)


def test_conversion_leaves_norms_without_batch_statistics_alone():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.InstanceNorm2d(4))
    convert_split_norm(model)
    assert [type(module) for module in model] == [SplitBatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d]


@pytest.mark.parametrize('create', [lambda: timm.create_model('test_nfnet'), lambda: nn.Linear(3, 3)])
def test_conversion_refuses_a_model_without_norms(create):
    with pytest.raises(ValueError, match='no batch norms'):
        convert_split_norm(create())


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, nn.LayerNorm])
@pytest.mark.parametrize('num_aux', [None, 2])
def test_conversion_completes_a_model_that_is_split_in_part(norm, num_aux):
    model = nn.Sequential(convert_split_norm(norm(3), num_aux=2), norm(3))
    first = model[0].aux_bn[0]
    assert convert_split_norm(model, num_aux) is model
    assert len(list(split_norms(model))) == 2 and num_aux_norms(model) == len(model[1].aux_bn) == 2
    assert model[0].aux_bn[0] is first
    with pytest.raises(ValueError, match='already'):
        convert_split_norm(model)


def test_conversion_with_another_number_of_auxiliary_norms_is_refused():
    model = nn.Sequential(convert_split_norm(nn.BatchNorm2d(3), num_aux=2), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match='2 auxiliary norms each, the others cannot have 1'):
        convert_split_norm(model, num_aux=1)
    assert type(model[1]) is nn.BatchNorm2d


def test_layer_norms_beside_split_batch_norms_stay_shared():
    model = nn.Sequential(convert_split_norm(nn.BatchNorm2d(3)), nn.LayerNorm(3))
    with pytest.raises(ValueError, match='already'):
        convert_split_norm(model)
    assert type(model[1]) is nn.LayerNorm


@pytest.mark.parametrize('layer', [
    nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.TransformerEncoderLayer(8, 2, 16),
    nn.TransformerDecoderLayer(8, 2, 16),
], ids=['encoder', 'tokens-first', 'decoder'])
def test_layers_that_go_past_their_norms_or_take_tokens_first_are_refused(layer):
    model = nn.Sequential(nn.Linear(4, 8), layer)
    with pytest.raises(ValueError, match=rf'1 \({type(layer).__name__}\)'):
        convert_split_norm(model)
    assert not has_split_norm(model)
    convert_split_norm(nn.Sequential(nn.BatchNorm1d(4), *model))  # whose layer norms all routes share
    convert_split_norm(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True))


def test_conversion_refuses_less_than_one_auxiliary_norm(resnet):
    with pytest.raises(ValueError, match='num_aux'):
        convert_split_norm(resnet, num_aux=0)
    assert not has_split_norm(resnet)


@pytest.mark.parametrize('route', ['main', 'aux', 'split'])
def test_strip_aux_gives_the_plain_model_and_leaves_the_split_one(plain, route, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms).eval()
    set_norm_route(split, route)
    before, main = snapshot(split), plain_models_of(split, plain)[0]
    images, target = make_batch()
    expected = split(images)

    stripped = strip_aux(split)
    assert [type(module) for module in stripped.modules()] == [type(module) for module in plain.modules()]
    assert torch.equal(stripped(images), main(images))
    plain.load_state_dict(stripped.state_dict(), strict=True)

    stripped.train()
    train_step(stripped, images, target)
    assert equal_states(split.state_dict(), before)
    assert torch.equal(split(images), expected)
    convert_split_norm(stripped).eval()
    expected = stripped(images)
    for norm in split_norms(stripped):
        randomize_norms(norm.aux_bn)
    assert torch.equal(stripped(images), expected)  # it is back on the default route


def test_strip_aux_of_a_plain_model_is_a_copy(resnet):
    stripped = strip_aux(resnet)
    assert stripped is not resnet
    assert equal_states(stripped.state_dict(), resnet.state_dict())


def test_stripped_models_load_strictly_in_stock_timm(randomize_norms):
    split = randomize_norms(timm.create_model('test_efficientnet_ap'))
    model = timm.create_model('test_efficientnet')
    model.load_state_dict(strip_aux(split).state_dict(), strict=True)
    images, _ = make_batch()
    assert torch.equal(model.eval()(images), split.eval()(images))


def test_synchronised_auxiliary_norms_are_the_same_modules():
    model = timm_advprop.convert_split_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), 2)
    before = list(model[1].aux_bn)
    timm_advprop.convert_sync_batchnorm(model)
    assert all(aux is same for aux, same in zip(model[1].aux_bn, before)) and len(before) == len(model[1].aux_bn)


def test_a_plain_norm_beside_split_ones_gets_the_process_group():
    group = object()
    model = nn.Sequential(timm_advprop.SplitBatchNorm2d(3), nn.BatchNorm2d(3))
    timm_advprop.convert_sync_batchnorm(model, group)
    assert [type(norm).__name__ for norm in model] == ['SplitSyncBatchNorm', 'SyncBatchNorm']
    assert model[0].process_group is group and model[1].process_group is group


def test_a_stripped_model_keeps_nothing_of_its_routes():
    model = timm_advprop.convert_split_norm(nn.Sequential(nn.BatchNorm2d(3)))
    timm_advprop.set_norm_route(model, 'split', sizes=(3, 1))
    assert not {'route', 'split_sizes', 'aux_bn'} & vars(timm_advprop.strip_aux(model)[0]).keys()


def test_norms_whose_forward_is_replaced_are_refused(resnet):
    """As hooks of Accelerate replace it: images would pass the main norm on every route."""
    norm = next(module for module in resnet.modules() if type(module) is nn.BatchNorm2d)
    norm.forward = partial(type(norm).forward, norm)
    before = [type(module) for module in resnet.modules()]
    with pytest.raises(ValueError, match='in place of the forward of these norms.* Split them before'):
        convert_split_norm(resnet)
    assert [type(module) for module in resnet.modules()] == before
