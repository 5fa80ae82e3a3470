"""Matched masks: parts of a batch lose the same, and nothing else changes."""
import pickle
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn as nn
from timm.layers import DropBlock2d, DropPath, PatchDropout
from timm.models._features_fx import create_feature_extractor

from tests.regimes.regime_models import CLASSES, HALF, make_batch, recorded_batches, task_of
from timm_advprop import AdvPropTask, JointTask, TradesTask, VanillaTask, match_masks, strip_aux
from timm_advprop.regimes import Attack, GaussianNoise
from timm_advprop.regimes.matched_masks import MatchedDropout, MatchedDropPath

pytestmark = pytest.mark.usefixtures('one_thread')

DROPPING = {
    'dropout': (lambda: nn.Dropout(0.4), (5, 7)),
    'dropout in place': (lambda: nn.Dropout(0.4, inplace=True), (5, 7)),
    'dropout1d': (lambda: nn.Dropout1d(0.4), (9, 7)),
    'dropout2d': (lambda: nn.Dropout2d(0.4), (9, 4, 4)),
    'drop path': (lambda: DropPath(0.4), (5, 7)),
    'drop path unscaled': (lambda: DropPath(0.4, scale_by_keep=False), (3, 4, 4)),
    'drop block': (lambda: DropBlock2d(0.2, block_size=3), (3, 8, 8)),
    'patch dropout': (lambda: PatchDropout(0.4), (11, 3)),
    'patch dropout in order': (lambda: PatchDropout(0.4, num_prefix_tokens=2, ordered=True), (11, 3)),
}
KINDS = pytest.mark.parametrize('name', DROPPING)


def module_and_parts(name, num_parts, size=64):
    make, shape = DROPPING[name]
    part = torch.rand(size, *shape) + 0.5
    return match_masks(make(), num_parts), part.repeat(num_parts, *(1,) * len(shape))


@KINDS
@pytest.mark.parametrize('num_parts', [2, 3])
def test_all_parts_lose_the_same(name, num_parts):
    module, batch = module_and_parts(name, num_parts)
    output = module(batch.clone())
    first, *others = output.chunk(num_parts)
    assert all(torch.equal(part, first) for part in others)
    assert not torch.equal(module(batch.clone()), output)  # and something else in the next step
    assert module.training


@KINDS
def test_what_the_first_part_loses_is_what_the_plain_module_draws(name):
    module, batch = module_and_parts(name, 2)
    torch.manual_seed(5)
    output = module(batch.clone())
    torch.manual_seed(5)
    expected = DROPPING[name][0]()(batch[:64].clone())
    torch.testing.assert_close(output, torch.cat([expected, expected]))


@KINDS
def test_images_of_a_part_lose_each_their_own(name):
    make, shape = DROPPING[name]
    image = torch.arange(1., 1 + torch.Size(shape).numel()).view(shape)
    output = match_masks(make(), 2)(image.repeat(64, *[1] * len(shape)))
    assert len(output[:32].flatten(1).unique(dim=0)) > 1


@KINDS
def test_gradients_pass_the_mask(name):
    module, batch = module_and_parts(name, 2, size=4)
    batch = batch.double().requires_grad_()
    torch.manual_seed(5)
    grad, = torch.autograd.grad(module(batch * 1).pow(2).sum(), batch)
    twin, part = DROPPING[name][0](), batch[:4].detach().requires_grad_()
    torch.manual_seed(5)
    expected, = torch.autograd.grad(twin(part * 1).pow(2).sum(), part)
    torch.testing.assert_close(grad, expected.repeat(2, *[1] * (batch.ndim - 1)))


@pytest.mark.parametrize('name', ['dropout', 'dropout2d', 'drop path'])
def test_the_mean_of_what_is_kept_is_that_of_the_input(name):
    make, shape = DROPPING[name]
    kept = match_masks(make(), 2)(torch.ones(8000, *shape))
    assert kept.mean() == pytest.approx(1, abs=0.03)
    assert (kept == 0).double().mean() == pytest.approx(0.4, abs=0.02)


