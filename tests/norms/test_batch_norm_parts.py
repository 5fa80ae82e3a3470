"""The parts of a batch are normalised side by side as by a norm for each and `torch.cat`."""
from copy import deepcopy

import pytest
import torch
import torch.nn as nn

from timm_advprop.norms import SplitBatchNorm1d, SplitBatchNorm2d, SplitNorm, SplitSyncBatchNorm, set_norm_route
from timm_advprop.norms.batch_norm_parts import takes_parts

SIZES = [5, 2, 3]


def split_norm(norm_type=SplitBatchNorm2d, **kwargs):
    torch.manual_seed(0)
    norm = norm_type(4, num_aux=2, **kwargs)
    for i, part in enumerate((norm, *norm.aux_bn)):
        part.momentum, part.eps = 0.1 + 0.2 * i, 10.**(i - 3)
        for value in (part.weight, part.bias, part.running_mean, part.running_var):
            if value is not None:
                nn.init.uniform_(value, 0.5, 2)
    set_norm_route(norm, 'split', SIZES)
    return norm


def step(norm, images):
    images = images.detach().requires_grad_()
    output = norm(images)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = [images.grad, *(parameter.grad for parameter in norm.parameters())]
    return [output.detach(), *gradients, *deepcopy(norm.state_dict()).values()]


@pytest.mark.parametrize('shape, norm_type', [
    ((10, 4, 3, 5), SplitBatchNorm2d), ((10, 4, 1, 1), SplitBatchNorm2d), ((10, 4), SplitBatchNorm1d),
    ((10, 4, 6), SplitBatchNorm1d)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_values_are_those_of_a_norm_for_each_part(shape, norm_type, memory_format, monkeypatch):
    if len(shape) != 4 and memory_format is torch.channels_last:
        pytest.skip('channels-last is of images')
    images = torch.randn(shape).to(memory_format=memory_format)
    together, apart = split_norm(norm_type), split_norm(norm_type)
    found = step(together, images)
    with monkeypatch.context() as patch:
        patch.setattr(norm_type, '_normalize_parts', SplitNorm._normalize_parts)
        expected = step(apart, images)
    assert '_BatchNormParts' in together(images).grad_fn.name()
    assert len(found) == len(expected) == 1 + 1 + 6 + 15
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert len(shape) != 4 or found[0].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('norm_type, images', [
    (SplitBatchNorm2d, torch.randn(10, 4, 5, 3).transpose(2, 3)),
    (SplitBatchNorm2d, torch.randn(20, 8, 5, 3)[::2, ::2]),
    (SplitBatchNorm2d, torch.randn(1, 4, 5, 3).expand(10, -1, -1, -1)),
    (SplitBatchNorm1d, torch.randn(10, 7, 4).transpose(1, 2)),
    (SplitBatchNorm1d, torch.randn(4, 10).t()),
])
def test_images_of_any_layout(norm_type, images):
    found, expected = (step(split_norm(norm_type), each) for each in (images, images.contiguous()))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_norms_without_weight_and_bias():
    norm, images = SplitBatchNorm2d(4, affine=False), torch.randn(10, 4, 3, 3)
    set_norm_route(norm, 'split')
    torch.testing.assert_close(norm(images), torch.cat([nn.BatchNorm2d(4)(part) for part in images.chunk(2)]))


def test_no_images():
    norm = split_norm()
    norm.split_sizes = None
    assert norm(torch.randn(0, 4, 3, 5)).shape == (0, 4, 3, 5)


def test_against_finite_differences():
    norm = split_norm().double()
    norm.split_sizes = 2, 1, 2
    parameters = dict(norm.named_parameters())

    def output(images, *values):
        return torch.func.functional_call(norm, dict(zip(parameters, values)), (images,))
    images = torch.randn(5, 4, 1, 2, dtype=torch.float64, requires_grad=True)
    assert '_BatchNormParts' in norm(images).grad_fn.name()
    assert torch.autograd.gradcheck(output, (images, *parameters.values()))
    assert torch.autograd.gradgradcheck(output, (images, *parameters.values()))


def test_only_what_is_wanted_gets_a_gradient():
    norm = split_norm()
    norm.weight.requires_grad_(False)
    norm.aux_bn[1].bias.requires_grad_(False)
    norm(torch.randn(10, 4, 3, 3)).square().sum().backward()
    assert norm.weight.grad is None and norm.aux_bn[1].bias.grad is None
    assert norm.bias.grad is not None and norm.aux_bn[0].weight.grad is not None


def test_a_hook_on_an_auxiliary_norm_is_called():
    norm, seen = split_norm(), []
    norm.aux_bn[1].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    norm(torch.randn(10, 4, 3, 3))
    assert seen == [3]


@pytest.mark.parametrize('register', [
    'register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook',
    'register_full_backward_pre_hook'])
def test_a_hook_of_any_kind_is_called(register):
    norm, seen = split_norm(), []
    getattr(norm.aux_bn[1], register)(lambda *args: seen.append(register))
    norm(torch.randn(10, 4, 3, 3, requires_grad=True)).sum().backward()
    assert seen == [register]


def test_gradients_of_functions():
    norm, images = split_norm(), torch.randn(10, 4, 3, 3)
    parameters = dict(norm.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(deepcopy(norm), parameters, (images,)).pow(3).sum()
    found = torch.func.grad(loss)(parameters)
    norm(images).pow(3).sum().backward()
    for name, value in found.items():
        torch.testing.assert_close(value, parameters[name].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('change', [
    lambda norm: norm.eval(),
    lambda norm: norm.aux_bn[0].eval(),
    lambda norm: setattr(norm, 'momentum', None),
    lambda norm: setattr(norm.aux_bn[1], 'track_running_stats', False),
    lambda norm: norm.bfloat16(),
])
def test_other_passes_are_left_to_the_norms(change):
    norm, images = split_norm(), torch.randn(10, 4, 3, 3)
    assert takes_parts([norm, *norm.aux_bn], images, SIZES)
    change(norm)
    assert not takes_parts([norm, *norm.aux_bn], images, SIZES)


def test_norms_that_are_synchronised_or_see_one_value_are_left_alone():
    images = torch.randn(10, 4, 1, 1)
    norm = split_norm(SplitSyncBatchNorm)
    assert not takes_parts([norm, *norm.aux_bn], images, SIZES)
    norm = split_norm()
    assert takes_parts([norm, *norm.aux_bn], images, [2, 2, 6])
    assert not takes_parts([norm, *norm.aux_bn], images, [1, 3, 6])
    set_norm_route(norm, 'split', [1, 3, 6])
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        norm(images)
