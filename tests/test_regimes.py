"""Regimes: which images pass which norms, how losses add up, and that an attack leaves no trace.

A split model is compared with independent plain timm models, one a route, that know nothing of routes.
"""
import argparse
import inspect
import math
from contextlib import nullcontext
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from regime_models import (
    ALPHA,
    CLASSES,
    DETERMINISTIC,
    HALF,
    NAMES,
    STRONG,
    WEAK,
    assert_all_close,
    assert_unchanged,
    gradients_of,
    hand_attack,
    make_batch,
    plain_twin,
    snapshot,
    split_model,
    tiny_model,
)
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import ClassificationTask
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules.batchnorm import _BatchNorm

import timm_advprop  # noqa: F401, registers the models
from timm_advprop import AdvPropTask, norm_route, set_norm_route
from timm_advprop.regimes import (
    REGIMES,
    Adversary,
    VanillaTask,
    attack_settings,
    create_task,
    default_regime,
    default_steps,
)
from timm_advprop.regimes.adversary import attack_mode
from timm_advprop.regimes.arguments import add_attack_arguments, add_regime_arguments, attack_kwargs

pytestmark = pytest.mark.usefixtures('one_thread')


# Steps


@pytest.mark.parametrize('eps,steps', [
    (0, 1), (0.5, 1), (1, 1), (1.5, 3), (2, 3), (3, 4), (4, 5), (4., 5), (7.2, 9), (16, 17)])
def test_default_steps_are_the_papers(eps, steps):
    assert default_steps(eps) == steps
    assert Adversary(eps=eps).steps == steps


# Adversary


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
@pytest.mark.parametrize('route', [0, 1, 2])
def test_an_attack_passes_the_norms_of_its_route(name, norm_stats, route):
    model, (images, target) = split_model(name, num_aux=2).train(), make_batch()
    before = snapshot(model)
    adversary = Adversary(eps=STRONG, alpha=ALPHA, steps=3, norm_stats=norm_stats, **DETERMINISTIC, **HALF)
    adv = adversary(model, images, target, route)
    by_route = [
        hand_attack(plain_twin(model, i), images, target, STRONG, 3, training=norm_stats == 'train')
        for i in range(3)
    ]
    torch.testing.assert_close(adv, by_route[route], rtol=0, atol=1e-12)
    assert not any(torch.equal(by_route[route], by_route[i]) for i in range(3) if i != route)
    assert_unchanged(model, before)


def test_batch_statistics_and_running_statistics_give_different_attacks():
    model, (images, target) = split_model(), make_batch()
    settings = dict(eps=STRONG, alpha=ALPHA, steps=1, **DETERMINISTIC, **HALF)
    by_stats = [Adversary(norm_stats=stats, **settings)(model, images, target, 'aux') for stats in ('eval', 'train')]
    assert not torch.equal(*by_stats)


@pytest.mark.parametrize('target_mode', ['random', 'none'])
@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
@pytest.mark.parametrize('failing_pass', [None, 1, 3])
def test_an_attack_leaves_no_trace_on_the_model(target_mode, norm_stats, failing_pass):
    model, (images, target) = split_model(num_aux=2), make_batch()
    model.train()
    model.layer1.eval()  # modules in eval and frozen parameters of the user's choice
    model.layer3[0].bn2.aux_bn[1].eval()
    model.conv1[1].weight.requires_grad_(False)
    model.layer2[0].bn1.aux_bn[0].bias.requires_grad_(False)
    set_norm_route(model, 'split', sizes=(2, 3, 1))
    set_norm_route(model.layer2, 2)
    model.layer3[0].bn2.track_running_stats = False
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before, images_before, target_before = snapshot(model), images.clone(), target.clone()
    passes = []

    def fail(module, args, output):
        passes.append(output)
        if len(passes) == failing_pass:
            raise RuntimeError('out of memory')

    handle = model.layer4.register_forward_hook(fail)
    adversary = Adversary(steps=4, target=target_mode, norm_stats=norm_stats, **HALF)
    with pytest.raises(RuntimeError, match='out of memory') if failing_pass else nullcontext():
        adversary(model, images, target, 'aux')
    handle.remove()
    assert len(passes) == (failing_pass or 4)
    assert_unchanged(model, before)
    assert torch.equal(images, images_before) and torch.equal(target, target_before)


@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
def test_an_attack_sees_a_frozen_model_without_dropout(norm_stats):
    model, (images, target) = split_model('test_efficientnet_ap', drop_rate=0.5, drop_path_rate=0.5), make_batch()
    model.train()
    seen = []
    model.classifier.register_forward_hook(lambda module, args, output: seen.append((
        any(m.training for m in model.modules() if not isinstance(m, _BatchNorm)),
        any(parameter.requires_grad for parameter in model.parameters()))))
    adversary = Adversary(steps=3, norm_stats=norm_stats, **DETERMINISTIC, **HALF)
    first, second = (adversary(model, images, target, 'aux') for _ in range(2))
    assert seen == [(False, False)] * 6
    assert torch.equal(first, second)


