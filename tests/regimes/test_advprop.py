"""AdvProp: which images pass which norms, and how losses add up.

A split model is compared with independent plain timm models, one a route, that know nothing of routes.
"""
from contextlib import contextmanager
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.nn.modules.batchnorm import _BatchNorm

from tests.regimes.regime_models import (
    ALPHA,
    CLASSES,
    DETERMINISTIC,
    HALF,
    NAMES,
    STRONG,
    WEAK,
    assert_all_close,
    assert_step_equals_plain_models,
    assert_unchanged,
    gradients_of,
    hand_attack,
    make_batch,
    negative,
    percent_right,
    plain_twin,
    plain_twins,
    recorded_batches,
    snapshot,
    split_model,
    task_of,
    tiny_model,
    toy_problem,
)
from timm_advprop import AdvPropTask, norm_route, set_norm_route
from timm_advprop.norms import split_norms
from timm_advprop.regimes import Attack, AugmentedView, GaussianNoise, Source

pytestmark = pytest.mark.usefixtures('one_thread')


def attacks_of(strengths, **settings):
    return [Attack(eps_px=eps, alpha_px=ALPHA, **DETERMINISTIC, **settings) for eps in strengths]


# The mathematics


def _mixup_targets(images, target):
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1., label_smoothing=0.1, num_classes=CLASSES)
    images, target = mixup(images.clone(), target)
    return images, target.to(images.dtype)


# The criterion, the same by hand, and what mixes the batch. The attack is by softmax but for binary mixed labels.
CRITERIA = {
    'default': (None, F.cross_entropy, None),
    'smoothing': (LabelSmoothingCrossEntropy(0.1), LabelSmoothingCrossEntropy(0.1), None),
    'mixup': (SoftTargetCrossEntropy(), lambda x, y: -(y * x.log_softmax(-1)).sum(-1).mean(), _mixup_targets),
    'bce': (BinaryCrossEntropy(smoothing=0.1), BinaryCrossEntropy(smoothing=0.1), None),
    'bce-mixup': (BinaryCrossEntropy(), F.binary_cross_entropy_with_logits, _mixup_targets),
    'jsd': (JsdCrossEntropy(num_splits=3), JsdCrossEntropy(num_splits=3), None),
}


def _assert_step_of_attacks(name, strengths, criterion, reference, images, target, norm_stats, weight,
                            attack_loss=F.cross_entropy):
    model = split_model(name, num_aux=len(strengths)).train()
    twins = plain_twins(model)
    attacks = attacks_of(strengths, norm_stats=norm_stats)
    batches = [images, *(
        hand_attack(twin, images, target, attack.eps_px, attack.num_steps, training=norm_stats == 'train',
                    loss=attack_loss)
        for twin, attack in zip(twins[1:], attacks)
    )]
    result = AdvPropTask(model, criterion, attacks, weight=weight, verbose=False, **HALF)(images, target)
    parts, weights = [(batch, target) for batch in batches], (1., *(weight for _ in attacks))
    losses = assert_step_equals_plain_models(model, twins, parts, weights, result, reference)
    torch.testing.assert_close(result['clean_loss'], losses[0])
    torch.testing.assert_close(result['adv_loss'], sum(losses[1:]))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(batches[0], batches[1])


@pytest.mark.parametrize('name', CRITERIA)
def test_a_step_equals_a_plain_model_for_each_route_for_any_loss(name):
    images, target = make_batch(6)
    criterion, reference, mix = CRITERIA[name]
    if mix is not None:
        images, target = mix(images, target)
    elif isinstance(criterion, JsdCrossEntropy):
        target = target[:2].repeat(3)  # clean images, then their augmented splits
    _assert_step_of_attacks('test_resnet_ap', [STRONG], criterion, reference, images, target, 'eval', 1.,
                            attack_loss=reference if name == 'bce-mixup' else F.cross_entropy)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('strengths,weight,norm_stats', [
    ([WEAK], 0.3, 'eval'), ([WEAK, STRONG], 2., 'eval'), ([STRONG], 1., 'train')], ids=str)
def test_a_step_equals_a_plain_model_for_each_route_for_any_attack(name, strengths, weight, norm_stats):
    _assert_step_of_attacks(name, strengths, None, F.cross_entropy, *make_batch(6), norm_stats, weight)


