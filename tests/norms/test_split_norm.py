"""Models with split norms: training, copies, precisions, memory formats."""
import pickle
from copy import deepcopy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models.efficientvit_msra import LocalWindowAttention
from timm.utils import ModelEmaV3

from tests.norms.norm_models import (
    NETS,
    equal_states,
    main_key,
    make_batch,
    named_grads,
    norm_index,
    plain_models_of,
    snapshot,
    split_with_own_norms,
    train_step,
)
from timm_advprop.norms import (
    convert_split_norm,
    forward_parts,
    set_norm_route,
    split_norms,
    split_state_dict,
    strip_aux,
)


def test_default_route_trains_exactly_as_the_plain_model(plain):
    split = convert_split_norm(deepcopy(plain))
    aux_before = split_state_dict(snapshot(split))[1]
    models = (plain.train(), split.train())
    optimizers = [torch.optim.SGD(model.parameters(), lr=.1, momentum=.9, weight_decay=1e-3) for model in models]
    for _ in range(2):
        images, target = make_batch()
        outputs = [train_step(model, images, target) for model in models]
        assert torch.equal(*outputs)
        grads = named_grads(split)
        assert all(torch.equal(grads[name], grad) for name, grad in named_grads(plain).items())
        assert all(grad is None for name, grad in grads.items() if norm_index(name))
        for optimizer in optimizers:
            optimizer.step()
    main, aux = split_state_dict(split.state_dict())
    assert equal_states(main, plain.state_dict())
    assert equal_states(aux, aux_before)
    assert torch.equal(plain.eval()(images), split.eval()(images))


@pytest.mark.parametrize('num_aux, sizes', [(1, None), (1, [6, 2]), (2, None), (2, [4, 2, 3])])
def test_split_step_equals_a_step_of_independent_plain_models(plain, num_aux, sizes, randomize_norms):
    plain = plain.double()
    split = split_with_own_norms(plain, randomize_norms, num_aux).train()
    models = plain_models_of(split, plain)
    part_sizes = sizes or [4] * (1 + num_aux)
    images, target = make_batch(sum(part_sizes), dtype=torch.float64)
    parts = list(zip(images.split(part_sizes), target.split(part_sizes)))

    set_norm_route(split, 'split', sizes)
    output = split(images)
    losses = [F.cross_entropy(o, t) for o, t in zip(output.split(part_sizes), target.split(part_sizes))]
    sum(losses).backward()
    expected = torch.cat([train_step(model, *part) for model, part in zip(models, parts)])

    tolerance = dict(rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(output, expected, **tolerance)
    grads = [named_grads(model) for model in models]
    norm_keys = {main_key(key) for key in split.state_dict() if norm_index(key)}
    for name, grad in named_grads(split).items():
        if main_key(name) in norm_keys:
            torch.testing.assert_close(grad, grads[norm_index(name)][main_key(name)], **tolerance)
        else:
            torch.testing.assert_close(grad, sum(model_grads[name] for model_grads in grads), **tolerance)
    for name, value in split.named_buffers():
        torch.testing.assert_close(value, models[norm_index(name)].state_dict()[main_key(name)], **tolerance)


@pytest.mark.parametrize('sizes', [None, (5, 3), (1, 7)], ids=str)
def test_split_route_divides_flattened_tokens_between_the_images(sizes, randomize_norms):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x):  # as levit does: [N, C, H, W] -> [N * H * W, C]
            x = x.flatten(2).transpose(1, 2)
            return self.bn(x.flatten(0, 1)).reshape_as(x)

    plain = Tokens()
    split = split_with_own_norms(plain, randomize_norms).train()
    set_norm_route(split, 'split', sizes)
    images, _ = make_batch()
    parts = images.split(sizes or (4, 4))
    expected = torch.cat([model(part) for model, part in zip(plain_models_of(split, plain), parts)])
    torch.testing.assert_close(split(images), expected)


@pytest.mark.parametrize('sizes', [(6, 2), (5, 3), (1, 7), (4, 4)], ids=str)
def test_parts_stay_whole_where_norms_see_windows(sizes):
    # four windows an image
    model = LocalWindowAttention(16, 4, num_heads=4, attn_ratio=1, resolution=8, window_resolution=4)
    split = convert_split_norm(model.double()).train()
    images = torch.randn(8, 16, 8, 8, dtype=torch.float64)
    seen = []
    for other in (images, images + torch.arange(8).ge(sizes[0]).double().view(-1, 1, 1, 1)):
        each = deepcopy(split)
        output = forward_parts(each, other.split(sizes))[0]
        main, aux = split_state_dict(each.state_dict())
        seen.append((output, main, aux))
    alone = strip_aux(split).train()
    torch.testing.assert_close(alone(images[:sizes[0]]), seen[0][0])
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(seen[0][1][key], value)
        assert torch.equal(seen[0][1][key], seen[1][1][key])
    assert any(not torch.equal(seen[0][2][key], seen[1][2][key]) for key in seen[0][2])


