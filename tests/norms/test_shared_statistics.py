"""Batch norms that share statistics between routes, against means and variances written out."""
import pickle
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_splitbn_model, freeze_batch_norm_2d
from timm.layers import convert_sync_batchnorm as timm_convert_sync_batchnorm
from torch._dynamo.testing import CompileCounterWithBackend

import timm_advprop
from tests.norms.norm_models import NETS, equal_states, make_batch, named_grads, norm_index, snapshot
from timm_advprop.norms import (
    SplitBatchNormAct2d,
    batch_statistics,
    configure_batch_norm,
    convert_split_norm,
    convert_sync_batchnorm,
    forward_parts,
    freeze_norms,
    norm_parameters,
    set_norm_route,
    share_in,
    share_of,
    split_norms,
    split_state_dict,
    strip_aux,
)

SHARED = ('statistics', 'statistics-of-main')
EPS, MOMENTUM = 1e-3, 0.3
TOLERANCE = dict(rtol=1e-9, atol=1e-12)
LAYERS = [
    pytest.param(nn.BatchNorm1d, (9, 6), id='1d'),
    pytest.param(nn.BatchNorm1d, (9, 6, 5), id='1d-3d'),
    pytest.param(nn.BatchNorm2d, (9, 6, 5, 4), id='2d'),
    pytest.param(nn.SyncBatchNorm, (9, 6, 5, 4), id='sync'),
]


@pytest.fixture(params=SHARED)
def share(request):
    return request.param


def shared_norm(layer, share, randomize_norms, num_aux=1, **settings):
    return randomize_norms(convert_split_norm(layer(6, eps=EPS, dtype=torch.float64, **settings), num_aux, share))


def statistics(x):
    """Mean and biased variance of each channel, and the number of values that they are of."""
    values = x.transpose(0, 1).flatten(1)
    mean = values.sum(dim=1) / values.shape[1]
    return mean, ((values - mean[:, None]) ** 2).sum(dim=1) / values.shape[1], values.shape[1]


def normalised(x, mean, var, norm):
    def of_channels(value):
        return value.view(-1, *[1] * (x.dim() - 2))
    return (x - of_channels(mean)) / of_channels((var + EPS).sqrt()) * of_channels(norm.weight) + of_channels(norm.bias)


def expected_running(before, x):
    mean, var, count = statistics(x)
    return [(1 - MOMENTUM) * old + MOMENTUM * new for old, new in zip(before, (mean, var * count / (count - 1)))]


def running(norm):
    return [norm.running_mean.clone(), norm.running_var.clone()]


def assert_same_gradients(output, expected, leaves):
    direction = torch.randn_like(output)
    grads = [torch.autograd.grad((value * direction).sum(), leaves, allow_unused=True) for value in (output, expected)]
    for grad, reference in zip(*grads):
        assert (grad is None) == (reference is None)
        if grad is not None:
            torch.testing.assert_close(grad, reference, **TOLERANCE)


@pytest.mark.parametrize('sizes', [(3, 3, 3), (5, 3, 1)], ids=str)
@pytest.mark.parametrize('layer, shape', LAYERS)
def test_split_step_normalises_all_images_together_and_each_part_by_its_own_parameters(
        layer, shape, sizes, share, randomize_norms):
    norm = shared_norm(layer, share, randomize_norms, num_aux=2, momentum=MOMENTUM).train()
    set_norm_route(norm, 'split', sizes)
    before, images = running(norm), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    output = norm(images)
    mean, var, _ = statistics(images)
    expected = torch.cat([
        normalised(part, mean, var, part_norm)
        for part, part_norm in zip(images.split(sizes), (norm, *norm.aux_bn))])
    torch.testing.assert_close(output, expected, **TOLERANCE)
    assert_same_gradients(output, expected, [images, *norm.parameters()])
    seen = images if share == 'statistics' else images[:sizes[0]]
    torch.testing.assert_close(running(norm), expected_running(before, seen.detach()), **TOLERANCE)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize('route', [1, 2])
