"""The layers: split batch norms against plain ones."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d

import timm_advprop
from tests.norms.norm_models import (
    aux_equals_main,
    equal_states,
    main_key,
    named_grads,
    norm_index,
    plain_models_of,
    split_with_own_norms,
)
from timm_advprop.norms import (
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    SplitBatchNormAct2d,
    convert_split_norm,
    num_aux_norms,
    set_norm_route,
    split_state_dict,
)

PLAIN_LAYERS = [
    pytest.param(nn.BatchNorm1d, (8, 6), id='BatchNorm1d'),
    pytest.param(nn.BatchNorm1d, (8, 6, 5), id='BatchNorm1d-3d'),
    pytest.param(nn.BatchNorm2d, (8, 6, 5, 5), id='BatchNorm2d'),
    pytest.param(BatchNormAct2d, (8, 6, 5, 5), id='BatchNormAct2d'),
    pytest.param(nn.SyncBatchNorm, (8, 6, 5, 5), id='SyncBatchNorm'),
]


@pytest.mark.parametrize('settings', [
    {}, dict(momentum=None), dict(track_running_stats=False), dict(affine=False), dict(eps=1e-2, momentum=.5),
], ids=lambda settings: ','.join(settings) or 'default')
@pytest.mark.parametrize('layer, shape', PLAIN_LAYERS)
def test_main_route_of_a_layer_is_the_plain_layer(layer, shape, settings, randomize_norms):
    plain = randomize_norms(layer(6, **settings))
    split = split_with_own_norms(plain, randomize_norms)
    split.load_state_dict(plain.state_dict(), strict=False)
    for training in (True, True, False):
        images = torch.randn(shape)
        inputs = [images.clone().requires_grad_() for _ in range(2)]
        outputs = [norm.train(training)(input) for norm, input in zip((plain, split), inputs)]
        for output in outputs:
            output.square().sum().backward()
        assert torch.equal(*outputs)
        assert torch.equal(inputs[0].grad, inputs[1].grad)
        assert all(torch.equal(named_grads(split)[name], grad) for name, grad in named_grads(plain).items())
    assert equal_states(split_state_dict(split.state_dict())[0], plain.state_dict())


@pytest.mark.parametrize('settings', [
    {}, dict(momentum=None), dict(track_running_stats=False), dict(affine=False),
], ids=lambda settings: ','.join(settings) or 'default')
@pytest.mark.parametrize('layer, shape', PLAIN_LAYERS)
def test_split_route_of_a_layer_is_one_plain_layer_for_each_part(layer, shape, settings, randomize_norms):
    plain = layer(6, **settings)
    split = split_with_own_norms(plain, randomize_norms)
    norms = plain_models_of(split, plain)
    set_norm_route(split, 'split')
    images = torch.randn(shape)
    expected = torch.cat([norm(part) for norm, part in zip(norms, images.chunk(2))])
    torch.testing.assert_close(split(images), expected, rtol=0, atol=0)
    for key, value in split.state_dict().items():
        assert torch.equal(value, norms[norm_index(key)].state_dict()[main_key(key)])


@pytest.mark.parametrize('split_layer, layer, settings, shape', [
    (SplitBatchNorm1d, nn.BatchNorm1d, {}, (4, 6)),
    (SplitBatchNorm2d, nn.BatchNorm2d, dict(eps=1e-3, momentum=.01), (4, 6, 3, 3)),
    (SplitBatchNormAct2d, BatchNormAct2d, dict(eps=1e-3, act_layer=nn.SiLU), (4, 6, 3, 3)),
    (SplitBatchNormAct2d, BatchNormAct2d, dict(apply_act=False), (4, 6, 3, 3)),
])
def test_layers_can_be_made_directly(split_layer, layer, settings, shape):
    norm = split_layer(6, num_aux=2, dtype=torch.float64, **settings)
    plain = layer(6, dtype=torch.float64, **settings)
    assert num_aux_norms(norm) == 2
    assert aux_equals_main(norm)
    images = torch.randn(shape, dtype=torch.float64)
    for route in ('main', 1, 2):
        set_norm_route(norm, route)
        assert torch.equal(norm(images), plain(images))
        plain.reset_running_stats()
    assert all(value.is_meta for value in split_layer(6, device='meta', **settings).state_dict().values())
    with pytest.raises(ValueError, match='num_aux'):
        split_layer(6, num_aux=0, **settings)


@pytest.mark.parametrize('layer, shape', [
    (SplitBatchNorm1d, (2, 6, 3, 3)), (SplitBatchNorm2d, (2, 6)), (SplitBatchNormAct2d, (2, 6, 3)),
])
def test_layers_refuse_inputs_of_another_shape(layer, shape):
    with pytest.raises(AssertionError, match='expected'):
        layer(6)(torch.randn(shape))


@pytest.mark.parametrize('shape, memory_format', [
    ((4, 6), torch.contiguous_format),
    ((4, 6, 5), torch.contiguous_format),
    ((4, 6, 5, 5), torch.contiguous_format),
    ((4, 6, 5, 5), torch.channels_last),
], ids=['nc', 'ncl', 'nchw', 'nhwc'])
def test_auxiliary_norm_with_frozen_parameters_equals_batch_norm(shape, memory_format, randomize_norms):
    layer = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    split = randomize_norms(convert_split_norm(layer(6, eps=1e-3, dtype=torch.float64))).eval()
    set_norm_route(split, 'aux')
    split.requires_grad_(False)
    images = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format)
    weight = torch.randn_like(images)
    aux = split.aux_bn[0]
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    output = split(inputs[0])
    expected = F.batch_norm(inputs[1], aux.running_mean, aux.running_var, aux.weight, aux.bias, eps=1e-3)
    (output * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-12, atol=1e-12)
    assert output.stride() == expected.stride()
    assert type(output.grad_fn).__name__ == 'AddcmulBackward0'  # not batch norm's backward, three times as slow


@pytest.mark.parametrize('settings', [dict(affine=False), dict(track_running_stats=False)], ids=str)
@pytest.mark.parametrize('layer, shape', PLAIN_LAYERS)
def test_auxiliary_norm_without_parameters_or_statistics_equals_the_plain_layer(layer, shape, settings):
    plain = layer(6, **settings).eval()
    split = convert_split_norm(layer(6, **settings)).eval().requires_grad_(False)
    set_norm_route(split, 'aux')
    inputs = [torch.randn(shape).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [norm(input) for norm, input in zip((plain, split), inputs)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(*outputs)
    assert torch.equal(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_the_attacks_shortcut_through_a_fixed_auxiliary_norm_is_the_norm(dtype, tolerance, randomize_norms):
    torch.manual_seed(0)
    norm = randomize_norms(convert_split_norm(nn.BatchNorm2d(8))).eval()
    plain = nn.BatchNorm2d(8).eval()
    plain.load_state_dict(norm.aux_bn[0].state_dict())
    set_norm_route(norm, 'aux')
    norm.requires_grad_(False)
    images = torch.randn(4, 8, 6, 6)
    sources = [images.clone().requires_grad_(), images.to(dtype).requires_grad_()]
    outputs = [plain(sources[0]), norm(sources[1])]
    direction = torch.randn_like(images)
    gradients = [torch.autograd.grad((output.float() * direction).sum(), source)[0]
                 for output, source in zip(outputs, sources)]
    assert outputs[1].dtype == gradients[1].dtype == dtype
    for values in (outputs, gradients):
        torch.testing.assert_close(values[1].float(), values[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('trained, grad', [(True, True), (False, False)], ids=['trained', 'no-grad'])
def test_nothing_but_an_attack_takes_the_shortcut(trained, grad, randomize_norms):
    # in bfloat16 the shortcut rounds scale and shift, the norm does not
    split = randomize_norms(convert_split_norm(nn.BatchNorm2d(8))).eval().requires_grad_(trained)
    set_norm_route(split, 'aux')
    images = torch.randn(4, 8, 6, 6).bfloat16()
    with torch.set_grad_enabled(grad):
        assert torch.equal(split(images), split.aux_bn[0](images))
    frozen = split.requires_grad_(False)(images)
    assert not torch.equal(frozen, split.aux_bn[0](images))


def test_a_type_that_the_plain_norm_refuses_is_refused_in_an_attack_too():
    norm = timm_advprop.SplitBatchNorm2d(3).eval().requires_grad_(False)
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    for route in ('main', 'aux'):
        timm_advprop.set_norm_route(norm, route)
        with pytest.raises(RuntimeError):
            norm(images)
