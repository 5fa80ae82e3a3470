"""What users do to norms between steps, and what steps leave of a model: modes, frozen norms, routes, new heads."""
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.regimes.regime_models import (
    CLASSES,
    HALF,
    assert_all_close,
    assert_step_equals_plain_models,
    gradients_of,
    make_batch,
    negative,
    plain_twin,
    plain_twins,
    split_model,
    task_of,
    tiny_model,
)
from timm_advprop import AdvPropTask, convert_split_norm, freeze_norms, norm_route, set_norm_route
from timm_advprop.norms import split_norms, unsplit_batch_norms

pytestmark = pytest.mark.usefixtures('one_thread')


def negatives(model):
    """A task whose other images can be computed by hand."""
    return AdvPropTask(model, sources=negative, verbose=False, **HALF)


def to_eval(norms):
    for norm in norms:
        norm.eval()


FREEZES = {
    'norms': lambda model: to_eval(module for module in model.modules() if isinstance(module, _BatchNorm)),
    'layer': lambda model: model.layer1.eval(),
    'model': lambda model: model.eval(),
}


@pytest.mark.parametrize('freeze', FREEZES)
def test_parts_stay_apart_in_norms_in_eval_mode(freeze):
    model, (images, target) = split_model().train(), make_batch()
    twins = plain_twins(model)
    task = negatives(model)
    for each in (model, *twins):
        FREEZES[freeze](each)
    parts = [(images, target), negative(model, images, target)]
    assert_step_equals_plain_models(model, twins, parts, [1, 1], task(images, target))


@pytest.mark.parametrize('regime', ['advprop', 'fast-advprop'])
def test_a_freeze_that_misses_the_main_norms_is_refused(regime):
    model, (images, target) = split_model(dtype=torch.float32).train(), make_batch(10, torch.float32)
    task = task_of(regime, model)
    to_eval(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    with pytest.raises(ValueError, match='Auxiliary norms are in eval mode.*_BatchNorm.*freeze_norms'):
        task(images, target)
    task.get_trainable_module().train()
    task(images, target)


@pytest.mark.parametrize('before_task', [True, False])
@pytest.mark.parametrize('main, aux', [(True, False), (False, True)])
def test_norms_of_some_routes_can_be_frozen(main, aux, before_task):
    model, (images, target) = split_model().train(), make_batch()
    task = None if before_task else negatives(model)
    freeze_norms(model, main, aux)
    task = task or negatives(model)
    start = deepcopy(model.state_dict())
    for _ in range(2):
        model.train()  # which ends no freeze
        twins = plain_twins(model)
        for twin, frozen in zip(twins, (main, aux)):
            to_eval(module for module in twin.modules() if frozen and isinstance(module, _BatchNorm))
        outputs = [twin(part) for twin, part in zip(twins, (images, -images))]
        result = task(images, target)
        torch.testing.assert_close(result['output'], outputs[0])
        result['loss'].backward()
    found = gradients_of(model)
    for name, value in model.state_dict().items():
        norm = main if f'{name.rpartition(".")[0]}.aux_bn.0.weight' in start else aux if 'aux_bn' in name else None
        if norm is not None:
            changed = name in found if name.endswith(('weight', 'bias')) else not torch.equal(value, start[name])
            assert changed != norm, name
    freeze_norms(model, False, False)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_a_task_trained_is_the_plain_model_elsewhere():
    model, (images, target) = split_model().train(), make_batch()
    task = negatives(model)
    task(images, target)['loss'].backward()
    twin, before = plain_twin(model, 0).train(), deepcopy(model.state_dict())
    torch.testing.assert_close(model(images), twin(images))  # as update_bn passes images
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if 'aux_bn' in name)
    assert_all_close(plain_twin(model, 0).state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('regime', ['advprop', 'fast-advprop'])
def test_recomputed_passes_take_the_parts_of_their_own_step(regime):
    gradients = []
    for checkpointing in (False, True):
        model = split_model().train()
        model.set_grad_checkpointing(checkpointing)
        task = task_of(regime, model, adv_target='none', adv_random_start=0., adv_eps=1.)
        torch.manual_seed(2)
        losses = [task(*make_batch(size))['loss'] for size in (10, 12)]
        set_norm_route(model, 'aux')
        sum(losses).backward()
        assert {norm.route for norm in split_norms(model)} == {0}
        gradients.append(gradients_of(model))
    assert_all_close(*gradients, rtol=1e-9, atol=1e-12)


def test_a_failed_step_or_backward_pass_does_no_harm_to_the_next_step():
    model, (images, target) = tiny_model(dtype=torch.float64).train(), make_batch()
    task = negatives(model)
    expected = deepcopy(task)

    def fail(*args):
        raise RuntimeError('out of memory')

    for hook in (model[3].register_forward_hook, model[3].register_full_backward_hook):
        handle = hook(fail)
        with pytest.raises(RuntimeError, match='out of memory'):
            task(images, target)['loss'].backward()
        handle.remove()
        with norm_route(model.eval(), 'main'):
            on_main = model(images)
        assert torch.equal(model(images), on_main)
        model.train()
    model.zero_grad()
    for each in (task, expected):
        each(images, target)['loss'].backward()
    assert {norm.route for norm in split_norms(model)} == {0}
    assert_all_close(gradients_of(model), gradients_of(expected.get_trainable_module()))


@pytest.mark.parametrize('name, heads', [
    ('levit_128s', ['head.bn', 'head_dist.bn']),
    *(pytest.param(name, heads, marks=pytest.mark.slow) for name, heads in (
        ('repvit_m1', ['head.head.bn']), ('iformer_t', ['head.head.bn']), ('efficientvit_m0', ['head.bn']),
        ('shvit_s1', ['head.bn']),
    )),
])
def test_a_new_head_with_a_batch_norm_is_refused_until_it_is_split(name, heads):
    model = timm.create_model(f'{name}_ap', num_aux=2)
    model.reset_classifier(CLASSES)
    assert list(unsplit_batch_norms(model)) == heads
    with pytest.raises(ValueError, match=f'{", ".join(heads)} of .*convert_split_norm'):
        AdvPropTask(model, sources=[negative, negative], verbose=False)
    AdvPropTask(convert_split_norm(model), sources=[negative, negative], verbose=False)
    assert {len(norm.aux_bn) for norm in split_norms(model)} == {2}