@pytest.mark.parametrize('eps', [1, 4, 7.5])
@pytest.mark.parametrize('attack', ['pgd', 'ifgsm', 'gd'])
@pytest.mark.parametrize('mean,std', [
    (HALF['mean'], HALF['std']),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.1, 0.5, 0.9), (0.02, 0.3, 1.5)),
    ((0.5,), (0.25,)),
], ids=str)
def test_strength_is_in_pixels_and_images_stay_images(mean, std, attack, eps):
    torch.manual_seed(0)
    std_, mean_ = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (std, mean))
    pixels = make_batch(dtype=torch.float64)[0] / 2 + 0.5
    images, target = ((pixels - mean_) / std_).float(), make_batch()[1]
    adv = Adversary(eps=eps, steps=3, attack=attack, mean=mean, std=std)(tiny_model(), images, target, 'aux')
    assert adv.dtype == images.dtype and not adv.requires_grad
    perturbation = (adv.double() - images.double()) * std_ * 255
    reach = eps if attack != 'gd' else eps + 3
    expected_reach = min(eps, 3) if attack == 'ifgsm' else eps  # three steps of one pixel
    rounding = 1e-5 * (1 + (mean_ / std_).abs().max().item())
    assert 0.8 * expected_reach < perturbation.abs().max() <= reach + rounding
    adv_pixels = adv.double() * std_ + mean_
    assert adv_pixels.min() >= -rounding and adv_pixels.max() <= 1 + rounding


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize('convert', ['adversary', 'images'])
def test_strength_and_bounds_are_not_rounded_to_the_type_of_a_task_or_its_images(dtype, convert):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    std_, mean_ = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (std, mean))
    pixels = torch.rand(8, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = pixels.mul(1.4).sub(0.2).clamp(0, 1)
    images, target = ((pixels - mean_) / std_).float(), torch.arange(8) % CLASSES
    model, adversary = tiny_model(), Adversary(eps=4, steps=5, mean=mean, std=std)
    if convert == 'adversary':
        adversary.to(dtype)
    else:
        model, images = model.to(dtype), images.to(dtype)
    adv = adversary(model, images, target, 'aux')
    assert adv.dtype == images.dtype
    assert 2 < ((adv.double() - images.double()) * std_ * 255).abs().max() <= 4 * (1 + 1e-5)
    adv_pixels, pixels = adv.double() * std_ + mean_, images.double() * std_ + mean_
    assert (adv_pixels >= pixels.clamp(max=0) - 1e-5).all() and (adv_pixels <= pixels.clamp(min=1) + 1e-5).all()


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=str)
def test_a_model_of_another_type_is_attacked_in_its_type(dtype):
    model, (images, target) = tiny_model(dtype=dtype), make_batch(dtype=dtype)
    task = AdvPropTask(model, eps=STRONG, alpha=ALPHA, steps=5, dtype=dtype, verbose=False, **HALF)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    result = task(images, target)
    assert all(batch.dtype == dtype for batch in seen) and result['loss'].isfinite()
    clean, adv = seen[-1].chunk(2)
    assert torch.equal(clean, images)
    assert 0 < (adv.double() - images.double()).abs().max() <= STRONG / 255 / 0.5


@pytest.mark.parametrize('amp_dtype', ['bfloat16', 'float16', 'float32', torch.bfloat16, None], ids=str)
@pytest.mark.parametrize('caller', [None, torch.bfloat16], ids=str)
def test_amp_dtype_is_the_precision_of_the_attack_alone(amp_dtype, caller):
    torch.manual_seed(0)
    model, (images, target) = tiny_model(), make_batch(dtype=torch.float32)
    task = AdvPropTask(model, amp_dtype=amp_dtype, steps=2, verbose=False, **HALF)
    precision = []
    model[0].register_forward_hook(lambda module, args, output: precision.append(output.dtype))
    with torch.autocast('cpu', dtype=caller, enabled=caller is not None):
        adv = task.adversaries[0](model, images, target, 'aux')
        attack_precision = set(precision)
        precision.clear()
        task(images, target)['loss'].backward()
    default = caller or torch.float32
    named = getattr(torch, amp_dtype) if isinstance(amp_dtype, str) else amp_dtype
    assert attack_precision == {named or default}
    assert precision == [named or default] * 2 + [default]
    assert adv.dtype == torch.float32
    assert 0 < (adv - images).abs().max() <= 4 / 255 / 0.5
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_random_targets_are_wrong_labels_that_the_attack_moves_towards():
    torch.manual_seed(0)
    model, (images, target) = split_model(), make_batch(16)
    adversary = Adversary(eps=STRONG, alpha=ALPHA, steps=3, random_start=0., **HALF)
    adv = adversary(model, images, target, 'aux')
    twin = plain_twin(model, 1)
    towards = [  # one label for all steps
        hand_attack(twin, images, torch.full_like(target, label), STRONG, 3, sign=-1) for label in range(CLASSES)]
    found = [
        {label for label in range(CLASSES) if torch.allclose(adv[i], towards[label][i], rtol=0, atol=1e-12)}
        for i in range(len(images))
    ]
    assert all(len(labels) == 1 and target[i].item() not in labels for i, labels in enumerate(found))
    assert len(set.union(*found)) > 2