def test_split_route_refuses_a_batch_that_has_no_equal_parts(resnet):
    split = convert_split_norm(resnet).train()
    set_norm_route(split, 'split')
    with pytest.raises(ValueError, match='divisible by 2.* 7'):
        split(make_batch(7)[0])


@pytest.mark.parametrize('norm, shape', [
    (nn.BatchNorm2d, (8, 3, 4, 4)),
    (nn.BatchNorm1d, (13, 3)),
    (nn.BatchNorm1d, (3, 3)),
    (nn.BatchNorm1d, (0, 3)),
], ids=lambda value: getattr(value, '__name__', str(value)))
def test_split_route_refuses_a_batch_of_another_size_than_stated(norm, shape):
    split = convert_split_norm(norm(3)).train()
    set_norm_route(split, 'split', sizes=[4, 2])
    with pytest.raises(ValueError, match=rf'\[4, 2\] images, the batch has {shape[0]}'):
        split(torch.randn(shape))


@pytest.mark.parametrize('copy', [
    deepcopy, lambda model: pickle.loads(pickle.dumps(model)),
], ids=['deepcopy', 'pickle'])
def test_copies_are_equal_and_independent(plain, copy, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms)
    set_norm_route(split, 'split')
    before = snapshot(split)
    images, target = make_batch()
    copied = copy(split)
    train_step(copied.train(), images, target)
    assert equal_states(split.state_dict(), before)
    train_step(split.train(), images, target)
    assert equal_states(split.state_dict(), copied.state_dict())
    set_norm_route(copied, 'aux')
    assert torch.equal(split.eval()(images), plain_models_of(split, plain)[0](images))


def test_ema_averages_the_auxiliary_norms_and_evaluates_the_main_ones(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).train()
    set_norm_route(split, 'split')
    ema = ModelEmaV3(split, decay=.75)
    before = snapshot(split)
    randomize_norms(split)
    train_step(split, *make_batch())
    ema.update(split)
    for key, value in ema.module.state_dict().items():
        new = split.state_dict()[key]
        expected = before[key].lerp(new, .25) if value.is_floating_point() else new
        torch.testing.assert_close(value, expected)
    images, _ = make_batch(3)
    assert torch.equal(ema.module.eval()(images), strip_aux(ema.module)(images))


@pytest.mark.parametrize('route', ['main', 'aux', 'split'])
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet'])
def test_channels_last_stays_channels_last(name, training, route, randomize_norms):
    split = split_with_own_norms(NETS[name](), randomize_norms)
    split.train(training).requires_grad_(training)
    set_norm_route(split, route)
    images, _ = make_batch()
    expected = split.forward_features(images)
    split.to(memory_format=torch.channels_last)
    formats = []
    for norm in split_norms(split):
        norm.register_forward_hook(
            lambda *args: formats.append(args[-1].is_contiguous(memory_format=torch.channels_last)))
    output = split.forward_features(images.to(memory_format=torch.channels_last))
    assert formats and all(formats)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('route', ['main', 'aux', 'split'])
def test_autocast_step_equals_steps_of_plain_models(plain, route, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms).train()
    models = plain_models_of(split, plain)
    used = {'main': models[:1], 'aux': models[1:], 'split': models}[route]
    set_norm_route(split, route)
    images, target = make_batch()
    with torch.autocast('cpu', torch.bfloat16):
        output = train_step(split, images, target)
        expected = torch.cat([
            train_step(model, *part) for model, *part in zip(used, images.chunk(len(used)), target.chunk(len(used)))])
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=.05, atol=.05)
    for name, value in split.named_buffers():
        torch.testing.assert_close(
            value, models[norm_index(name)].state_dict()[main_key(name)], rtol=.05, atol=.05)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all()
               for grad in named_grads(split).values() if grad is not None)


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet'])
def test_gradient_checkpointing_gives_the_same_gradients_on_the_split_route(name, randomize_norms):
    split = split_with_own_norms(NETS[name]().double(), randomize_norms).train()
    set_norm_route(split, 'split')
    images, target = make_batch(dtype=torch.float64)
    checkpointed = deepcopy(split)
    checkpointed.set_grad_checkpointing(True)
    convolutions = []
    for module in checkpointed.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, *args: convolutions.append(module))
    outputs = [train_step(model, images, target) for model in (split, checkpointed)]
    assert len(convolutions) > len(set(convolutions))  # the backward ran some of the forward again
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-12)
    for name, grad in named_grads(split).items():
        torch.testing.assert_close(named_grads(checkpointed)[name], grad, rtol=1e-9, atol=1e-12)
