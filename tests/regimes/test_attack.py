"""`Attack` as a source: which norms it passes, its strength in pixels, its precision, what it draws."""
from dataclasses import replace

import pytest
import timm
import torch

from tests.regimes.regime_models import (
    ALPHA,
    CLASSES,
    DETERMINISTIC,
    HALF,
    NAMES,
    STRONG,
    assert_unchanged,
    hand_attack,
    make_batch,
    plain_twin,
    snapshot,
    split_model,
    tiny_model,
)
from timm_advprop import AdvPropTask, norm_route, set_norm_route
from timm_advprop.regimes import Attack

pytestmark = pytest.mark.usefixtures('one_thread')
THREE_STEPS = Attack(eps_px=STRONG, alpha_px=ALPHA, steps=3, **DETERMINISTIC, **HALF)


def attacked(attack, model, images, target, route='aux'):
    with norm_route(model, route):
        adversarial, labels = attack(model, images, target)
    assert labels is target
    return adversarial


# Routes


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
@pytest.mark.parametrize('route', [0, 1, 2])
def test_an_attack_passes_the_norms_of_the_models_route(name, norm_stats, route):
    model, (images, target) = split_model(name, num_aux=2).train(), make_batch()
    set_norm_route(model, route)
    before = snapshot(model)
    adv, _ = replace(THREE_STEPS, norm_stats=norm_stats)(model, images, target)
    by_route = [
        hand_attack(plain_twin(model, i), images, target, STRONG, 3, training=norm_stats == 'train')
        for i in range(3)
    ]
    torch.testing.assert_close(adv, by_route[route], rtol=0, atol=1e-12)
    assert not any(torch.equal(by_route[route], by_route[i]) for i in range(3) if i != route)
    assert_unchanged(model, before)


def test_batch_statistics_and_running_statistics_give_different_attacks():
    model, (images, target) = split_model(), make_batch()
    by_stats = [attacked(replace(THREE_STEPS, steps=1, norm_stats=stats), model, images, target)
                for stats in ('eval', 'train')]
    assert not torch.equal(*by_stats)


def test_a_plain_model_may_be_attacked():
    model, (images, target) = split_model(), make_batch()
    twin = plain_twin(model, 0).train()
    before = snapshot(twin)
    adv, _ = replace(THREE_STEPS, steps=2)(twin, images, target)
    torch.testing.assert_close(adv, hand_attack(twin, images, target, STRONG, 2), rtol=0, atol=1e-12)
    assert_unchanged(twin, before)


@pytest.mark.parametrize('kind', ['pgd', 'ifgsm', 'gd'])
def test_the_kind_says_which_attack_it_is(kind):
    model, (images, target) = split_model(), make_batch()
    settings = dict(eps_px=ALPHA, alpha_px=ALPHA, steps=3, target='none', **HALF)
    start = dict(random_start=1.) if kind == 'ifgsm' else dict(random_start=0.)
    adv = attacked(Attack(kind=kind, **settings, **start), model, images, target)
    radius = STRONG if kind == 'gd' else ALPHA  # without a projection three steps leave a ball of one
    expected = hand_attack(plain_twin(model, 1), images, target, radius, 3)
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-12)


# Strength


@pytest.mark.parametrize('eps,steps', [
    (0, 1), (0.5, 1), (1, 1), (1.5, 3), (2, 3), (3, 4), (4, 5), (4., 5), (7.2, 9), (16, 17)])
def test_default_steps_are_the_papers(eps, steps):
    assert Attack(eps_px=eps).num_steps == steps
    assert Attack(eps_px=eps, steps=7).num_steps == 7


@pytest.mark.parametrize('eps', [1, 4, 7.5])
@pytest.mark.parametrize('kind', ['pgd', 'ifgsm', 'gd'])
@pytest.mark.parametrize('mean,std', [
    (HALF['mean'], HALF['std']),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.1, 0.5, 0.9), (0.02, 0.3, 1.5)),
    ((0.5,), (0.25,)),
], ids=str)
def test_strength_is_in_pixels_and_images_stay_images(mean, std, kind, eps):
    std_, mean_ = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (std, mean))
    pixels = make_batch(dtype=torch.float64)[0] / 2 + 0.5
    images, target = ((pixels - mean_) / std_).float(), make_batch()[1]
    adv = attacked(Attack(eps_px=eps, steps=3, kind=kind, mean=mean, std=std), tiny_model(), images, target)
    assert adv.dtype == images.dtype and not adv.requires_grad
    perturbation = (adv.double() - images.double()) * std_ * 255
    reach = eps if kind != 'gd' else eps + 3
    expected_reach = min(eps, 3) if kind == 'ifgsm' else eps  # three steps of one pixel
    rounding = 1e-5 * (1 + (mean_ / std_).abs().max().item())
    assert 0.8 * expected_reach < perturbation.abs().max() <= reach + rounding
    adv_pixels = adv.double() * std_ + mean_
    assert adv_pixels.min() >= -rounding and adv_pixels.max() <= 1 + rounding


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize('convert', ['task', 'images'])
def test_strength_and_bounds_are_not_rounded_to_the_type_of_a_task_or_its_images(dtype, convert):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    std_, mean_ = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (std, mean))
    pixels = torch.rand(8, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = pixels.mul(1.4).sub(0.2).clamp(0, 1)
    images, target = ((pixels - mean_) / std_).float(), torch.arange(8) % CLASSES
    model = tiny_model()
    task = AdvPropTask(tiny_model(), sources=Attack(eps_px=4, steps=5), mean=mean, std=std, verbose=False)
    if convert == 'task':
        task.to(dtype)
    else:
        model, images = model.to(dtype), images.to(dtype)
    adv = attacked(task.sources[0], model, images, target)
    assert adv.dtype == images.dtype
    assert 2 < ((adv.double() - images.double()) * std_ * 255).abs().max() <= 4 * (1 + 1e-5)
    adv_pixels, pixels = adv.double() * std_ + mean_, images.double() * std_ + mean_
    assert (adv_pixels >= pixels.clamp(max=0) - 1e-5).all() and (adv_pixels <= pixels.clamp(min=1) + 1e-5).all()


def test_l2_strength_is_the_length_of_a_whole_images_perturbation_in_pixels():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    std_, mean_ = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (std, mean))
    images = (torch.full((4, 3, 16, 16), 0.5).double() - mean_) / std_
    model, target = tiny_model(dtype=torch.float64), torch.arange(4)
    settings = dict(norm='l2', eps_px=200, mean=mean, std=std, **DETERMINISTIC)
    for alpha, steps, length in ((50, 1, 50), (150, 4, 200)):
        adv = attacked(Attack(alpha_px=alpha, steps=steps, **settings), model, images, target)
        lengths = ((adv - images) * std_ * 255).flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full((4,), length).double())