@KINDS
def test_other_batches_and_eval_mode_find_the_plain_module(name):
    module, batch = module_and_parts(name, 2, size=5)
    plain, odd = DROPPING[name][0](), batch[:9]
    torch.manual_seed(5)
    output = module(odd.clone())
    torch.manual_seed(5)
    assert torch.equal(output, plain(odd.clone()))
    assert module.eval()(batch).data_ptr() == batch.data_ptr()  # nothing was computed


@KINDS
def test_nothing_is_dropped_at_a_rate_of_0(name):
    module, batch = module_and_parts(name, 2)
    for rate in ('p', 'drop_prob', 'prob'):
        if hasattr(module, rate):
            setattr(module, rate, 0.)
    state = torch.get_rng_state()
    assert module(batch) is batch
    assert torch.equal(torch.get_rng_state(), state)


def test_images_as_rows_of_tokens_or_windows_are_parts_too():
    module = match_masks(DropPath(0.5), 2)
    tokens = torch.ones(2 * 4 * 16, 3)  # 16 rows for each of 4 images of a part
    output = module(tokens)
    assert torch.equal(output[:64], output[64:]) and (output == 0).any() and (output > 0).any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_type_and_the_memory_format_stay(dtype):
    images = torch.randn(4, 6, 5, 5, dtype=dtype).to(memory_format=torch.channels_last)
    for module in (nn.Dropout(0.5), DropPath(0.5), nn.Dropout2d(0.5)):
        output = match_masks(module, 2)(images)
        assert output.dtype == dtype and output.is_contiguous(memory_format=torch.channels_last)


# Models


def vit(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_vit_ap', num_classes=CLASSES, img_size=32, **kwargs)


DROPS = dict(drop_rate=0.3, proj_drop_rate=0.2, pos_drop_rate=0.1, drop_path_rate=0.4, patch_drop_rate=0.25)


def test_the_class_is_swapped_in_place_and_back():
    model = vit(**DROPS).train()
    before = {name: (type(module), id(module)) for name, module in model.named_modules()}
    keys, state = list(model.state_dict()), deepcopy(model.state_dict())
    seen = []
    model.blocks[0].drop_path1.register_forward_hook(lambda module, args, output: seen.append(module))
    assert match_masks(model, 2) is model
    assert isinstance(model.blocks[1].drop_path1, MatchedDropPath) and isinstance(model.head_drop, MatchedDropout)
    assert not any(type(module) in (nn.Dropout, DropPath, PatchDropout) for module in model.modules())
    match_masks(model, 3)
    assert model.head_drop.num_parts == 3 and 'num_parts=3' in repr(model.head_drop)
    model(torch.randn(6, 3, 32, 32))
    assert seen == [model.blocks[0].drop_path1]
    match_masks(model, 1)
    assert {name: (type(module), id(module)) for name, module in model.named_modules()} == before
    assert list(model.state_dict()) == keys and all(torch.equal(model.state_dict()[key], state[key]) for key in keys)
    assert 'num_parts' not in vars(model.head_drop)


def test_copies_and_pickles_stay_matched():
    model = match_masks(vit(**DROPS), 2).train()
    images = torch.randn(3, 3, 32, 32).repeat(2, 1, 1, 1)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        first, second = copy(images).chunk(2)
        torch.testing.assert_close(first, second)
    assert set(strip_aux(model).state_dict()) == set(timm.create_model('test_vit', num_classes=CLASSES).state_dict())


def test_modules_that_are_no_masks_stay():
    model = nn.Sequential(nn.AlphaDropout(0.5), DropBlock2d(0.5, with_noise=True), nn.ReLU())
    types = [type(module) for module in model]
    assert [type(module) for module in match_masks(model, 2)] == types
    with pytest.raises(ValueError, match='at least 1 part, got 0'):
        match_masks(model, 0)


def test_a_checkpointed_pass_finds_the_same_masks_again():
    gradients = []
    for checkpointed in (False, True):
        model = match_masks(vit(**{**DROPS, 'patch_drop_rate': 0.}), 2).double().train()
        model.set_grad_checkpointing(checkpointed)
        torch.manual_seed(3)
        images = torch.randn(3, 3, 32, 32, dtype=torch.float64).repeat(2, 1, 1, 1)
        first, second = model(images).chunk(2)
        torch.testing.assert_close(first, second)
        (first.sum() + second.pow(2).sum()).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
    torch.testing.assert_close(*gradients)


def test_a_traced_model_has_leaves_in_their_place():
    model = match_masks(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), DropPath(0.5)), 2)
    traced = create_feature_extractor(model.train(), ['2'])
    output, = traced(torch.ones(64, 3)).values()
    assert torch.equal(output[:32], output[32:])


