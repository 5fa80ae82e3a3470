"""Regimes on models whose norms share statistics: what the attack sees and writes, and what a step trains."""
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.task import ClassificationTask
from torch._dynamo.testing import CompileCounterWithBackend

import timm_advprop
from tests.regimes.regime_models import (
    CLASSES,
    DETERMINISTIC,
    STRONG,
    WEAK,
    assert_all_close,
    assert_unchanged,
    gradients_of,
    hand_attack,
    make_batch,
    recorded_batches,
    snapshot,
    split_model,
    task_of,
)
from timm_advprop.norms import configure_batch_norm, share_of, split_norms, split_state_dict, strip_aux
from timm_advprop.regimes import RegimeSettings, split_for_regime

SHARED = ('statistics', 'statistics-of-main')


@pytest.fixture(params=SHARED)
def share(request):
    return request.param


def aux_twin(model, route=1):
    """The plain model of the main norms' statistics and the weights and biases of an auxiliary route."""
    twin, (_, aux) = strip_aux(model), split_state_dict(model.state_dict())
    mark = f'aux_bn.{route - 1}.'
    twin.load_state_dict({**twin.state_dict(), **{
        key.replace(mark, ''): value.clone() for key, value in aux.items() if mark in key}})
    return twin


def joint_loss(model, parts, weights):
    """The loss of a step, by normalising all images in functions of their own."""
    model, affine = deepcopy(model), {}
    plain = strip_aux(model)
    sizes = [len(images) for images, _ in parts]
    for (name, split), (_, norm) in zip(
            ((name, module) for name, module in model.named_modules() if hasattr(module, 'aux_bn')),
            ((name, module) for name, module in plain.named_modules() if isinstance(module, nn.BatchNorm2d))):
        parameters = [(part.weight, part.bias) for part in (split, *split.aux_bn)]
        affine[name] = parameters

        def forward(x, parameters=parameters, norm=norm):
            mean = x.mean(dim=(0, 2, 3), keepdim=True)
            x = (x - mean) / ((x - mean).square().mean(dim=(0, 2, 3), keepdim=True) + norm.eps).sqrt()
            x = torch.cat([part * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
                           for part, (weight, bias) in zip(x.split(sizes), parameters)])
            return norm.act(x) if hasattr(norm, 'act') else x

        norm.forward = forward
    outputs = plain.train()(torch.cat([images for images, _ in parts])).split(sizes)
    losses = [F.cross_entropy(output, target) for output, (_, target) in zip(outputs, parts)]
    sum(weight * loss for weight, loss in zip(weights, losses)).backward()
    gradients = gradients_of(plain)
    for name, parameters in affine.items():
        for i, pair in enumerate(parameters):
            prefix = f'{name}.aux_bn.{i - 1}' if i else name
            gradients.update({f'{prefix}.weight': pair[0].grad, f'{prefix}.bias': pair[1].grad})
    return sum(weight * loss for weight, loss in zip(weights, losses)).detach(), gradients


@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
@pytest.mark.parametrize('name', ['test_resnet_ap', 'test_efficientnet_ap'])
def test_a_step_attacks_by_the_shared_statistics_and_trains_all_images_together(name, norm_stats, share):
    model, (images, target) = split_model(name, num_aux=2, share=share).train(), make_batch()
    before = deepcopy(model)
    flags = {**{f'adv_{key}': value for key, value in DETERMINISTIC.items()}, 'adv_norm_stats': norm_stats}
    task = task_of('advprop', model, adv_eps=[WEAK, STRONG], adv_steps=2, adv_alpha=WEAK, adv_weight=0.5, **flags)
    with recorded_batches(model) as batches:
        result = task(images, target)
    parts = [(part, target) for part in batches[-1].chunk(3)]
    for route, eps in ((1, WEAK), (2, STRONG)):
        expected = hand_attack(
            aux_twin(before, route), images, target, eps, 2, WEAK, training=norm_stats == 'train')
        assert torch.equal(parts[route][0], expected)
    result['loss'].backward()
    loss, gradients = joint_loss(before, parts, [1, 0.5, 0.5])
    torch.testing.assert_close(result['loss'].detach(), loss)
    assert_all_close(gradients_of(model), gradients, rtol=1e-6, atol=1e-9)
    assert {norm.num_batches_tracked.item() for norm in split_norms(model)} == {1}  # not by the attack
    first = strip_aux(before).train()  # whose first norm sees what the split one does
    with torch.no_grad():
        first(batches[-1] if share == 'statistics' else images)
    name, norm = next((name, module) for name, module in first.named_modules() if isinstance(module, nn.BatchNorm2d))
    torch.testing.assert_close(model.get_submodule(name).running_var, norm.running_var)


