"""AdvProp with more kinds of images: augmented ones, and those of any generator."""
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from regime_models import (
    ALPHA,
    CLASSES,
    DETERMINISTIC,
    HALF,
    STRONG,
    assert_all_close,
    gradients_of,
    hand_attack,
    make_batch,
    plain_twin,
    split_model,
)

from timm_advprop import AdvPropTask
from timm_advprop.errors import InputError
from timm_advprop.norms import num_aux_norms
from timm_advprop.regimes import GENERATORS, GaussianNoise, create_task, default_steps, images_of_aux_norms
from timm_advprop.regimes.generators import create_generators

pytestmark = pytest.mark.usefixtures('one_thread')


def negative(images, target):
    """A generator that is as easy to check as to write: negatives, with the next label."""
    return -images, (target + 1) % CLASSES


def _assert_step_equals_plain_models(model, parts, weights, result):
    """The step's gradients are those of a plain model for each part of the batch, through the norms of its route."""
    result['loss'].backward()
    twins = [plain_twin(model, route).train() for route in range(len(parts))]
    for twin in twins:  # the step has moved the statistics, which gradients in train mode do not depend on
        twin.zero_grad()
    losses = [F.cross_entropy(twin(images), target) for twin, (images, target) in zip(twins, parts)]
    sum(weight * loss for weight, loss in zip(weights, losses)).backward()
    torch.testing.assert_close(result['loss'].detach(), sum(w * loss.detach() for w, loss in zip(weights, losses)))
    gradients = [gradients_of(twin) for twin in twins]
    expected, norms = {}, {name.split('aux_bn.')[0] for name in model.state_dict() if 'aux_bn.' in name}
    for name in gradients[0]:
        prefix, leaf = name.rsplit('.', 1)
        if f'{prefix}.' in norms:
            expected[name] = gradients[0][name]
            expected.update({f'{prefix}.aux_bn.{i}.{leaf}': values[name] for i, values in enumerate(gradients[1:])})
        else:
            expected[name] = sum(values[name] for values in gradients)
    assert_all_close(gradients_of(model), expected, rtol=1e-7, atol=1e-10)
    return losses


@pytest.mark.parametrize('weight', [1., 0.3])
def test_fine_grained_advprop_has_norms_for_clean_augmented_and_adversarial_images(weight):
    model = split_model(num_aux=2).train()
    (clean, target), (augmented, _) = make_batch(6, seed=1), make_batch(6, seed=2)
    adversarial = hand_attack(plain_twin(model, 2), clean, target, STRONG, default_steps(STRONG))
    task = AdvPropTask(
        model, eps=STRONG, alpha=ALPHA, aug_splits=2, weight=weight, verbose=False, **DETERMINISTIC, **HALF)
    result = task(torch.cat([clean, augmented]), target.repeat(2))  # as timm's loader delivers --aug-splits 2
    parts = [(clean, target), (augmented, target), (adversarial, target)]
    losses = _assert_step_equals_plain_models(model, parts, (1, 1, weight), result)
    for name, loss in zip(('clean_loss', 'aug_loss', 'adv_loss'), losses):
        torch.testing.assert_close(result[name], loss.detach())
    assert {'clean_top1', 'aug_top1', 'adv_top1'} <= set(result) and len(result['output']) == 6
    assert task.relative_cost() == pytest.approx(3 + 5 * 2 / 3)


def test_create_task_gives_a_plain_model_a_norm_for_each_kind_of_images():
    for attack, num_aux in ((dict(aug_splits=2), 2), (dict(aug_splits=3, eps=[1, 4]), 4), (dict(eps=[1, 2, 4]), 3),
                            (dict(generator='gaussian-noise', eps=[4, 8]), 2), (dict(generator=negative), 1),
                            (dict(generator='test_generators:negative', eps=[4, 8]), 1)):
        model = timm.create_model('test_resnet', num_classes=CLASSES)
        create_task('advprop', model, attack=attack, verbose=False)
        assert num_aux_norms(model) == num_aux, attack


@pytest.mark.parametrize('generator', [negative, 'test_generators:negative'], ids=['callable', 'name'])
def test_a_generators_images_and_labels_train_the_auxiliary_norm(generator):
    model, (images, target) = split_model().train(), make_batch()
    task = AdvPropTask(model, generator=generator, weight=0.5, verbose=False, **HALF)
    result = task(images, target)
    _assert_step_equals_plain_models(model, [(images, target), negative(images, target)], (1, 0.5), result)
    assert task.relative_cost() == 2