def test_one_adversary_attacks_models_of_different_numbers_of_classes():
    images, target = make_batch(32, torch.float32)
    adversary = Adversary(steps=1, **HALF)
    for num_classes in (10, 3, 2):
        model = timm.create_model('test_resnet_ap', num_classes=num_classes)
        adversary(model, images, target % num_classes, 'aux')


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode], ids=['no_grad', 'inference_mode'])
@pytest.mark.parametrize('target_mode', ['random', 'none'])
@pytest.mark.parametrize('within', [False, True])
def test_validation_code_may_attack_where_gradients_are_off(context, target_mode, within):
    model, (images, target) = tiny_model().eval(), make_batch(dtype=torch.float32)
    adversary = Adversary(steps=2, target=target_mode, **HALF)
    torch.manual_seed(3)
    expected = adversary(model, images, target, 'aux')
    with context():
        if within:  # as a loader's collate does
            images, target = images.clone(), target.clone()
        torch.manual_seed(3)
        adv = adversary(model, images, target, 'aux')
    assert torch.equal(adv, expected)


def test_training_may_follow_an_attack_in_inference_mode():
    (images, target), results = make_batch(dtype=torch.float32), []
    for validate_first in (False, True):
        task = AdvPropTask(tiny_model(), verbose=False, **HALF)
        if validate_first:
            with torch.inference_mode():
                task.adversaries[0](task.get_eval_model(), images, target, 'aux')
        torch.manual_seed(3)
        result = deepcopy(task)(images, target)
        result['loss'].backward()
        results.append(result['loss'].detach())
    assert torch.equal(*results)


def test_a_plain_model_may_be_attacked():
    model, (images, target) = split_model(), make_batch()
    twin = plain_twin(model, 0).train()
    before = snapshot(twin)
    adv = Adversary(eps=STRONG, alpha=ALPHA, steps=2, **DETERMINISTIC, **HALF)(twin, images, target, route='clean')
    torch.testing.assert_close(adv, hand_attack(twin, images, target, STRONG, 2), rtol=0, atol=1e-12)
    assert_unchanged(twin, before)


def test_attack_mode_restores_what_a_wrapped_model_had():
    model = tiny_model()
    model[3].eval()
    wrapped = nn.ModuleList([model])
    before = snapshot(wrapped)
    with pytest.raises(KeyError), attack_mode(wrapped, 1, 'train'):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model[1].route == 1
        raise KeyError
    assert_unchanged(wrapped, before)


# AdvPropTask: the mathematics


def _mixup_targets(images, target):
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1., label_smoothing=0.1, num_classes=CLASSES)
    images, target = mixup(images.clone(), target)
    return images, target.to(images.dtype)


CRITERIA = {
    'default': (None, F.cross_entropy, None),
    'smoothing': (LabelSmoothingCrossEntropy(0.1), LabelSmoothingCrossEntropy(0.1), None),
    'mixup': (SoftTargetCrossEntropy(), lambda x, y: -(y * x.log_softmax(-1)).sum(-1).mean(), _mixup_targets),
    'bce': (BinaryCrossEntropy(smoothing=0.1), BinaryCrossEntropy(smoothing=0.1), None),
    'bce-mixup': (BinaryCrossEntropy(), F.binary_cross_entropy_with_logits, _mixup_targets),
    'jsd': (JsdCrossEntropy(num_splits=3), JsdCrossEntropy(num_splits=3), None),
}


def _assert_step_equals_plain_models(name, eps, criterion, reference, images, target, norm_stats, weight):
    strengths = eps if isinstance(eps, tuple) else (eps,)
    model = split_model(name, num_aux=len(strengths)).train()
    twins = [plain_twin(model, route).train() for route in range(len(strengths) + 1)]
    batches = [images, *(
        hand_attack(twin, images, target, strength, default_steps(strength), training=norm_stats == 'train')
        for twin, strength in zip(twins[1:], strengths)
    )]
    losses = [reference(twin(batch), target) for twin, batch in zip(twins, batches)]
    (losses[0] + weight * sum(losses[1:])).backward()

    task = AdvPropTask(
        model, criterion, eps=eps, alpha=ALPHA, weight=weight, norm_stats=norm_stats, verbose=False, **DETERMINISTIC,
        **HALF)
    result = task(images, target)
    result['loss'].backward()

    torch.testing.assert_close(result['clean_loss'], losses[0].detach())
    torch.testing.assert_close(result['adv_loss'], sum(losses[1:]).detach())
    torch.testing.assert_close(result['loss'], losses[0] + weight * sum(losses[1:]))
    gradients = [gradients_of(twin) for twin in twins]
    split_keys = {key.split('aux_bn.')[0] for key in model.state_dict() if 'aux_bn.' in key}
    expected = {}
    for key in gradients[0]:
        prefix, leaf = key.rsplit('.', 1)
        if f'{prefix}.' in split_keys:
            expected.update({
                f'{prefix}.aux_bn.{i}.{leaf}': gradient[key] for i, gradient in enumerate(gradients[1:])})
            expected[key] = gradients[0][key]
        else:
            expected[key] = sum(gradient[key] for gradient in gradients)
    assert_all_close(gradients_of(model), expected, rtol=1e-7, atol=1e-10)
    assert all(parameter.grad is not None for parameter in model.parameters())

    for route, twin in enumerate(twins):
        assert_all_close(plain_twin(model, route).state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-12)
    assert not torch.equal(batches[0], batches[1])