@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
def test_an_attack_leaves_everything_as_it_was(norm_stats, share):
    model, (images, target) = split_model(share=share).train(), make_batch()
    before = snapshot(model)
    with timm_advprop.norm_route(model, 'aux'):
        timm_advprop.Attack(steps=2, norm_stats=norm_stats, mean=(0.5,) * 3, std=(0.5,) * 3)(model, images, target)
    assert_unchanged(model, before)


def test_the_attack_that_trains_updates_the_statistics_of_all_images_alone(share):
    model, (images, target) = split_model(share=share).train(), make_batch(10)
    task_of('fast-advprop', model)(images, target)['loss'].backward()
    assert {norm.num_batches_tracked.item() for norm in split_norms(model)} == {2 if share == 'statistics' else 1}
    assert all(grad.isfinite().all() for grad in gradients_of(model).values())
    assert len(gradients_of(model)) == len(list(model.parameters()))


@pytest.mark.parametrize('regime', ['vanilla', 'joint'])
def test_regimes_of_one_norm_train_the_plain_model(regime, share):
    model, (images, target) = split_model(share=share).train(), make_batch()
    aux = split_state_dict(deepcopy(model.state_dict()))[1]
    twin = strip_aux(model)
    for each in (model, twin):
        torch.manual_seed(0)
        task_of(regime, each)(images, target)['loss'].backward()
    main, aux_after = split_state_dict(model.state_dict())
    assert all(torch.equal(main[key], value) for key, value in twin.state_dict().items())
    assert all(torch.equal(aux_after[key], value) for key, value in aux.items())


def test_settings_say_what_a_plain_model_becomes(share):
    model = split_for_regime(
        RegimeSettings(regime='advprop', share=share, strengths=(1., 2.)), timm.create_model('test_resnet'))
    assert share_of(model) == share and timm_advprop.norms.num_aux_norms(model) == 2
    with pytest.raises(ValueError, match=f"norms of share='{share}', --adv-share asks for none"):
        split_for_regime(RegimeSettings(share='none', strengths=(1., 2.)), model)
    for name, regime in (('test_vit', 'advprop'), ('test_convnext_ap', None)):  # which have nothing to share
        with pytest.raises(ValueError, match=f'^--adv-share: {name} has no batch norms: there are no statistics to '):
            split_for_regime(RegimeSettings(regime=regime, share=share), timm.create_model(name))
        assert split_for_regime(RegimeSettings(regime=regime, share='none'), timm.create_model(name))


def test_settings_say_the_momentum_of_the_auxiliary_norms(share):
    for model in (timm.create_model('test_resnet'), timm.create_model('test_resnet_ap')):
        configure_batch_norm(model, momentum=0.2)
        split_for_regime(RegimeSettings(regime='advprop', bn_momentum=0.), model)
        assert {(norm.momentum, norm.aux_bn[0].momentum) for norm in split_norms(model)} == {(0.2, 0.)}
    with pytest.raises(ValueError, match='no auxiliary statistics'):
        split_for_regime(RegimeSettings(bn_momentum=0.01), timm.create_model('test_resnet_ap', share=share))


@pytest.mark.parametrize('regime', ['vanilla', 'advprop', 'fast-advprop'])
def test_a_distributed_step_is_that_of_one_process(regime, share, one_process):
    model, (images, target) = split_model(share=share).train(), make_batch(10)
    alone, task = task_of(regime, deepcopy(model)), task_of(regime, model)
    task.prepare_distributed()
    for each in (alone, task):
        torch.manual_seed(1)
        each(images, target)['loss'].backward()
    assert_all_close(gradients_of(model), gradients_of(alone.get_trainable_module()))
    assert_all_close(model.state_dict(), alone.get_trainable_module().state_dict())


def test_a_task_that_knows_nothing_of_routes_trains_it_distributed(share, one_process):
    model, (images, target) = split_model(share=share).train(), make_batch()
    task = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False).prepare_distributed()
    for _ in range(3):
        task(images, target)['loss'].backward()
    assert not any(grad.any() for name, grad in gradients_of(model).items() if 'aux_bn' in name)


@pytest.mark.parametrize('regime', ['advprop', 'fast-advprop'])
def test_a_compiled_task_runs_few_graphs(regime, share):
    torch._dynamo.reset()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, CLASSES)).double()
    model.num_classes = CLASSES
    timm_advprop.convert_split_norm(model, share=share).train()
    eager, compiled = (task_of(regime, deepcopy(model), adv_target='none', adv_random_start=0.) for _ in range(2))
    counter = CompileCounterWithBackend('aot_eager')
    compiled.compile(backend=counter)
    for _ in range(2):
        losses = []
        for task in (eager, compiled):
            torch.manual_seed(0)
            losses.append(task(*make_batch(10))['loss'])
            losses[-1].backward()
        torch.testing.assert_close(*losses)
    assert counter.frame_count == 2  # the attack and the step
    gradients = {name.replace('_orig_mod.', ''): value for name, value in gradients_of(compiled).items()}
    assert_all_close(gradients, gradients_of(eager))
    torch._dynamo.reset()