@pytest.mark.parametrize('layer, shape', LAYERS)
def test_an_auxiliary_route_has_its_own_parameters_and_the_main_norms_statistics(
        layer, shape, route, share, randomize_norms):
    norm = shared_norm(layer, share, randomize_norms, num_aux=2, momentum=MOMENTUM)
    set_norm_route(norm, route)
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    before = running(norm)
    for training in (False, True):
        output = norm.train(training)(images)
        mean, var = statistics(images)[:2] if training else before
        expected = normalised(images, mean, var, norm.aux_bn[route - 1])
        torch.testing.assert_close(output, expected, **TOLERANCE)
        assert_same_gradients(output, expected, [images, *norm.parameters()])
    updated = expected_running(before, images.detach()) if share == 'statistics' else before
    torch.testing.assert_close(running(norm), updated, **TOLERANCE)
    assert norm.num_batches_tracked == (share == 'statistics')


@pytest.mark.parametrize('layer, shape', LAYERS)
def test_the_attacks_shortcut_is_the_same_function(layer, shape, share, randomize_norms):
    norm = shared_norm(layer, share, randomize_norms).eval().requires_grad_(False)
    set_norm_route(norm, 'aux')
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    output, expected = norm(images), normalised(images, norm.running_mean, norm.running_var, norm.aux_bn[0])
    assert type(output.grad_fn).__name__ == 'AddcmulBackward0'
    torch.testing.assert_close(output, expected, **TOLERANCE)
    assert_same_gradients(output, expected, [images])


@pytest.mark.parametrize('route', ['main', 'aux', 'split'])
@pytest.mark.parametrize('layer, shape', LAYERS)
def test_batch_statistics_write_nothing(layer, shape, route, share, randomize_norms):
    norm = shared_norm(layer, share, randomize_norms, num_aux=2).eval().requires_grad_(False)
    set_norm_route(norm, route)
    images, before = torch.randn(shape, dtype=torch.float64, requires_grad=True), snapshot(norm)
    mean, var, _ = statistics(images)
    with batch_statistics(norm):
        output = norm.train()(images) if route == 'split' else norm(images)
    norms = dict(main=[norm], aux=[norm.aux_bn[0]], split=[norm, *norm.aux_bn])[route]
    parts = images.chunk(len(norms))
    expected = torch.cat([normalised(part, mean, var, part_norm) for part, part_norm in zip(parts, norms)])
    torch.testing.assert_close(output, expected, **TOLERANCE)
    assert equal_states(norm.state_dict(), before)


@pytest.mark.parametrize('main, aux', [(True, False), (False, True), (True, True)])
def test_frozen_norms_keep_what_is_theirs(main, aux, share, randomize_norms):
    # the statistics are the main norm's
    norm = shared_norm(nn.BatchNorm2d, share, randomize_norms, momentum=MOMENTUM)
    freeze_norms(norm, main, aux)
    set_norm_route(norm.train(), 'split')
    norm.split_in = None
    images, before = torch.randn(4, 6, 3, 3, dtype=torch.float64), running(norm)
    output = norm(images)
    mean, var = before if main else statistics(images)[:2]
    expected = torch.cat([
        normalised(part, mean, var, each) for part, each in zip(images.chunk(2), (norm, norm.aux_bn[0]))])
    torch.testing.assert_close(output, expected, **TOLERANCE)
    seen = images if share == 'statistics' else images[:2]
    torch.testing.assert_close(running(norm), before if main else expected_running(before, seen), **TOLERANCE)
    assert [value.requires_grad for part in norm_parameters(norm) for value in part] == [not main] * 2 + [not aux] * 2


