import pickle
import re
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_splitbn_model, create_feature_extractor, freeze_batch_norm_2d
from timm.layers import SplitBatchNorm2d as TimmSplitBatchNorm2d
from timm.layers import convert_sync_batchnorm as timm_convert_sync_batchnorm
from timm.utils import ModelEmaV3, freeze
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d

from timm_advprop import (
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    SplitBatchNormAct2d,
    SplitSyncBatchNorm,
    SplitSyncBatchNormAct,
    convert_split_norm,
    convert_sync_batchnorm,
    has_split_norm,
    norm_route,
    set_norm_route,
    split_state_dict,
    strip_aux,
)
from timm_advprop.norms import batch_statistics, num_aux_in, num_aux_norms, split_norms, train_aux

NUM_CLASSES = 5
AUX_KEY = re.compile(r'(.*?)aux_bn\.(\d+)\.(.*)')
NORM_TENSORS = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


def create_small_net():
    """A network with every kind of batch norm that can be split in one process."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, bias=False),
        BatchNormAct2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, NUM_CLASSES),
    )


NETS = {
    'small_net': create_small_net,
    'test_resnet': lambda: timm.create_model('test_resnet', num_classes=NUM_CLASSES),
    'test_efficientnet': lambda: timm.create_model('test_efficientnet', num_classes=NUM_CLASSES),
}

PLAIN_LAYERS = [
    pytest.param(nn.BatchNorm1d, (8, 6), id='BatchNorm1d'),
    pytest.param(nn.BatchNorm1d, (8, 6, 5), id='BatchNorm1d-3d'),
    pytest.param(nn.BatchNorm2d, (8, 6, 5, 5), id='BatchNorm2d'),
    pytest.param(BatchNormAct2d, (8, 6, 5, 5), id='BatchNormAct2d'),
    pytest.param(nn.SyncBatchNorm, (8, 6, 5, 5), id='SyncBatchNorm'),
]


@pytest.fixture(params=NETS)
def plain(request, randomize_norms):
    """A plain model whose norms are not at their default initialisation."""
    return randomize_norms(NETS[request.param]())


@pytest.fixture
def resnet(randomize_norms):
    return randomize_norms(NETS['test_resnet']())


def make_batch(size=8, **kwargs):
    return torch.randn(size, 3, 32, 32, **kwargs), torch.randint(NUM_CLASSES, (size,))


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal_states(left, right):
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def main_key(key):
    """The main norm's key for the key of an auxiliary norm, any other key as it is."""
    match = AUX_KEY.fullmatch(key)
    return match[1] + match[3] if match else key


def norm_index(key):
    """Route that a state-dict key belongs to: i for the i-th auxiliary norm, 0 for all that a plain model has."""
    match = AUX_KEY.fullmatch(key)
    return int(match[2]) + 1 if match else 0


def aux_equals_main(model):
    state = model.state_dict()
    aux = [key for key in state if norm_index(key)]
    return bool(aux) and all(torch.equal(state[key], state[main_key(key)]) for key in aux)


def split_with_own_norms(plain, randomize_norms, num_aux=1):
    """A split copy of a plain model, each of its norms different from the others."""
    return randomize_norms(convert_split_norm(deepcopy(plain), num_aux))


def plain_models_of(split, plain):
    """Plain models that carry the main norms, the first auxiliary norms, … of a split model, and all else of it."""
    state = split.state_dict()
    models = []
    for index in range(1 + num_aux_norms(split)):
        carried = {main_key(key): value for key, value in state.items() if norm_index(key) == index}
        model = deepcopy(plain)
        model.load_state_dict({key: carried.get(key, state[key]) for key in plain.state_dict()})
        models.append(model.train(split.training))
    return models


def train_step(model, images, target):
    model.zero_grad()
    output = model(images)
    F.cross_entropy(output, target).backward()
    return output