@pytest.mark.parametrize('criterion', CRITERIA)
def test_a_step_equals_a_plain_model_for_each_route_for_any_loss(criterion):
    torch.manual_seed(0)
    images, target = make_batch(6)
    criterion, reference, mix = CRITERIA[criterion]
    if mix is not None:
        images, target = mix(images, target)
    elif isinstance(criterion, JsdCrossEntropy):
        target = target[:2].repeat(3)  # clean images, then their augmented splits
    _assert_step_equals_plain_models('test_resnet_ap', STRONG, criterion, reference, images, target, 'eval', 1.)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('eps,weight,norm_stats', [
    (WEAK, 0.3, 'eval'), ((WEAK, STRONG), 2., 'eval'), (STRONG, 1., 'train')], ids=str)
def test_a_step_equals_a_plain_model_for_each_route_for_any_attack(name, eps, weight, norm_stats):
    _assert_step_equals_plain_models(name, eps, None, F.cross_entropy, *make_batch(6), norm_stats, weight)


def test_weight_zero_trains_the_shared_and_main_parameters_as_without_an_adversary():
    model, (images, target) = split_model(), make_batch()
    twin = plain_twin(model, 0).train()
    F.cross_entropy(twin(images), target).backward()
    AdvPropTask(model.train(), weight=0, verbose=False, **HALF)(images, target)['loss'].backward()
    gradients = gradients_of(model)
    assert all((gradients.pop(name) == 0).all() for name in list(gradients) if 'aux_bn' in name)
    assert_all_close(gradients, gradients_of(twin), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('random', [False, True])
def test_gradient_checkpointing_changes_no_gradient(name, random):
    images, target = make_batch()
    gradients, losses = [], []
    for checkpointing in (False, True):
        model = split_model(name).train()
        model.set_grad_checkpointing(checkpointing)
        task = AdvPropTask(model, steps=2, verbose=False, **({} if random else DETERMINISTIC), **HALF)
        torch.manual_seed(5)
        result = task(images, target)
        result['loss'].backward()
        losses.append(result['loss'].detach())
        gradients.append(gradients_of(model))
    torch.testing.assert_close(*losses)
    assert_all_close(*gradients, rtol=1e-9, atol=1e-12)
    assert any('aux_bn' in name for name in gradients[0])


def test_gradients_accumulate_over_steps():
    batches = [make_batch(seed=seed) for seed in (1, 2)]
    single, accumulated = (
        AdvPropTask(split_model().train(), steps=2, verbose=False, **DETERMINISTIC, **HALF) for _ in range(2))
    total = {}
    for images, target in batches:
        single.zero_grad()
        single(images, target)['loss'].backward()
        for name, gradient in gradients_of(single).items():
            total[name] = total.get(name, 0) + gradient / 2
    for step, (images, target) in enumerate(batches):
        with accumulated.no_sync() if step == 0 else nullcontext():
            result = accumulated(images, target)
            result['loss'] /= 2
            result['loss'].backward()
    assert_all_close(gradients_of(accumulated), total, rtol=1e-9, atol=1e-12)


# AdvPropTask: as timm's training script uses it


def test_the_result_is_what_timms_training_script_reads():
    model, (images, target) = split_model().train(), make_batch()
    twin = plain_twin(model, 0).train()
    task = AdvPropTask(model, weight=0.5, verbose=False, **HALF)
    assert isinstance(task, ClassificationTask)
    assert task.get_trainable_module() is model and task.get_eval_model() is model
    result = task(images, target)
    assert set(result) == {'loss', 'output', 'clean_loss', 'adv_loss', 'clean_top1', 'adv_top1'}
    torch.testing.assert_close(result['output'], twin(images))
    assert result['loss'].requires_grad
    assert not result['clean_loss'].requires_grad and not result['adv_loss'].requires_grad
    clean_loss, adv_loss = result['clean_loss'].item(), result['adv_loss'].item()
    result['loss'] /= 4
    assert result['loss'].item() == pytest.approx((clean_loss + 0.5 * adv_loss) / 4)
    assert (result['clean_loss'].item(), result['adv_loss'].item()) == (clean_loss, adv_loss)
    result['loss'].backward()


def test_the_resting_route_is_split_and_validation_uses_the_main_norms():
    model, (images, target) = split_model().train(), make_batch()
    task = AdvPropTask(model, verbose=False, **HALF)
    for _ in range(2):
        task(images, target)['loss'].backward()
        assert {module.route for module in model.modules() if hasattr(module, 'route')} == {-1}
        task.get_eval_model().eval()
        with torch.no_grad():
            validated = model(images)
            torch.testing.assert_close(validated, plain_twin(model, 0).eval()(images))
            assert not torch.allclose(validated, plain_twin(model, 1).eval()(images))
            with norm_route(model, 'clean'):
                assert torch.equal(model(images), validated)
        task.get_trainable_module().train()


@pytest.mark.parametrize('eps,steps,expected_attacks', [
    (4, None, [5]), (1, None, [1]), (4, 2, [2]), ((1, 4), None, [1, 5])], ids=str)
def test_a_step_costs_its_attack_and_one_pass_over_all_images(eps, steps, expected_attacks):
    count = len(expected_attacks)
    model, (images, target) = tiny_model(num_aux=count).train(), make_batch(4, torch.float32)
    model.num_classes = CLASSES
    task = AdvPropTask(model, eps=eps, steps=steps, verbose=False, **HALF)
    forwards, backwards = [], []

    def count_passes(module, args, output):
        kind = 'train' if module.training else 'attack'
        forwards.append((kind, module[1].route, len(args[0])))
        output.register_hook(lambda gradient: backwards.append(kind))

    model.register_forward_hook(count_passes)
    result = task(images, target)
    attacks = [('attack', i, 4) for i, steps in enumerate(expected_attacks, 1) for _ in range(steps)]
    assert forwards == [*attacks, ('train', -1, 4 * (1 + count))]
    assert backwards == ['attack'] * sum(expected_attacks)
    result['loss'].backward()
    assert backwards[-1] == 'train' and len(backwards) == len(forwards)


def test_each_step_draws_a_new_attack_from_torchs_seed():
    model, (images, target) = tiny_model().eval(), make_batch(dtype=torch.float32)
    task = AdvPropTask(model, verbose=False, **HALF)
    adversary = task.adversaries[0]

    def attacked(seed):
        torch.manual_seed(seed)
        return adversary(model, images, target, 'aux'), adversary(model, images, target, 'aux')

    first, second = attacked(1)
    assert not torch.equal(first, second)
    assert all(torch.equal(*pair) for pair in zip(attacked(1), (first, second)))
    assert not torch.equal(attacked(2)[0], first)


def test_mean_and_std_default_to_those_of_the_model():
    images, target = make_batch()
    model = split_model('test_efficientnet_ap').train()
    cfg = model.pretrained_cfg
    assert cfg['mean'] != HALF['mean'] and cfg['std'] != HALF['std']  # or this test could not fail
    results = []
    for normalisation in ({}, dict(mean=cfg['mean'], std=cfg['std']), HALF, dict(std=HALF['std'])):
        task = AdvPropTask(deepcopy(model), verbose=False, **DETERMINISTIC, **normalisation)
        results.append(task(images, target)['adv_loss'])
    assert results[0] == results[1]
    assert len({result.item() for result in results}) == 3


def test_one_mean_for_all_channels_fits_any_number_of_channels():
    for in_chans in (1, 4):
        model = split_model(in_chans=in_chans).train()
        images, target = torch.rand(4, in_chans, 32, 32).double() * 2 - 1, torch.arange(4)
        result = AdvPropTask(model, mean=(0.5,), std=(0.5,), verbose=False)(images, target)
        assert result['loss'].isfinite() and result['adv_loss'] != result['clean_loss']


@pytest.mark.skipif(
    'criterion_kwargs' not in inspect.signature(ClassificationTask).parameters, reason='timm makes no losses')
def test_criterion_kwargs_choose_the_loss():
    images, target = make_batch()
    losses = [
        AdvPropTask(split_model().train(), verbose=False, **DETERMINISTIC, **HALF, **kwargs)(images, target)['loss']
        for kwargs in (
            dict(criterion=LabelSmoothingCrossEntropy(0.2)), dict(criterion_kwargs=dict(smoothing=0.2)),
            dict(criterion_kwargs={}), {})
    ]
    assert losses[0] == losses[1] != losses[2]
    torch.testing.assert_close(losses[2], losses[3])


def test_the_moving_average_follows_every_norm_and_evaluates_the_main_ones():
    model, (images, target) = split_model().train(), make_batch()
    task = AdvPropTask(model, verbose=False, **HALF)
    ema = task.setup_ema(decay=0.75)
    before = deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    task(images, target)['loss'].backward()
    optimizer.step()
    task.update_ema()
    after = model.state_dict()
    floating = [key for key, value in before.items() if value.is_floating_point()]
    expected = {key: 0.75 * before[key] + 0.25 * after[key] for key in floating}
    assert_all_close({key: ema.module.state_dict()[key] for key in floating}, expected)
    assert all(not torch.equal(before[key], after[key]) for key in floating if 'aux_bn' in key)
    with torch.no_grad():
        output = task.get_eval_model(ema=True)(images)
        torch.testing.assert_close(output, plain_twin(ema.module, 0).eval()(images))
    task(images, target)['loss'].backward()


def test_autocast_trains_in_reduced_precision():
    images, target = make_batch(dtype=torch.float32)
    losses = {}
    for enabled in (False, True):
        model = split_model(dtype=torch.float32).train()
        task = AdvPropTask(model, verbose=False, **DETERMINISTIC, **HALF)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            result = task(images, target)
        result['loss'].backward()
        losses[enabled] = result['loss'].item()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)


