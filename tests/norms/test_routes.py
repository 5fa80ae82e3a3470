"""Routes: which norms of a model its images pass."""
from copy import deepcopy

import pytest
import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.norms.norm_models import (
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
from timm_advprop.norms import convert_split_norm, forward_parts, norm_route, set_norm_route


@pytest.mark.parametrize('route, index', [('main', 0), ('clean', 0), ('aux', 1), (0, 0), (1, 1), (2, 2)])
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_route_holds_in_both_modes(plain, route, index, training, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2).train(training)
    model = plain_models_of(split, plain)[index]
    set_norm_route(split, route)
    images, _ = make_batch()
    assert torch.equal(split(images), model(images))


@pytest.mark.parametrize('route, updated', [
    ('main', {0}), ('aux', {1}), (0, {0}), (1, {1}), (2, {2}), ('split', {0, 1, 2}),
])
def test_route_in_train_mode_changes_its_own_statistics_alone(plain, route, updated, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2).train()
    before = snapshot(split)
    set_norm_route(split, route)
    split(make_batch(12)[0])
    statistics = [key for key, _ in split.named_buffers()]
    changed = {key for key, value in split.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in statistics if norm_index(key) in updated}


@pytest.mark.parametrize('route', ['main', 'aux', 2, 'split'])
def test_route_in_eval_mode_changes_nothing(plain, route, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2).eval()
    before = snapshot(split)
    set_norm_route(split, route)
    split(make_batch()[0])
    assert equal_states(split.state_dict(), before)


@pytest.mark.parametrize('route, index', [('main', 0), ('aux', 1), (2, 2)])
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


@pytest.mark.parametrize('wrap', [nn.Module.train, nn.DataParallel], ids=['plain', 'wrapped'])
@pytest.mark.parametrize('copy', [lambda model: model, deepcopy], ids=['itself', 'copy'])
def test_split_route_goes_by_the_mode_of_the_model_not_of_a_norm(plain, wrap, copy, randomize_norms):
    original = split_with_own_norms(plain, randomize_norms).train()
    set_norm_route(wrap(original), 'split')
    split = copy(original)
    models = plain_models_of(split, plain)
    images, target = make_batch()
    main_norms = models[0].eval()(images)
    for model in (split, *models):
        for module in model.train().modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    expected = torch.cat([train_step(model, *part) for model, *part in zip(models, images.chunk(2), target.chunk(2))])
    torch.testing.assert_close(train_step(split, images, target), expected)
    assert all(grad is not None for grad in named_grads(split).values())
    torch.testing.assert_close(split.eval()(images), main_norms)


@pytest.mark.parametrize('size', [4, 16])
def test_parts_are_sent_through_their_norms_in_either_mode_and_the_model_rests_on_main(plain, size, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms).eval()
    models = plain_models_of(split, plain)
    parts = make_batch(size)[0], make_batch(6)[0]
    for output, model, part in zip(forward_parts(split, parts), models, parts):
        torch.testing.assert_close(output, model(part))
    assert torch.equal(split(parts[0]), models[0](parts[0]))
    with pytest.raises(ValueError, match='needs 2 sizes'):
        forward_parts(split, parts[:1])


@pytest.mark.parametrize('route', ['adv', 'Main', 'plain', '1', '', -1, True, 1.0, None, ['aux']], ids=repr)
def test_unknown_route_is_refused(resnet, route):
    split = convert_split_norm(resnet)
    words = 'Unknown route .*: give main, aux, split, or a whole number up to 1; .*blend_routes'
    with pytest.raises(ValueError, match=words):
        set_norm_route(split, route)


@pytest.mark.parametrize('route, num_aux', [(2, 1), (4, 3)])
def test_route_of_a_norm_the_model_lacks_is_refused(resnet, route, num_aux):
    split = convert_split_norm(resnet, num_aux)
    with pytest.raises(ValueError, match=f'Route {route} .* has {num_aux}'):
        set_norm_route(split, route)


@pytest.mark.parametrize('route, sizes', [
    ('split', [4]), ('split', [4, 4, 4]), ('split', [8, 0]), ('split', [9, -1]), ('split', []),
    ('main', [4, 4]), ('aux', [4, 4]),
])
def test_sizes_that_do_not_fit_are_refused_and_change_nothing(resnet, route, sizes, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).eval()
    set_norm_route(split, 'aux')
    images, _ = make_batch()
    expected = split(images)
    with pytest.raises(ValueError, match='sizes'):
        set_norm_route(split, route, sizes)
    assert torch.equal(split(images), expected)


def test_sizes_and_routes_have_to_fit_every_norm():
    model = nn.Sequential(
        convert_split_norm(nn.BatchNorm2d(3), num_aux=2), convert_split_norm(nn.BatchNorm2d(3), num_aux=1))
    with pytest.raises(ValueError, match='sizes'):
        set_norm_route(model, 'split', sizes=[2, 2, 2])
    with pytest.raises(ValueError, match='Route 2 .* has 1'):
        set_norm_route(model, 2)


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
        set_route(resnet, 'main')


def test_route_context_sets_and_restores(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).eval()
    images, _ = make_batch()
    main, aux = (model(images) for model in plain_models_of(split, resnet))
    with norm_route(split, 'aux'):
        assert torch.equal(split(images), aux)
        with norm_route(split, 'main'):
            assert torch.equal(split(images), main)
        assert torch.equal(split(images), aux)
    assert torch.equal(split(images), main)


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
    with norm_route(split, 'main'):
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