def named_grads(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# Conversion


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


def test_conversion_refuses_a_model_that_is_split_in_part():
    model = nn.Sequential(convert_split_norm(nn.BatchNorm2d(3)), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match='already'):
        convert_split_norm(model)
    assert type(model[1]) is nn.BatchNorm2d
    assert num_aux_norms(model) == 1


def test_conversion_refuses_less_than_one_auxiliary_norm(resnet):
    with pytest.raises(ValueError, match='num_aux'):
        convert_split_norm(resnet, num_aux=0)
    assert not has_split_norm(resnet)


# Layers


@pytest.mark.parametrize('settings', [
    {}, dict(momentum=None), dict(track_running_stats=False), dict(affine=False), dict(eps=1e-2, momentum=.5),
], ids=lambda settings: ','.join(settings) or 'default')
@pytest.mark.parametrize('layer, shape', PLAIN_LAYERS)
def test_clean_route_of_a_layer_is_the_plain_layer(layer, shape, settings, randomize_norms):
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
    for route in ('clean', 1, 2):
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


# Default route


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


# Routes


@pytest.mark.parametrize('route, index', [('clean', 0), ('aux', 1), (0, 0), (1, 1), (2, 2)])
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_route_holds_in_both_modes(plain, route, index, training, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2).train(training)
    model = plain_models_of(split, plain)[index]
    set_norm_route(split, route)
    images, _ = make_batch()
    assert torch.equal(split(images), model(images))


@pytest.mark.parametrize('route, updated', [
    ('clean', {0}), ('aux', {1}), (0, {0}), (1, {1}), (2, {2}), ('split', {0, 1, 2}),
])
def test_route_in_train_mode_changes_its_own_statistics_alone(plain, route, updated, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2).train()
    before = snapshot(split)
    set_norm_route(split, route)
    split(make_batch(12)[0])
    statistics = [key for key, _ in split.named_buffers()]
    changed = {key for key, value in split.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in statistics if norm_index(key) in updated}


@pytest.mark.parametrize('route', ['clean', 'aux', 2, 'split'])
def test_route_in_eval_mode_changes_nothing(plain, route, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2).eval()
    before = snapshot(split)
    set_norm_route(split, route)
    split(make_batch()[0])
    assert equal_states(split.state_dict(), before)


@pytest.mark.parametrize('route, index', [('clean', 0), ('aux', 1), (2, 2)])
def test_route_gives_gradients_to_its_own_norms_alone(plain, route, index, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2).train()
    set_norm_route(split, route)
    train_step(split, *make_batch())
    state = split.state_dict()
    norm_keys = {main_key(key) for key in state if norm_index(key)}
    for name, grad in named_grads(split).items():
        belongs = main_key(name) not in norm_keys or norm_index(name) == index
        assert (grad is not None) == belongs, name


@pytest.mark.parametrize('sizes', [None, [5, 3]], ids=['equal', 'stated'])
def test_split_route_in_eval_mode_is_the_main_norm_for_any_batch(plain, sizes, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms).eval()
    images, _ = make_batch(3)
    expected = plain_models_of(split, plain)[0](images)
    set_norm_route(split, 'split', sizes)
    assert torch.equal(split(images), expected)


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


def test_split_route_divides_flattened_tokens_between_the_images(randomize_norms):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x):  # as levit does: [N, C, H, W] -> [N * H * W, C]
            x = x.flatten(2).transpose(1, 2)
            return self.bn(x.flatten(0, 1)).reshape_as(x)

    plain = Tokens()
    split = split_with_own_norms(plain, randomize_norms).train()
    set_norm_route(split, 'split')
    images, _ = make_batch()
    expected = torch.cat([model(part) for model, part in zip(plain_models_of(split, plain), images.chunk(2))])
    torch.testing.assert_close(split(images), expected)


def test_split_route_refuses_a_batch_that_has_no_equal_parts(resnet):
    split = convert_split_norm(resnet).train()
    set_norm_route(split, 'split')
    with pytest.raises(ValueError, match='divisible by 2.* 7'):
        split(make_batch(7)[0])