def test_channels_last_is_kept_and_changes_no_loss():
    images, target = make_batch()
    losses = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = split_model().train().to(memory_format=memory_format)
        task = AdvPropTask(model, steps=2, verbose=False, **DETERMINISTIC, **HALF)
        seen = []
        model.register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0]))
        losses.append(task(images.contiguous(memory_format=memory_format), target)['loss'])
        assert all(batch.is_contiguous(memory_format=memory_format) for batch in seen)
    torch.testing.assert_close(*losses)


def _assert_compiles_to_few_graphs(regime, create_model, images, target, **attack):
    torch._dynamo.reset()
    eager, compiled = (
        create_task(regime, create_model().train(), attack={**DETERMINISTIC, **HALF, **attack}, verbose=False)
        for _ in range(2))
    counter = CompileCounterWithBackend('aot_eager')
    compiled.compile(backend=counter)
    graphs = []
    for _ in range(3):
        outputs = []
        for task in (eager, compiled):
            torch.manual_seed(0)
            result = task(images, target)
            result['loss'].backward()
            task.get_eval_model().eval()
            with torch.no_grad():
                outputs.append(task.get_eval_model()(images))
            task.get_trainable_module().train()
            outputs.append(result['loss'].detach())
        graphs.append(counter.frame_count)
        torch.testing.assert_close(outputs[:2], outputs[2:])
    # The attack, the training step, validation. In Fast AdvProp the first two see batches of different sizes, so torch
    # compiles some of them once more, for any size.
    assert graphs == ([3, 3, 3] if regime == 'advprop' else [5, 7, 7])
    gradients = {name.replace('_orig_mod.', ''): value for name, value in gradients_of(compiled).items()}
    assert_all_close(gradients, gradients_of(eager))
    torch._dynamo.reset()