def test_weight_zero_trains_the_shared_and_main_parameters_as_without_an_attack():
    model, (images, target) = split_model(), make_batch()
    twin = plain_twin(model, 0).train()
    F.cross_entropy(twin(images), target).backward()
    AdvPropTask(model.train(), weight=0, verbose=False, **HALF)(images, target)['loss'].backward()
    gradients = gradients_of(model)
    assert all((gradients.pop(name) == 0).all() for name in list(gradients) if 'aux_bn' in name)
    assert_all_close(gradients, gradients_of(twin), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize('weight', [1., 0.3])
def test_fine_grained_advprop_has_norms_for_clean_augmented_and_adversarial_images(weight):
    model = split_model(num_aux=2).train()
    twins = plain_twins(model)
    (clean, target), (augmented, _) = make_batch(6, seed=1), make_batch(6, seed=2)
    attack, = attacks_of([STRONG])
    adversarial = hand_attack(twins[2], clean, target, STRONG, attack.num_steps)
    task = AdvPropTask(model, sources=[AugmentedView(1), attack], weight=weight, verbose=False, **HALF)
    result = task(torch.cat([clean, augmented]), target.repeat(2))  # as timm's loader delivers --aug-splits 2
    parts = [(clean, target), (augmented, target), (adversarial, target)]
    losses = assert_step_equals_plain_models(model, twins, parts, (1, 1, weight), result)
    for name, loss in zip(('clean_loss', 'aug_loss', 'adv_loss'), losses):
        torch.testing.assert_close(result[name], loss)
    assert {'clean_top1', 'aug_top1', 'adv_top1'} <= set(result) and len(result['output']) == 6
    assert task.relative_cost() == pytest.approx(3 + 5 * 2 / 3)


def test_all_kinds_of_sources_together_have_a_norm_each_in_their_order():
    # three views of other images with other labels, so that a part in the wrong place is seen
    model = split_model(num_aux=5).train()
    twins = plain_twins(model)
    views = [make_batch(4, seed=seed) for seed in (1, 2, 3)]
    (clean, target), first, second = views
    weak, strong = attacks_of([WEAK, STRONG])
    adversarial = [hand_attack(twin, clean, target, attack.eps_px, attack.num_steps)
                   for twin, attack in ((twins[1], strong), (twins[4], weak))]
    sources = [strong, AugmentedView(2), AugmentedView(1), weak, negative]
    task = AdvPropTask(model, sources=sources, weight=0.25, verbose=False, **HALF)
    parts = [(clean, target), (adversarial[0], target), second, first, (adversarial[1], target),
             negative(None, clean, target)]
    by_norm, (stem, norm, *_) = [], model.conv1
    norm.register_forward_pre_hook(lambda module, args: by_norm.append((module.route, args[0].detach())))
    with recorded_batches(model) as batches:
        result = task(*(torch.cat(values) for values in zip(*views)))
    for batch, (images, _) in zip(batches[-1].chunk(6), parts, strict=True):
        torch.testing.assert_close(batch, images, rtol=0, atol=1e-12)
    # the strong attack passes norm 1, the weak one norm 4, and all parts together the norms in order
    assert [route for route, _ in by_norm] == [1] * strong.num_steps + [4] * weak.num_steps + [-1]
    torch.testing.assert_close(by_norm[-1][1], stem(torch.cat([images for images, _ in parts])))

    with torch.no_grad():
        outputs = [deepcopy(twin)(images) for twin, (images, _) in zip(twins, parts)]
    losses = assert_step_equals_plain_models(model, twins, parts, (1, 0.25, 1, 1, 0.25, 0.25), result)
    top1 = [percent_right(output, labels) for output, (_, labels) in zip(outputs, parts)]
    torch.testing.assert_close(result['output'].detach(), outputs[0])
    for name, members in (('clean', [0]), ('aug', [2, 3]), ('adv', [1, 4, 5])):
        torch.testing.assert_close(result[f'{name}_loss'], sum(losses[i] for i in members))
        assert result[f'{name}_top1'].item() == pytest.approx(sum(top1[i] for i in members) / len(members))


def test_images_of_several_views_are_equal_parts():
    task = AdvPropTask(split_model(num_aux=1), sources=[AugmentedView()], verbose=False, **HALF)
    with pytest.raises(ValueError, match='7 images are no 2 equal parts'):
        task(*make_batch(7))


def test_each_norm_sees_its_part_of_the_batch():
    model, (images, target) = split_model(num_aux=3).train(), make_batch(4)
    views = torch.cat([images, images * 0.5])
    task = AdvPropTask(model, sources=[AugmentedView(), *attacks_of([WEAK, STRONG])], verbose=False, **HALF)
    first = model.conv1[1]
    momentum, before = first.momentum, [norm.running_mean.clone() for norm in (first, *first.aux_bn)]
    with recorded_batches(first) as batches:
        task(views, target.repeat(2))
    # only the training pass moves statistics, each norm's by its part
    for norm, part, old in zip((first, *first.aux_bn), batches[-1].chunk(4), before, strict=True):
        torch.testing.assert_close(norm.running_mean, (1 - momentum) * old + momentum * part.mean(dim=(0, 2, 3)))
    for split in split_norms(model):
        assert [int(norm.num_batches_tracked) for norm in (split, *split.aux_bn)] == [1] * 4


def test_gradient_flows_through_the_model_and_not_through_the_images():
    model, (images, target) = split_model().train(), make_batch()
    twins, scale = plain_twins(model), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    result = AdvPropTask(model, sources=lambda model, images, target: (images * scale, target), verbose=False, **HALF)(
        images, target)
    assert_step_equals_plain_models(model, twins, [(images, target), (images * 0.5, target)], (1, 1), result)
    assert scale.grad is None


# What a step costs, and what is said of it


@pytest.mark.parametrize('strengths,steps,expected_attacks', [
    ([4], None, [5]), ([1], None, [1]), ([4], 2, [2]), ([1, 4], None, [1, 5])], ids=str)
def test_a_step_costs_its_attack_and_one_pass_over_all_images(strengths, steps, expected_attacks):
    count = len(expected_attacks)
    model, (images, target) = tiny_model(num_aux=count).train(), make_batch(4, torch.float32)
    sources = [Attack(eps_px=eps, steps=steps) for eps in strengths]
    task = AdvPropTask(model, sources=sources, verbose=False, **HALF)
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


@pytest.mark.parametrize('sources, cost', [
    ([Attack(eps_px=1)], 1 + 1 + 2 / 3),
    ([Attack(eps_px=4)], 2 + 5 * 2 / 3),
    ([Attack(eps_px=1), Attack(eps_px=4)], 3 + 6 * 2 / 3),
    ([AugmentedView(), Attack(eps_px=4, steps=2)], 3 + 2 * 2 / 3),
    ([GaussianNoise()], 2),
    ([negative, GaussianNoise()], 3),
])
def test_the_relative_cost_counts_attack_passes_as_two_thirds(sources, cost):
    task = AdvPropTask(tiny_model(len(sources)), sources=sources, verbose=False, **HALF)
    assert task.relative_cost() == pytest.approx(cost)


def test_the_task_tells_its_sources():
    sources = [AugmentedView(), Attack(eps_px=2, target='none'), GaussianNoise(eps_px=8), negative]
    task = AdvPropTask(tiny_model(4), sources=sources, weight=0.5, verbose=False, **HALF)
    assert task.describe() == (
        'advprop, augmented images; PGD-3, eps 2/255, alpha 1/255, untargeted; Gaussian noise, std 8/255; images of '
        'negative, adversarial loss × 0.5')


def test_a_source_of_the_users_own_class_says_its_part_its_view_and_its_weight():
    class Mirrored(Source):
        part, view, weight = 'mirror', 1, 3.

        def __call__(self, model, images, target):
            return images.flip(3), target

        def describe(self):
            return 'mirrored images'

        def relative_cost(self):
            return 0.5

    model = split_model(num_aux=1).train()
    twins, (images, target), (others, labels) = plain_twins(model), make_batch(4), make_batch(4, seed=2)
    task = AdvPropTask(model, sources=Mirrored(), weight=0.1, verbose=False, **HALF)
    result = task(torch.cat([images, others]), torch.cat([target, labels]))
    losses = assert_step_equals_plain_models(
        model, twins, [(images, target), (others.flip(3), labels)], (1, 3), result)
    torch.testing.assert_close(result['mirror_loss'], losses[1])
    assert 'mirror_top1' in result and 'adv_loss' not in result
    assert task.relative_cost() == 2.5 and 'mirrored images' in task.describe()


# Rule 8 for any source: what fails leaves the model as it was


@pytest.mark.parametrize('failing', [1, 2])
def test_routes_modes_and_gradients_are_restored_where_a_source_fails(failing):
    def fail(model, images, target):
        assert {norm.route for norm in split_norms(model)} == {failing}
        raise RuntimeError('out of memory')

    attack, = attacks_of([STRONG])
    sources = [fail, attack] if failing == 1 else [attack, fail]
    model, (images, target) = split_model(num_aux=2).train(), make_batch()
    model.layer1.eval()
    model.conv1[1].weight.requires_grad_(False)
    task = AdvPropTask(model, sources=sources, verbose=False, **HALF)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before, images_before, target_before = snapshot(model), images.clone(), target.clone()
    with pytest.raises(RuntimeError, match='out of memory'):
        task(images, target)
    assert_unchanged(model, before)
    assert torch.equal(images, images_before) and torch.equal(target, target_before)
    assert {norm.route for norm in split_norms(model)} == {0}


def test_a_step_writes_no_gradient_before_its_backward_pass():
    model, (images, target) = split_model(num_aux=3).train(), make_batch()
    sources = [*attacks_of([WEAK]), GaussianNoise(), negative]
    AdvPropTask(model, sources=sources, verbose=False, **HALF)(images, target)
    assert not gradients_of(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


# Effect


def _train_on_toy_problem(regime, images, target):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet_ap', num_classes=4)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.5  # twenty steps are few
    task = task_of(regime, model, adv_eps=8., adv_alpha=4., adv_steps=2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    yield model
    for _ in range(20):
        optimizer.zero_grad()
        task(images, target)['loss'].backward()
        optimizer.step()
    yield model


@contextmanager
def _evaluated(model, route):
    model.eval()
    with norm_route(model, route), torch.no_grad():
        yield
    model.train()


def test_training_teaches_the_auxiliary_route_to_resist():
    images, target = toy_problem()
    attack = Attack(eps_px=8, alpha_px=2, steps=5, target='none', **HALF)

    def accuracy(model, route, attacked=True):
        torch.manual_seed(1)
        with _evaluated(model, route):
            return percent_right(model(attack(model, images, target)[0] if attacked else images), target)

    before, after = (
        (accuracy(model, 'aux'), deepcopy(model.state_dict()))
        for model in _train_on_toy_problem('advprop', images, target))
    assert before[0] < 50 and after[0] > 90
    *_, model = _train_on_toy_problem('vanilla', images, target)
    assert accuracy(model, 'main', attacked=False) > 90 and accuracy(model, 'main') < 50

    statistics = [key for key in after[1] if 'running_' in key and 'aux_bn' not in key]
    for key in statistics:
        prefix, leaf = key.rsplit('.', 1)
        assert not torch.allclose(after[1][key], after[1][f'{prefix}.aux_bn.0.{leaf}'], rtol=1e-3)
    assert statistics


# Wrong arguments


@pytest.mark.parametrize('wrong,message', [
    (dict(weight=-1), 'weight'),
    (dict(weight=float('nan')), 'weight'),
    (dict(sources=attacks_of([1, 4])), 'num_aux=2'),
    (dict(sources=[AugmentedView(), Attack()]), 'num_aux=2'),
    (dict(sources=()), 'aux'),
    (dict(std=(0.5, 0., 0.5)), 'std'),
    (dict(mean=(0.5, 0.5)), 'mean'),
], ids=str)
def test_a_task_refuses_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        AdvPropTask(timm.create_model('test_resnet_ap'), verbose=False, **wrong)


def test_a_task_refuses_a_plain_model_and_says_what_to_do():
    with pytest.raises(ValueError, match='convert_split_norm'):
        AdvPropTask(timm.create_model('test_resnet'), verbose=False)


def test_a_task_needs_one_auxiliary_norm_for_each_source():
    model = timm.create_model('test_resnet_ap', num_aux=2)
    with pytest.raises(ValueError, match='num_aux=1'):
        AdvPropTask(model, sources=Attack(), verbose=False)
    AdvPropTask(model, sources=attacks_of([1, 4]), verbose=False)
    AdvPropTask(model, sources=(Attack(), negative), verbose=False)


@pytest.mark.parametrize('given', [{}, dict(mean=HALF['mean']), dict(std=HALF['std'])], ids=str)
def test_a_task_needs_a_normalisation(given):
    with pytest.raises(ValueError, match='mean and std'):
        AdvPropTask(tiny_model(), verbose=False, **given)
    AdvPropTask(tiny_model(), verbose=False, **HALF)


def test_a_task_takes_the_auxiliary_norms_into_training_again():
    model = split_model()
    set_norm_route(model, 'aux')
    for norm in split_norms(model):
        norm.aux_bn.requires_grad_(False)
    AdvPropTask(model, verbose=False, **HALF)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {norm.route for norm in split_norms(model)} == {0}