def test_split_route_refuses_a_batch_of_another_size_than_stated(resnet):
    split = convert_split_norm(resnet).train()
    set_norm_route(split, 'split', sizes=[4, 2])
    with pytest.raises(ValueError, match=r'\[4, 2\].* 8'):
        split(make_batch(8)[0])


@pytest.mark.parametrize('route', ['adv', '1', '', -1, True, 1.0, None, ['aux']], ids=repr)
def test_unknown_route_is_refused(resnet, route):
    split = convert_split_norm(resnet)
    with pytest.raises(ValueError, match='Unknown route'):
        set_norm_route(split, route)


@pytest.mark.parametrize('route, num_aux', [(2, 1), (4, 3)])
def test_route_of_a_norm_the_model_lacks_is_refused(resnet, route, num_aux):
    split = convert_split_norm(resnet, num_aux)
    with pytest.raises(ValueError, match=f'Route {route} .* has {num_aux}'):
        set_norm_route(split, route)


@pytest.mark.parametrize('route, sizes', [
    ('split', [4]), ('split', [4, 4, 4]), ('split', [8, 0]), ('split', [9, -1]), ('split', []),
    ('clean', [4, 4]), ('aux', [4, 4]),
])
def test_sizes_that_do_not_fit_are_refused_and_change_nothing(resnet, route, sizes, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).eval()
    set_norm_route(split, 'aux')
    images, _ = make_batch()
    expected = split(images)
    with pytest.raises(ValueError, match='sizes'):
        set_norm_route(split, route, sizes)
    assert torch.equal(split(images), expected)


def test_sizes_have_to_fit_every_norm():
    model = nn.Sequential(
        convert_split_norm(nn.BatchNorm2d(3), num_aux=2), convert_split_norm(nn.BatchNorm2d(3), num_aux=1))
    with pytest.raises(ValueError, match='sizes'):
        set_norm_route(model, 'split', sizes=[2, 2, 2])