def test_a_compiled_task_runs_few_graphs_and_finds_the_same_numbers():
    model = tiny_model(dtype=torch.float64)
    model.num_classes = CLASSES
    _assert_compiles_to_few_graphs('advprop', lambda: deepcopy(model), *make_batch(), steps=2)
    _assert_compiles_to_few_graphs('fast-advprop', lambda: deepcopy(model), *make_batch(10))


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_compiled_timm_model_runs_few_graphs_and_finds_the_same_numbers(name):
    _assert_compiles_to_few_graphs('advprop', lambda: split_model(name), *make_batch(), steps=2)
    _assert_compiles_to_few_graphs('fast-advprop', lambda: split_model(name), *make_batch(10))


def _train_on_toy_problem(regime, images, target):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet_ap', num_classes=4)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.5  # twenty steps are few
    task = create_task(regime, model, attack=dict(eps=8, alpha=4, steps=2, **HALF), verbose=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    yield model
    for _ in range(20):
        optimizer.zero_grad()
        task(images, target)['loss'].backward()
        optimizer.step()
    yield model


def test_training_teaches_the_auxiliary_route_to_resist():
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(16) % 4
    pattern = F.interpolate(torch.randn(4, 3, 4, 4, generator=generator), 32)[target]
    images = (0.3 * pattern + 0.1 * torch.randn(16, 3, 32, 32, generator=generator)).clamp(-1, 1)
    adversary = Adversary(eps=8, alpha=2, steps=5, target='none', **HALF)

    def accuracy(model, route, attacked=True):
        torch.manual_seed(1)
        model.eval()
        with norm_route(model, route), torch.no_grad():
            correct = model(adversary(model, images, target, route) if attacked else images).argmax(dim=1) == target
        model.train()
        return correct.float().mean().item()

    before, after = (
        (accuracy(model, 'aux'), deepcopy(model.state_dict()))
        for model in _train_on_toy_problem('advprop', images, target))
    assert before[0] < 0.5 and after[0] > 0.9
    *_, model = _train_on_toy_problem('vanilla', images, target)
    assert accuracy(model, 'clean', attacked=False) > 0.9 and accuracy(model, 'clean') < 0.5

    statistics = [key for key in after[1] if 'running_' in key and 'aux_bn' not in key]
    for key in statistics:
        prefix, leaf = key.rsplit('.', 1)
        assert not torch.allclose(after[1][key], after[1][f'{prefix}.aux_bn.0.{leaf}'], rtol=1e-3)
    assert statistics


# AdvPropTask and Adversary: wrong arguments


@pytest.mark.parametrize('wrong,message', [
    (dict(weight=-1), 'weight'),
    (dict(weight=float('nan')), 'weight'),
    (dict(eps=-1), 'eps'),
    (dict(eps=float('inf')), 'eps'),
    (dict(eps=(1, -1)), 'eps'),
    (dict(eps=(1, 4)), 'num_aux=2'),
    (dict(eps=()), 'aux'),
    (dict(alpha=-1), 'alpha'),
    (dict(steps=0), 'step'),
    (dict(attack='fgsm'), 'fgsm'),
    (dict(target='least-likely'), 'least-likely'),
    (dict(norm_stats='batch'), 'batch'),
    (dict(random_start=1.5), 'random_start'),
    (dict(amp_dtype='float8'), 'float8'),
    (dict(std=(0.5, 0., 0.5)), 'std'),
    (dict(mean=(0.5, 0.5)), 'mean'),
], ids=str)
def test_a_task_refuses_wrong_arguments(wrong, message):
    model = timm.create_model('test_resnet_ap')
    with pytest.raises(ValueError, match=message):
        AdvPropTask(model, verbose=False, **wrong)


def test_a_task_refuses_a_plain_model_and_says_what_to_do():
    with pytest.raises(ValueError, match='convert_split_norm'):
        AdvPropTask(timm.create_model('test_resnet'), verbose=False)


def test_a_task_needs_one_auxiliary_norm_for_each_strength():
    model = timm.create_model('test_resnet_ap', num_aux=2)
    with pytest.raises(ValueError, match='2'):
        AdvPropTask(model, eps=4, verbose=False)
    AdvPropTask(model, eps=[1, 4], verbose=False)


@pytest.mark.parametrize('given', [{}, dict(mean=HALF['mean']), dict(std=HALF['std'])], ids=str)
def test_a_task_needs_a_normalisation(given):
    with pytest.raises(ValueError, match='mean and std'):
        AdvPropTask(tiny_model(), verbose=False, **given)
    AdvPropTask(tiny_model(), verbose=False, **HALF)


# create_task


def test_vanilla_trains_a_split_model_as_the_plain_model():
    model, (images, target) = split_model().train(), make_batch()
    twin = plain_twin(model, 0).train()
    aux_before = {key: value.clone() for key, value in model.state_dict().items() if 'aux_bn' in key}
    task = create_task('vanilla', model, verbose=False)
    assert type(task) is VanillaTask and isinstance(task, ClassificationTask)
    assert all(p.requires_grad == ('aux_bn' not in name) for name, p in model.named_parameters())
    task(images, target)['loss'].backward()
    F.cross_entropy(twin(images), target).backward()
    assert_all_close(gradients_of(model), gradients_of(twin))
    assert_all_close(plain_twin(model, 0).state_dict(), twin.state_dict())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in aux_before.items())