def test_frozen_weights_and_biases_go_with_the_statistics_of_a_training_main_norm(share, randomize_norms):
    norm = shared_norm(nn.BatchNorm2d, share, randomize_norms)
    freeze_norms(norm, main=False, aux=True)
    set_norm_route(norm.train(), 'aux')
    images = torch.randn(4, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(norm(images), normalised(images, *statistics(images)[:2], norm.aux_bn[0]), **TOLERANCE)


@pytest.mark.parametrize('settings', [
    dict(affine=False), dict(momentum=None), dict(track_running_stats=False)], ids=str)
@pytest.mark.parametrize('layer, shape', LAYERS)
def test_norms_of_other_settings_share_too(layer, shape, settings, share, randomize_norms):
    norm = shared_norm(layer, share, randomize_norms, num_aux=2, **settings).train()
    set_norm_route(norm, 'split')
    images = torch.randn(shape, dtype=torch.float64)
    mean, var, _ = statistics(images)
    unit = nn.BatchNorm1d(6, dtype=torch.float64)
    norms = (norm, *norm.aux_bn) if norm.affine else [unit] * 3
    expected = torch.cat([normalised(part, mean, var, each) for part, each in zip(images.chunk(3), norms)])
    torch.testing.assert_close(norm(images), expected, **TOLERANCE)
    if norm.running_mean is not None and norm.momentum is None:  # the first batch of a cumulative average
        torch.testing.assert_close(
            norm.running_mean, statistics(images if share == 'statistics' else images[:3])[0], **TOLERANCE)


@pytest.mark.parametrize('name', NETS)
def test_main_route_trains_as_the_plain_model_bit_for_bit(name, share, randomize_norms):
    plain = randomize_norms(NETS[name]()).train()
    shared = convert_split_norm(deepcopy(plain), 2, share)
    images, target = make_batch()
    for model in (plain, shared):
        F.cross_entropy(model(images), target).backward()
    grads = named_grads(shared)
    assert all(torch.equal(grads[key], grad) for key, grad in named_grads(plain).items())
    assert equal_states(split_state_dict(shared.state_dict())[0], plain.state_dict())
    set_norm_route(shared, 'split')
    stripped = strip_aux(shared)
    assert [type(module) for module in stripped.modules()] == [type(module) for module in plain.modules()]
    assert not {'share', 'aux_bn', 'route'} & set().union(*(vars(module) for module in stripped.modules()))
    for training in (True, False):
        assert torch.equal(stripped.train(training)(images), plain.train(training)(images))


@pytest.mark.parametrize('checkpointing', [False, True])
def test_forward_parts_gives_every_part_its_own_parameters_and_backward_finds_them(
        checkpointing, share, randomize_norms):
    model = randomize_norms(convert_split_norm(NETS['test_resnet']().double(), 1, share)).train()
    reference = deepcopy(model)
    model.set_grad_checkpointing(checkpointing)
    images, target = make_batch(10, dtype=torch.float64)
    outputs = forward_parts(model, images.split([7, 3]))
    set_norm_route(reference, 'split', [7, 3])
    expected = reference(images)
    torch.testing.assert_close(torch.cat(outputs), expected, **TOLERANCE)
    for value in (torch.cat(outputs), expected):
        F.cross_entropy(value, target).backward()
    for key, grad in named_grads(reference).items():
        torch.testing.assert_close(named_grads(model)[key], grad, rtol=1e-7, atol=1e-10)
    assert all(grad.count_nonzero() for key, grad in named_grads(model).items() if norm_index(key))


def test_keys_are_the_plain_models_and_a_weight_and_a_bias_for_each_route(share):
    plain = NETS['test_efficientnet']()
    before = snapshot(plain)
    model = convert_split_norm(plain, 2, share)
    main, aux = split_state_dict(model.state_dict())
    assert equal_states(main, before)
    assert {key.rpartition('.')[2] for key in aux} == {'weight', 'bias'}
    assert {norm_index(key) for key in aux} == {1, 2}
    assert share_of(model) == share and share_in(model.state_dict()) == 'statistics'
    assert share_in(before) == share_in(convert_split_norm(NETS['test_efficientnet']()).state_dict()) == 'none'
    assert share_in(convert_split_norm(nn.LayerNorm(3), share=share).state_dict()) == 'none'
    assert f'share={share}' in repr(model) and 'share' not in repr(convert_split_norm(nn.BatchNorm2d(3)))


def test_layers_can_be_made_directly(share):
    norm = SplitBatchNormAct2d(6, num_aux=2, share=share, act_layer=nn.SiLU)
    plain = BatchNormAct2d(6, act_layer=nn.SiLU)
    images = torch.randn(6, 6, 3, 3)
    set_norm_route(norm, 'split')
    torch.testing.assert_close(norm(images), plain(images))
    with pytest.raises(ValueError, match='share must be one of none, statistics, statistics-of-main, got .mean.'):
        SplitBatchNormAct2d(6, share='mean')


@pytest.mark.parametrize('copy', [deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_share_as_the_model_does(copy, share, randomize_norms):
    model = randomize_norms(convert_split_norm(NETS['small_net'](), 1, share)).train()
    copied = copy(model)
    images, _ = make_batch()
    for each in (model, copied):
        forward_parts(each, images.chunk(2))
    assert share_of(copied) == share
    assert equal_states(copied.state_dict(), model.state_dict())


# Loading


def test_a_shared_checkpoint_loads_into_a_full_split_of_the_same_function(share, randomize_norms):
    source = randomize_norms(convert_split_norm(NETS['test_resnet'](), 2, share)).eval()
    model = randomize_norms(convert_split_norm(NETS['test_resnet'](), 2)).eval()
    state = source.state_dict()
    result = model.load_state_dict(state)
    assert not result.missing_keys and not result.unexpected_keys
    images, _ = make_batch()
    for route in range(3):
        for each in (source, model):
            set_norm_route(each, route)
        torch.testing.assert_close(model(images), source(images))
    set_norm_route(model.train(), 1)
    model(images)
    assert equal_states(source.state_dict(), state)  # nothing is shared by the two models
    assert not torch.equal(model.state_dict()['bn1.running_mean'], model.state_dict()['bn1.aux_bn.0.running_mean'])


@pytest.mark.parametrize('strict', [True, False])
def test_a_full_split_checkpoint_is_refused_by_a_shared_model(strict, share):
    model = convert_split_norm(NETS['test_resnet'](), 1, share)
    with pytest.raises(RuntimeError, match="bn1.aux_bn: .* statistics of their own, .* with share='none'"):
        model.load_state_dict(convert_split_norm(NETS['test_resnet']()).state_dict(), strict=strict)


@pytest.mark.parametrize('strict', [True, False])
def test_plain_and_shared_checkpoints_load_into_shared_models(strict, share, randomize_norms):
    plain = randomize_norms(NETS['test_resnet']())
    source = randomize_norms(convert_split_norm(deepcopy(plain), 1, share))
    model = randomize_norms(convert_split_norm(NETS['test_resnet'](), 2, share))
    model.load_state_dict(source.state_dict(), strict=strict)
    main, aux = split_state_dict(model.state_dict())
    expected_main, expected_aux = split_state_dict(source.state_dict())
    assert equal_states(main, expected_main)
    assert all(torch.equal(aux[key], value) for key, value in expected_aux.items())
    assert torch.equal(aux['bn1.aux_bn.1.weight'], main['bn1.weight'])
    model.load_state_dict(plain.state_dict(), strict=strict)
    assert torch.equal(model.bn1.aux_bn[0].bias, plain.bn1.bias)


# Conversion


def test_a_model_split_in_part_is_completed_by_norms_that_share_as_it_does(share):
    model = nn.Sequential(convert_split_norm(nn.BatchNorm2d(3), 2, share), nn.BatchNorm2d(3))
    for other in {*SHARED, 'none'} - {share}:
        with pytest.raises(ValueError, match=f"norms of share='{share}', the others cannot be of share='{other}'"):
            convert_split_norm(model, share=other)
    assert type(model[1]) is nn.BatchNorm2d
    convert_split_norm(model)
    assert [norm.share for norm in split_norms(model)] == [share] * 2
    assert model[1].aux_bn[1].running_mean is None


def test_an_unknown_share_is_refused_and_nothing_changes():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match='share must be one of'):
        convert_split_norm(model, share='all')
    assert type(model[0]) is nn.BatchNorm2d


def test_layer_norms_have_no_statistics_to_share(share):
    norm = convert_split_norm(nn.LayerNorm(4), share=share)
    images = torch.randn(4, 4)
    set_norm_route(norm, 'split')
    assert torch.equal(norm(images), F.layer_norm(images, (4,)))
    assert share_of(norm) == 'none'


@pytest.mark.parametrize('convert', [
    nn.SyncBatchNorm.convert_sync_batchnorm, timm_convert_sync_batchnorm, freeze_batch_norm_2d, convert_splitbn_model,
], ids=['torch-sync', 'timm-sync', 'timm-freeze', 'timm-splitbn'])
@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet'])
def test_converters_that_would_drop_the_auxiliary_norms_are_refused(name, convert, share):
    model = convert_split_norm(NETS[name](), 1, share)
    before = snapshot(model)
    with pytest.raises((TypeError, AttributeError), match='split norms|NoneType'):  # some want running statistics
        convert(model)
    assert equal_states(model.state_dict(), before)
    assert share_of(model) == share


def test_a_freeze_that_asks_for_batchnorm2d_is_refused(share):
    model = convert_split_norm(NETS['test_resnet'](), 1, share).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with pytest.raises(ValueError, match='ask for _BatchNorm'):
        forward_parts(model, make_batch()[0].chunk(2))


def test_synchronised_norms_share_as_before(share, randomize_norms):
    model = randomize_norms(convert_split_norm(NETS['test_efficientnet'](), 1, share))
    synchronised = convert_sync_batchnorm(deepcopy(model))
    assert share_of(synchronised) == share and type(next(split_norms(synchronised))).__name__.startswith('SplitSync')
    images, _ = make_batch()
    for route in ('split', 'aux', 'main'):
        outputs = []
        for each in (model.train(), synchronised.train()):
            set_norm_route(each, route)
            outputs.append(each(images))
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for key, value in synchronised.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=1e-4, atol=1e-5)


def test_momentum_of_auxiliary_statistics_alone(share):
    model = convert_split_norm(NETS['test_resnet']())
    configure_batch_norm(model, momentum=0.2, aux_momentum=0.01)
    assert {(norm.momentum, norm.aux_bn[0].momentum) for norm in split_norms(model)} == {(0.2, 0.01)}
    configure_batch_norm(model, eps=1e-2)
    assert {(norm.momentum, norm.aux_bn[0].momentum) for norm in split_norms(model)} == {(0.2, 0.01)}
    for model in (convert_split_norm(NETS['test_resnet'](), 1, share), convert_split_norm(nn.LayerNorm(3)),
                  NETS['test_resnet']()):
        with pytest.raises(ValueError, match='no auxiliary statistics'):
            configure_batch_norm(model, aux_momentum=0.01)


# Precision, memory formats, compilers


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_statistics_of_images_in_half_precision_are_not_rounded(dtype, affine, share):
    norm = convert_split_norm(nn.BatchNorm2d(8, affine=affine), share=share).train()
    set_norm_route(norm, 'split')
    images = (torch.randn(8, 8, 16, 16) + torch.linspace(1, 33, 8).view(8, 1, 1)).to(dtype)
    output = norm(images)
    mean, var, _ = statistics(images.double())
    expected = (images.double() - mean.view(8, 1, 1)) / (var.view(8, 1, 1) + norm.eps).sqrt()
    assert output.dtype == dtype
    # rounding of the single values is gone in the mean of a channel, a rounded mean of the images is not
    assert (output.double() - expected).mean(dim=(0, 2, 3)).abs().max() < 1e-3


@pytest.mark.parametrize('route', ['main', 'aux', 'split'])
def test_channels_last_stays_channels_last_and_autocast_keeps_parameters_precise(route, share, randomize_norms):
    norm = randomize_norms(convert_split_norm(nn.BatchNorm2d(8), 1, share)).train()
    set_norm_route(norm, route)
    images = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last).bfloat16()
    expected = deepcopy(norm)(images.float())
    output = norm(images)
    assert output.is_contiguous(memory_format=torch.channels_last) and output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.02)
    output.float().square().sum().backward()
    assert {value.grad.dtype for value in norm.parameters() if value.grad is not None} == {torch.float32}