def test_stated_sizes_end_with_the_next_route(plain, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms).train()
    images, _ = make_batch(4)
    set_norm_route(split, 'split', sizes=[6, 2])
    set_norm_route(split, 'split')
    expected = torch.cat([model(part) for model, part in zip(plain_models_of(split, plain), images.chunk(2))])
    torch.testing.assert_close(split(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('set_route', [set_norm_route, lambda *args: norm_route(*args).__enter__()])
def test_route_of_a_plain_model_is_refused(resnet, set_route):
    with pytest.raises(ValueError, match='no split norms'):
        set_route(resnet, 'clean')


def test_route_context_sets_and_restores(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).eval()
    images, _ = make_batch()
    clean, aux = (model(images) for model in plain_models_of(split, resnet))
    with norm_route(split, 'aux'):
        assert torch.equal(split(images), aux)
        with norm_route(split, 'clean'):
            assert torch.equal(split(images), clean)
        assert torch.equal(split(images), aux)
    assert torch.equal(split(images), clean)


def test_route_context_restores_after_an_exception(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).eval()
    images, _ = make_batch()
    expected = split(images)
    with pytest.raises(KeyboardInterrupt):
        with norm_route(split, 'aux'):
            raise KeyboardInterrupt
    assert torch.equal(split(images), expected)


def test_route_context_that_is_refused_changes_nothing(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).eval()
    set_norm_route(split, 'aux')
    images, _ = make_batch()
    expected = split(images)
    with pytest.raises(ValueError):
        with norm_route(split, 2):
            pytest.fail('the route was accepted')
    assert torch.equal(split(images), expected)


def test_route_context_restores_each_norms_own_route(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).eval()
    set_norm_route(split.layer2, 'aux')
    images, _ = make_batch()
    mixed = split(images)
    with norm_route(split, 'clean'):
        assert not torch.equal(split(images), mixed)
    assert torch.equal(split(images), mixed)


def test_route_context_restores_stated_sizes(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).train()
    set_norm_route(split, 'split', sizes=[6, 2])
    with norm_route(split, 'split', sizes=[2, 2]):
        split(make_batch(4)[0])
    split(make_batch(8)[0])
    with pytest.raises(ValueError, match=r'\[6, 2\]'):
        split(make_batch(4)[0])


# State dicts


@pytest.mark.parametrize('kwargs', [
    dict(strict=True), dict(strict=False), dict(assign=True), dict(strict=False, assign=True),
], ids=str)
def test_plain_checkpoint_fills_the_auxiliary_norms(plain, kwargs, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2)
    checkpoint = plain.state_dict()
    keys, values = list(checkpoint), snapshot(plain)
    result = split.load_state_dict(checkpoint, **kwargs)
    assert not result.missing_keys and not result.unexpected_keys
    assert aux_equals_main(split)
    assert equal_states(split_state_dict(split.state_dict())[0], values)
    assert list(checkpoint) == keys
    with torch.no_grad():
        for key, value in split.state_dict(keep_vars=True).items():
            if norm_index(key):
                value.add_(1)
    assert equal_states(split_state_dict(split.state_dict())[0], values)
    assert equal_states(checkpoint, values)


def test_plain_checkpoint_fills_the_auxiliary_norms_of_a_model_on_the_meta_device(plain):
    checkpoint = plain.state_dict()
    split = convert_split_norm(deepcopy(plain).to('meta'))
    split.load_state_dict(checkpoint, assign=True)
    assert aux_equals_main(split)
    assert equal_states(split_state_dict(split.state_dict())[0], checkpoint)


def test_plain_checkpoint_fills_the_auxiliary_norms_of_a_submodule(plain, randomize_norms):
    wrapped = nn.ModuleDict(dict(model=split_with_own_norms(plain, randomize_norms), head=nn.Linear(2, 2)))
    wrapped.load_state_dict(nn.ModuleDict(dict(model=plain, head=nn.Linear(2, 2))).state_dict())
    assert aux_equals_main(wrapped)


def test_plain_checkpoint_without_batch_counters_loads(plain, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms)
    checkpoint = {key: value for key, value in plain.state_dict().items() if not key.endswith('num_batches_tracked')}
    split.load_state_dict(checkpoint)
    assert aux_equals_main(split)


def test_checkpoint_with_auxiliary_norms_loads_exactly(plain, randomize_norms):
    source = split_with_own_norms(plain, randomize_norms, num_aux=2).train()
    set_norm_route(source, 2)
    source(make_batch()[0])
    split = convert_split_norm(plain, num_aux=2)
    split.load_state_dict(source.state_dict())
    assert not aux_equals_main(split)
    assert equal_states(split.state_dict(), source.state_dict())


def test_checkpoint_with_fewer_auxiliary_norms_fills_the_others(plain, randomize_norms):
    source = split_with_own_norms(plain, randomize_norms).state_dict()
    split = split_with_own_norms(plain, randomize_norms, num_aux=2)
    split.load_state_dict(source)
    for key, value in split.state_dict().items():
        assert torch.equal(value, source[main_key(key) if norm_index(key) == 2 else key]), key


def test_checkpoint_with_more_auxiliary_norms_is_refused(plain, randomize_norms):
    source = split_with_own_norms(plain, randomize_norms, num_aux=2)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*aux_bn\.1'):
        convert_split_norm(plain).load_state_dict(source.state_dict())


@pytest.mark.parametrize('tensor', ['weight', 'bias', 'running_mean', 'running_var'])
def test_checkpoint_that_lacks_a_part_of_an_auxiliary_norm_is_refused(resnet, tensor):
    split = convert_split_norm(resnet)
    checkpoint = split.state_dict()
    del checkpoint[f'layer2.0.bn1.aux_bn.0.{tensor}']
    with pytest.raises(RuntimeError, match=rf'Missing key.*layer2\.0\.bn1\.aux_bn\.0\.{tensor}'):
        split.load_state_dict(checkpoint)
    assert split.load_state_dict(checkpoint, strict=False).missing_keys == [f'layer2.0.bn1.aux_bn.0.{tensor}']


@pytest.mark.parametrize('route', ['clean', 'aux', 'split'])
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


def test_split_state_dict_divides_all_entries(plain, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2)
    state = split.state_dict()
    clean, aux = split_state_dict(state)
    plain.load_state_dict(clean, strict=True)
    assert set(aux) == {key for key in state if norm_index(key)}
    assert not set(clean) & set(aux)
    assert equal_states({key: {**clean, **aux}[key] for key in state}, state)


def test_split_state_dict_knows_the_keys_of_a_single_norm():
    clean, aux = split_state_dict(SplitBatchNorm2d(3).state_dict())
    assert list(clean) == list(NORM_TENSORS)
    assert list(aux) == [f'aux_bn.0.{name}' for name in NORM_TENSORS]


@pytest.mark.parametrize('num_aux', [1, 3])
def test_number_of_auxiliary_norms_is_read_from_a_state_dict(plain, num_aux):
    assert num_aux_in(plain.state_dict()) == 0
    assert num_aux_in(convert_split_norm(plain, num_aux).state_dict()) == num_aux
    assert num_aux_in(SplitBatchNorm2d(3, num_aux=num_aux).state_dict()) == num_aux


# Other converters


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


def test_convert_sync_batchnorm_keeps_every_route(plain, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms)
    synchronised = convert_sync_batchnorm(deepcopy(split))
    expected_types = {SplitSyncBatchNorm, SplitSyncBatchNormAct}
    assert {type(norm) for norm in split_norms(synchronised)} <= expected_types
    assert {type(aux) for norm in split_norms(synchronised) for aux in norm.aux_bn} == {nn.SyncBatchNorm}
    assert equal_states(synchronised.state_dict(), split.state_dict())
    for training in (True, False):
        for route in ('clean', 'aux', 'split'):
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


# Copies, precisions, compilers


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


@pytest.mark.parametrize('route', ['clean', 'aux', 'split'])
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


@pytest.mark.parametrize('route', ['clean', 'aux', 'split'])
def test_autocast_step_equals_steps_of_plain_models(plain, route, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms).train()
    models = plain_models_of(split, plain)
    used = {'clean': models[:1], 'aux': models[1:], 'split': models}[route]
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


EXPORTERS = {
    'script': lambda model, images: torch.jit.script(model),
    'trace': lambda model, images: torch.jit.trace(model, images),
    'fx': lambda model, images: torch.fx.symbolic_trace(model),
    'export': lambda model, images: torch.export.export(model, (images,)).module(),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('exporter', EXPORTERS)
@pytest.mark.parametrize('name, route', [('test_resnet', 'clean'), ('test_efficientnet', 'split')])
def test_exported_eval_model_is_the_main_route(name, exporter, route, randomize_norms):
    split = split_with_own_norms(NETS[name](), randomize_norms).eval()
    images, _ = make_batch()
    expected = strip_aux(split)(images)
    set_norm_route(split, route)
    exported = EXPORTERS[exporter](split, images)
    torch.testing.assert_close(exported(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings('ignore')
def test_scripted_model_trains_as_the_plain_one(plain):
    scripted = torch.jit.script(convert_split_norm(deepcopy(plain)).train())
    images, target = make_batch()
    expected = train_step(plain.train(), images, target)
    torch.testing.assert_close(train_step(scripted, images, target), expected)
    main, _ = split_state_dict(scripted.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(main[key], value)


def test_feature_extractor_follows_routes(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).eval()
    images, _ = make_batch()
    expected = [create_feature_extractor(model, ['layer3'])(images) for model in plain_models_of(split, resnet)]
    extractor = create_feature_extractor(split, ['layer3'])
    for route, features in zip(('clean', 'aux'), expected):
        set_norm_route(extractor, route)
        assert torch.equal(extractor(images)['layer3'], features['layer3'])


@pytest.mark.parametrize('name, backend', [
    ('small_net', 'eager'),
    pytest.param('test_resnet', 'aot_eager', marks=pytest.mark.slow),
    pytest.param('test_efficientnet', 'eager', marks=pytest.mark.slow),
])
def test_compiled_model_keeps_a_small_number_of_graphs(name, backend, randomize_norms):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    split = split_with_own_norms(NETS[name](), randomize_norms)
    compiled = torch.compile(split, backend=counter)
    counts = []
    for _ in range(4):
        images, target = make_batch()
        split.eval()
        set_norm_route(split, 'clean')
        with torch.no_grad():
            for batch in (images, images[:5]):
                torch.testing.assert_close(compiled(batch), split(batch), rtol=1e-4, atol=1e-5)

        images.requires_grad_()
        split.requires_grad_(False)
        with norm_route(compiled, 'aux'):
            grads = [torch.autograd.grad(model(images).square().sum(), images)[0] for model in (compiled, split)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
        split.requires_grad_(True)

        set_norm_route(split.train(), 'split')
        both = torch.cat([images.detach(), images.detach() + 1])
        expected = deepcopy(split)(both)
        output = compiled(both)
        F.cross_entropy(output, target.repeat(2)).backward()
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        counts.append(counter.frame_count)
    assert counts == [counts[0]] * 4
    assert counts[0] <= 4  # one for each route, one more for the smaller last batch of a validation


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


# Help for regimes


@pytest.mark.parametrize('frozen', [False, True], ids=['trained', 'frozen'])
@pytest.mark.parametrize('route', [None, 'clean', 'aux'], ids=['plain', 'clean', 'aux'])
def test_batch_statistics_normalises_by_the_batch_and_keeps_the_running_ones(plain, route, frozen, randomize_norms):
    if route is None:
        model, reference = plain.eval(), deepcopy(plain).train()
    else:
        model = split_with_own_norms(plain, randomize_norms).eval()
        reference = plain_models_of(model, plain)[route == 'aux'].train()
        set_norm_route(model, route)
    model.requires_grad_(not frozen)
    before = snapshot(model)
    images, _ = make_batch()
    images.requires_grad_()
    running = model(images)
    with batch_statistics(model):
        torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-5)
    assert equal_states(model.state_dict(), before)
    assert torch.equal(model(images), running)


def test_batch_statistics_restores_each_norms_settings_after_an_exception(resnet):
    split = convert_split_norm(resnet).train()
    split.layer1.eval()
    split.bn1.track_running_stats = False
    norms = [module for module in split.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    assert len(set(before)) == 3
    with pytest.raises(KeyboardInterrupt):
        with batch_statistics(split):
            raise KeyboardInterrupt
    assert [(norm.training, norm.track_running_stats) for norm in norms] == before


def test_train_aux_takes_auxiliary_norms_alone_out_of_training_and_back(plain):
    split = convert_split_norm(plain, num_aux=2)
    train_aux(split, False)
    assert all(value.requires_grad == (norm_index(name) == 0) for name, value in split.named_parameters())
    split.train()
    train_step(split, *make_batch())
    assert {norm_index(name) for name, grad in named_grads(split).items() if grad is not None} == {0}
    frozen = next(split_norms(split))
    frozen.bias.requires_grad_(False)
    train_aux(split)
    assert not any(norm.bias.requires_grad for norm in (frozen, *frozen.aux_bn))
    assert sum(not value.requires_grad for value in split.parameters()) == 3


def test_train_aux_leaves_a_plain_model_alone(resnet):
    train_aux(resnet, False)
    assert all(value.requires_grad for value in resnet.parameters())


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