# Precision


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=str)
def test_a_model_of_another_type_is_attacked_in_its_type(dtype):
    model, (images, target) = tiny_model(dtype=dtype), make_batch(dtype=dtype)
    attack = Attack(eps_px=STRONG, alpha_px=ALPHA, steps=5)
    task = AdvPropTask(model, sources=attack, dtype=dtype, verbose=False, **HALF)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    result = task(images, target)
    assert all(batch.dtype == dtype for batch in seen) and result['loss'].isfinite()
    clean, adv = seen[-1].chunk(2)
    assert torch.equal(clean, images)
    assert 0 < (adv.double() - images.double()).abs().max() <= STRONG / 255 / 0.5


@pytest.mark.parametrize('amp_dtype', ['bfloat16', 'float16', 'float32', None], ids=str)
@pytest.mark.parametrize('caller', [None, torch.bfloat16], ids=str)
def test_amp_dtype_is_the_precision_of_the_attack_alone(amp_dtype, caller):
    model, (images, target) = tiny_model(), make_batch(dtype=torch.float32)
    task = AdvPropTask(model, sources=Attack(amp_dtype=amp_dtype, steps=2), verbose=False, **HALF)
    precision = []
    model[0].register_forward_hook(lambda module, args, output: precision.append(output.dtype))
    with torch.autocast('cpu', dtype=caller, enabled=caller is not None):
        adv = attacked(task.sources[0], model, images, target)
        attack_precision = set(precision)
        precision.clear()
        task(images, target)['loss'].backward()
    default = caller or torch.float32
    named = getattr(torch, amp_dtype) if amp_dtype else default
    assert attack_precision == {named}
    assert precision == [named] * 2 + [default]
    assert adv.dtype == torch.float32
    assert 0 < (adv - images).abs().max() <= 4 / 255 / 0.5
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


# Random draws


def test_random_targets_are_wrong_labels_that_the_attack_moves_towards():
    model, (images, target) = split_model(), make_batch(16)
    adv = attacked(replace(THREE_STEPS, target='random'), model, images, target)
    twin = plain_twin(model, 1)
    towards = [  # one label for all steps
        hand_attack(twin, images, torch.full_like(target, label), STRONG, 3, sign=-1) for label in range(CLASSES)]
    found = [
        {label for label in range(CLASSES) if torch.allclose(adv[i], towards[label][i], rtol=0, atol=1e-12)}
        for i in range(len(images))
    ]
    assert all(len(labels) == 1 and target[i].item() not in labels for i, labels in enumerate(found))
    assert len(set.union(*found)) > 2


def test_one_attack_is_for_models_of_different_numbers_of_classes():
    images, target = make_batch(32, torch.float32)
    attack = Attack(steps=1, **HALF)
    for num_classes in (10, 3, 2):
        attacked(attack, timm.create_model('test_resnet_ap', num_classes=num_classes), images, target % num_classes)


@pytest.mark.parametrize('probability', [0., 0.5, 1.])
def test_each_image_starts_at_a_random_point_with_the_given_probability(probability):
    images = torch.zeros(400, 3, 8, 8)
    attack = Attack(eps_px=8, alpha_px=0, steps=1, random_start=probability, **HALF)
    moved = (attacked(attack, tiny_model(), images, torch.arange(400) % CLASSES) != 0).flatten(1).any(dim=1)
    assert moved.float().mean().item() == pytest.approx(probability, abs=0.1)  # 4 standard deviations


def test_each_call_draws_a_new_attack_from_torchs_seed():
    model, (images, target) = tiny_model().eval(), make_batch(dtype=torch.float32)
    attack = AdvPropTask(model, verbose=False, **HALF).sources[0]

    def twice(seed):
        torch.manual_seed(seed)
        return attacked(attack, model, images, target), attacked(attack, model, images, target)

    first, second = twice(1)
    assert not torch.equal(first, second)
    assert all(torch.equal(*pair) for pair in zip(twice(1), (first, second)))
    assert not torch.equal(twice(2)[0], first)


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode], ids=['no_grad', 'inference_mode'])
@pytest.mark.parametrize('target_mode', ['random', 'none'])
@pytest.mark.parametrize('within', [False, True])
def test_validation_code_may_attack_where_gradients_are_off(context, target_mode, within):
    model, (images, target) = tiny_model().eval(), make_batch(dtype=torch.float32)
    attack = Attack(steps=2, target=target_mode, **HALF)
    torch.manual_seed(3)
    expected = attacked(attack, model, images, target)
    with context():
        if within:  # as a loader's collate does
            images, target = images.clone(), target.clone()
        torch.manual_seed(3)
        adv = attacked(attack, model, images, target)
    assert torch.equal(adv, expected)