def test_gaussian_noise_has_its_strength_and_stays_in_the_range_of_pixels():
    torch.manual_seed(0)
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    to_units = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    pixels = torch.full((8, 3, 64, 64), 0.5)
    images = (pixels - to_units[0]) / to_units[1]
    target = torch.arange(8)
    noisy, labels = GaussianNoise(8, mean, std)(images, target)
    change = (noisy * to_units[1] + to_units[0] - pixels) * 255
    assert labels is target
    for channel in change.unbind(1):
        assert channel.mean().abs() < 0.2 and channel.std().item() == pytest.approx(8, rel=0.02)
    edge = (torch.ones(1, 3, 8, 8) - to_units[0]) / to_units[1]
    noisy, _ = GaussianNoise(8, mean, std)(edge, target)
    assert (noisy <= edge).all() and (noisy < edge).any()
    erased = torch.full((1, 3, 8, 8), 9.)  # random erasing leaves values out of the range
    assert torch.isfinite(GaussianNoise(8, mean, std)(erased, target)[0]).all()
    assert (GaussianNoise(8, mean, std)(erased, target)[0] <= 9).all()


def test_noise_of_several_strengths_has_a_norm_each():
    torch.manual_seed(0)
    model, (images, target) = split_model(num_aux=2).train(), make_batch()
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    result = create_task('advprop', model, attack=dict(HALF, generator='gaussian-noise', eps=[2, 16]), verbose=False)(
        images * 0.5, target)
    weak, strong = ((part - images * 0.5).std().item() * 255 / 2 for part in seen[0].chunk(3)[1:])
    assert weak == pytest.approx(2, rel=0.05) and strong == pytest.approx(16, rel=0.05)
    assert math.isfinite(result['loss'].item())


@pytest.mark.parametrize('name, words', [
    ('salt', 'Unknown generator .salt.: give gaussian-noise, or package.module:name'),
    ('no_such_package:noise', 'Cannot import the generator no_such_package:noise'),
    ('test_generators:nothing', 'Cannot import .*nothing'),
    ('test_generators:CLASSES', 'cannot be called'),
])
def test_a_generator_that_is_not_there_is_named(name, words):
    with pytest.raises(ValueError, match=words):
        create_generators(name, [4], **HALF)


@pytest.mark.parametrize('generator', [
    lambda images, target: (images[:3], target), lambda images, target: (images, target[:3]),
    lambda images, target: images], ids=['images', 'targets', 'no pair'])
def test_a_generator_must_return_as_many_images_and_targets(generator):
    task = AdvPropTask(split_model().train(), generator=generator, verbose=False, **HALF)
    with pytest.raises(InputError, match='a pair of 6 images and as many targets'):
        task(*make_batch())


def test_a_generator_may_work_in_place():
    model, (images, target) = split_model().train(), make_batch()
    expected = plain_twin(model, 0).train()(images)

    def blacken(images, target):
        return images.zero_(), target.zero_()

    result = AdvPropTask(model, generator=blacken, verbose=False, **HALF)(images, target)
    torch.testing.assert_close(result['output'], expected)
    assert images.any() and target.any()


@pytest.mark.parametrize('attack, words', [
    (dict(generator='gaussian-noise', steps=3), 'leave steps out'),
    (dict(generator='gaussian-noise', eps=-1), 'eps must be at least 0'),
    (dict(generator='.a:b'), 'Cannot import the generator .a:b'),
])
def test_what_a_generator_has_no_use_for_is_refused(attack, words):
    with pytest.raises(ValueError, match=words):
        create_task('advprop', timm.create_model('test_resnet'), attack=attack, verbose=False)


def test_an_attack_on_a_plain_model_needs_a_regime():
    with pytest.raises(ValueError, match='say which regime'):
        create_task(None, timm.create_model('test_resnet'), attack=dict(eps=4), verbose=False)
    create_task('vanilla', timm.create_model('test_resnet'), attack=dict(eps=4), verbose=False)  # of a shared recipe


def test_what_auxiliary_norms_were_trained_on_is_told():
    assert images_of_aux_norms('vanilla', {}) == images_of_aux_norms('madry', {}) == []
    attack = dict(attack='pgd', target='random', random_start=0.8, alpha_px=1)
    assert images_of_aux_norms('advprop', dict(aug_splits=2, eps=[1, 4])) == [
        dict(trained_on='augmented images'),
        dict(trained_on='adversarial images', eps_px=1, steps=1, **attack),
        dict(trained_on='adversarial images', eps_px=4, steps=5, **attack),
    ]
    assert images_of_aux_norms('advprop', dict(norm='l2', eps=200, steps=2))[0]['norm'] == 'l2'
    assert images_of_aux_norms('advprop', dict(generator='gaussian-noise', eps=8)) == [
        dict(trained_on='gaussian-noise', eps_px=8)]
    assert images_of_aux_norms('advprop', dict(generator=negative)) == [dict(trained_on='images of negative')]
    assert images_of_aux_norms('fast-advprop', {}) == [dict(
        trained_on='adversarial images', eps_px=1, steps=1, alpha_px=1, attack='pgd', target='none', random_start=0.8)]
    assert set(GENERATORS) == {'gaussian-noise'}