def test_compiled_model_runs_as_few_graphs_as_one_that_shares_nothing(share, randomize_norms):
    graphs = {}
    images, target = make_batch(10)
    for kind in ('none', share):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend('eager')
        model = randomize_norms(convert_split_norm(NETS['small_net'](), 1, kind)).train()
        compiled, twin = torch.compile(model, backend=counter), deepcopy(model)
        for _ in range(2):
            outputs = [torch.cat(forward_parts(each, images.split([7, 3]))) for each in (compiled, twin)]
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
            F.cross_entropy(outputs[0], target).backward()
            for each in (compiled, twin):
                set_norm_route(each, 'aux')
            torch.testing.assert_close(compiled(images), twin(images), rtol=1e-4, atol=1e-5)
        graphs[kind] = counter.frame_count
        for key, value in twin.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert graphs[share] == graphs['none'] == 2
    torch._dynamo.reset()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('export', [
    lambda model, images: torch.jit.script(model), lambda model, images: torch.fx.symbolic_trace(model),
    lambda model, images: torch.export.export(model, (images,)).module(),
], ids=['script', 'fx', 'export'])
def test_exported_model_is_the_main_route(export, share, randomize_norms):
    model = randomize_norms(convert_split_norm(NETS['test_resnet'](), 1, share)).eval()
    images, _ = make_batch()
    torch.testing.assert_close(export(model, images)(images), strip_aux(model)(images), rtol=1e-5, atol=1e-5)


def test_models_of_the_zoo_take_it(share):
    model = timm.create_model('test_resnet_ap', share=share, num_aux=2)
    assert share_of(model) == share and len(model.bn1.aux_bn) == 2
    assert share_of(timm.create_model('test_resnet_ap')) == 'none'
    assert share_of(timm_advprop.create_model('test_resnet_ap', share=share)) == share