@pytest.mark.parametrize('resting_route', ['aux', 'split'])
def test_vanilla_puts_a_model_back_on_the_clean_route(resting_route):
    # adversarial training first, clean fine-tuning after it
    model, (images, target) = split_model().train(), make_batch()
    expected = plain_twin(model, 0).train()(images)
    set_norm_route(model, resting_route)
    result = create_task('vanilla', model, verbose=False)(images, target)
    torch.testing.assert_close(result['output'], expected)


def test_advprop_after_vanilla_trains_the_auxiliary_norms_again():
    model, (images, target) = split_model().train(), make_batch()
    model.conv1[1].weight.requires_grad_(False)  # the user's choice
    create_task('vanilla', model, verbose=False)
    create_task('advprop', model, attack=HALF, verbose=False)(images, target)['loss'].backward()
    frozen = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert frozen == {'conv1.1.weight', 'conv1.1.aux_bn.0.weight'}


def test_the_default_regime_follows_the_norms():
    for name, regime, task_type in (
            ('test_resnet_ap', 'advprop', AdvPropTask), ('test_resnet', 'vanilla', VanillaTask)):
        model = timm.create_model(name)
        assert default_regime(model) == regime
        assert type(create_task(None, model, verbose=False)) is task_type


@pytest.mark.parametrize('eps,num_aux', [(4, 1), (None, 1), ((1, 4), 2), ([2.], 1)])
def test_advprop_converts_a_plain_model(eps, num_aux):
    torch.manual_seed(0)
    model, (images, target) = timm.create_model('test_resnet', num_classes=CLASSES), make_batch(4, torch.float32)
    attack = {} if eps is None else dict(eps=eps)
    task = create_task('advprop', model, attack=dict(attack, steps=1), verbose=False)
    assert type(task) is AdvPropTask and task.get_trainable_module() is model
    assert {len(module.aux_bn) for module in model.modules() if hasattr(module, 'aux_bn')} == {num_aux}
    task(images, target)['loss'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_create_task_passes_the_criterion_and_the_attack_on():
    images, target = make_batch()
    attack = dict(eps=2, steps=1, weight=0.25, **DETERMINISTIC, **HALF)
    criterion = LabelSmoothingCrossEntropy(0.3)
    created = create_task('advprop', split_model().train(), criterion, attack, verbose=False)
    built = AdvPropTask(split_model().train(), criterion, verbose=False, **attack)
    assert created(images, target)['loss'] == built(images, target)['loss']
    assert attack == dict(eps=2, steps=1, weight=0.25, **DETERMINISTIC, **HALF)


def test_create_task_names_an_unknown_regime():
    with pytest.raises(ValueError, match='adverprop.*vanilla.*advprop'):
        create_task('adverprop', timm.create_model('test_resnet'))


# Arguments


def _parse(add_arguments, *command):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(command)


def test_the_flags_of_training_have_the_documented_defaults():
    args = _parse(add_regime_arguments)
    assert args.regime is None
    given = attack_kwargs(args)
    assert given == {}
    images = dict(mean=None, std=None)
    assert attack_settings('advprop', given) == dict(
        attack='pgd', eps=4, alpha=1, steps=None, target='random', random_start=0.8, norm='linf', norm_stats='eval',
        amp_dtype=None, weight=1, generator=None, aug_splits=1, **images)
    assert attack_settings('madry', given) == dict(
        attack='pgd', eps=4, alpha=1, steps=None, target='none', random_start=1, norm='linf', norm_stats='eval',
        amp_dtype=None, **images)
    assert attack_settings('joint', given) == dict(
        attack='pgd', eps=4, alpha=1, steps=None, target='random', random_start=0.8, norm='linf', norm_stats='eval',
        amp_dtype=None, weight=1, **images)
    assert attack_settings('fast-advprop', given) == dict(
        attack='pgd', eps=1, alpha=1, target='none', random_start=0.8, norm='linf', weight=0.5, ratio=4, **images)


def test_the_flags_of_validation_attack_nothing_by_default():
    args = _parse(add_attack_arguments)
    assert args.adv_attack == 'none'
    assert not hasattr(args, 'regime')
    kwargs = attack_kwargs(_parse(add_attack_arguments, '--adv-attack', 'pgd'))
    assert kwargs == dict(
        attack='pgd', eps=4, alpha=1, target='none', random_start=1, norm='linf', norm_stats='eval')
    Adversary(**kwargs)


def test_every_flag_of_training_reaches_the_task():
    args = _parse(
        add_regime_arguments, '--regime', 'advprop', '--adv-attack', 'gd', '--adv-eps', '1', '2.5', '--adv-alpha',
        '0.5', '--adv-steps', '3', '--adv-target', 'none', '--adv-random-start', '0.25', '--adv-weight', '0.1',
        '--adv-norm-stats', 'train', '--adv-amp-dtype', 'bfloat16')
    assert attack_kwargs(args) == dict(
        attack='gd', eps=[1, 2.5], alpha=0.5, steps=3, target='none', random_start=0.25, norm_stats='train',
        amp_dtype='bfloat16', weight=0.1)
    task = create_task(
        args.regime, timm.create_model('test_resnet_ap', num_aux=2), attack=attack_kwargs(args), verbose=False)
    assert [adversary.eps_px for adversary in task.adversaries] == [1, 2.5]
    assert {adversary.steps for adversary in task.adversaries} == {3}
    assert task.weight == 0.1


def test_one_strength_is_a_number():
    assert attack_kwargs(_parse(add_regime_arguments, '--adv-eps', '2'))['eps'] == 2
    assert attack_kwargs(_parse(add_attack_arguments, '--adv-eps', '2'))['eps'] == 2


@pytest.mark.parametrize('add_arguments', [add_regime_arguments, add_attack_arguments], ids=['train', 'validate'])
@pytest.mark.parametrize('flag,value', [
    ('--adv-eps', '-1'), ('--adv-eps', 'nan'), ('--adv-eps', 'inf'), ('--adv-eps', 'four'),
    ('--adv-alpha', '-0.5'), ('--adv-alpha', 'one'),
    ('--adv-steps', '0'), ('--adv-steps', '-3'), ('--adv-steps', '1.5'),
    ('--adv-random-start', '1.1'), ('--adv-random-start', '-0.1'), ('--adv-random-start', 'nan'),
    ('--adv-attack', 'fgsm'), ('--adv-target', 'true'), ('--adv-norm-stats', 'batch'), ('--adv-amp-dtype', 'float8'),
])
def test_a_wrong_value_ends_with_status_2_and_names_the_flag(add_arguments, flag, value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        _parse(add_arguments, flag, value)
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert f'argument {flag}' in message and value in message


@pytest.mark.parametrize('flag,value', [('--adv-weight', '-1'), ('--adv-weight', 'nan'), ('--regime', 'adverprop')])
def test_a_wrong_value_of_training_ends_with_status_2_and_names_the_flag(flag, value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        _parse(add_regime_arguments, flag, value)
    assert exit_info.value.code == 2
    assert f'argument {flag}' in capsys.readouterr().err


def test_every_regime_can_be_chosen():
    for regime in REGIMES:
        assert _parse(add_regime_arguments, '--regime', regime).regime == regime


def test_the_relative_cost_counts_attack_passes_as_two_thirds():
    for eps, expected in ((1, 1 + 1 + 2 / 3), (4, 2 + 5 * 2 / 3), ((1, 4), 3 + 6 * 2 / 3)):
        num_aux = len(eps) if isinstance(eps, tuple) else 1
        task = AdvPropTask(tiny_model(num_aux), eps=eps, verbose=False, **HALF)
        assert math.isclose(task.relative_cost(), expected)