@pytest.mark.slow
def test_a_compiled_model_matches_masks():
    model = match_masks(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), DropPath(0.5)), 2).train()
    compiled = torch.compile(model, fullgraph=True)
    for size in (8, 12):
        batch = torch.randn(size, 3).repeat(2, 1)
        output = compiled(batch)
        assert torch.equal(output[:size], output[size:]) and (output == 0).any()
        output.sum().backward()


# Tasks


TASKS = pytest.mark.parametrize('make', [
    pytest.param(lambda model, **on: AdvPropTask(model, sources=GaussianNoise(eps_px=0), **on), id='advprop'),
    pytest.param(lambda model, **on: JointTask(model, attack=Attack(eps_px=0), **on), id='joint'),
    pytest.param(lambda model, **on: TradesTask(
        model, attack=Attack(eps_px=0, target='none', random_start=1.), **on), id='trades'),
])


@TASKS
@pytest.mark.parametrize('matched', [True, False])
def test_equal_images_of_both_kinds_have_equal_logits_where_masks_match(make, matched):
    model, (images, target) = vit(**DROPS).train(), make_batch(8, torch.float32)
    task, seen = make(model, match_masks=matched, verbose=False, **HALF), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    with recorded_batches(model) as batches:
        task(images, target)['loss'].backward()
    assert torch.equal(batches[-1][:8], batches[-1][8:])
    assert torch.allclose(*seen[-1].chunk(2), atol=1e-5) == matched


def test_advprop_matches_as_many_parts_as_it_has_kinds_of_images():
    model, (images, target) = vit(num_aux=2, **DROPS).train(), make_batch(8, torch.float32)
    task = AdvPropTask(
        model, sources=[GaussianNoise(eps_px=0)] * 2, match_masks=True, verbose=False, **HALF)
    logits = []
    model.register_forward_hook(lambda module, args, output: logits.append(output.detach()))
    task(images, target)
    first, *others = logits[0].chunk(3)
    assert len(first) == 8 and all(torch.allclose(first, part, atol=1e-5) for part in others)
    assert model.head_drop.num_parts == 3


def test_a_task_without_them_gives_the_plain_modules_back():
    model = vit(**DROPS)
    AdvPropTask(model, match_masks=True, verbose=False, **HALF)
    assert isinstance(model.head_drop, MatchedDropout)
    VanillaTask(model, verbose=False)
    assert type(model.head_drop) is nn.Dropout


@pytest.mark.parametrize('regime', ['advprop', 'joint', 'trades'])
def test_the_flag_asks_for_them(regime):
    model = vit(**DROPS)
    task_of(regime, model, adv_match_masks=True)
    assert model.head_drop.num_parts == 2
    task_of(regime, model, adv_match_masks=False)
    assert type(model.head_drop) is nn.Dropout


def test_a_stripped_model_has_plain_modules():
    model = vit(**DROPS)
    AdvPropTask(model, match_masks=True, verbose=False, **HALF)
    plain = strip_aux(model)
    assert type(plain.head_drop) is nn.Dropout and 'num_parts' not in vars(plain.head_drop)
    assert isinstance(model.head_drop, MatchedDropout)
    assert not [module for module in plain.modules() if hasattr(module, 'plain_type')]
