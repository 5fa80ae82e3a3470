"""The pyramid attack: against autograd, against its closed-form optimum, and in its bounds."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.attacks.linear_model import (
    NORMALISATIONS,
    LinearModel,
    Normalised,
    make_labels,
    make_weight,
    pixel_images,
)
from timm_advprop.attacks import pgd, pyramid

LEVELS = dict(scales=(4, 3, 1), weights=(3., 2., 0.5))


def conv_model(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, classes)).double()


def upsampled(level, scale, height, width):
    """A plain second implementation: the value of the patch that each pixel lies in, by its index."""
    rows, columns = torch.arange(height) // scale, torch.arange(width) // scale
    return level[:, :, rows][:, :, :, columns]


def by_autograd(forward, images, target, eps, alpha, steps, bounds, scales, weights, sign=1):
    """The attack as the paper writes it: autograd differentiates the sum and the clamp."""
    low, high = images.clamp(max=bounds[0]), images.clamp(min=bounds[1])
    height, width = images.shape[2:]
    levels = [torch.zeros(*images.shape[:2], -(-height // s), -(-width // s), dtype=images.dtype) for s in scales]

    def perturbed():
        moved = images + sum(w * upsampled(d, s, height, width) for d, s, w in zip(levels, scales, weights))
        # clamped; versions of torch differ in the gradient of clamp where a value is a bound
        return torch.where(moved < low, low, torch.where(moved > high, high, moved))

    for _ in range(steps):
        levels = [level.detach().requires_grad_() for level in levels]
        loss = F.cross_entropy(forward(perturbed()), target, reduction='sum')
        grads = torch.autograd.grad(loss, levels)
        levels = [(level + sign * alpha * grad.sign()).clamp(-eps, eps) for level, grad in zip(levels, grads)]
    return perturbed().detach()


@pytest.mark.parametrize('size', [(8, 8), (9, 7), (2, 5)], ids=str)
@pytest.mark.parametrize('targeted', [False, True])
def test_the_attack_is_what_autograd_makes_of_the_papers_formula(size, targeted):
    model = conv_model() if min(size) > 5 else nn.Sequential(nn.Flatten(), nn.Linear(30, 4)).double()
    images, target = pixel_images(5, 3, *size), torch.tensor([0, 1, 2, 3, 0])
    images[0, 0, 0] = 1.3  # random erasing
    images[1, 2, 1] = -0.2
    settings = dict(eps=0.03, alpha=0.011, steps=4, bounds=(0, 1), **LEVELS)
    expected = by_autograd(model, images, target, **settings, sign=-1 if targeted else 1)
    adv = pyramid(model, images, target, **settings, targeted=targeted)
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-12)
    assert ((adv == 0) | (adv == 1)).any()  # so that clamped pixels count
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_pixel_at_its_bound_has_no_say_in_its_patch():
    # the first pixel's gradient is the larger one and points up: it counts in the first step, where the pixel is free
    weight, images = torch.tensor([[[3., -1., -1., -0.5]]]), torch.tensor([[[[0.99, 0.5, 0.5, 0.5]]]])
    settings = dict(eps=1., alpha=0.1, bounds=(0, 1), scales=(4,), weights=(1.,))
    target = torch.tensor([0])
    after_one = pyramid(LinearModel(weight / 9), images, target, steps=1, **settings)
    torch.testing.assert_close(after_one, torch.tensor([[[[1., 0.6, 0.6, 0.6]]]]))
    after_two = pyramid(LinearModel(weight / 9), images, target, steps=2, **settings)
    torch.testing.assert_close(after_two, images)  # the others lead back


@pytest.mark.parametrize('mean,std', NORMALISATIONS)
@pytest.mark.parametrize('targeted', [False, True])
def test_a_linear_model_has_a_corner_for_each_patch(mean, std, targeted):
    # inside of the bounds each value of a level ends at ± eps, by the sign of the sum of its patch's slopes
    pixels, eps = 0.4 + 0.2 * pixel_images(5, 3, 8, 8), 2 / 255
    data = Normalised(pixels, mean, std, torch.float64)
    slope = make_weight((3, 8, 8), dtype=torch.float64)
    model = LinearModel(slope)
    adv = pyramid(
        model, data.images, make_labels(pixels, 1 if targeted else 0), eps=data.scale(eps), alpha=data.scale(eps / 3),
        steps=4, bounds=data.bounds, scales=(4, 2, 1), weights=(3., 2., 1.), targeted=targeted)
    signs = [F.avg_pool2d(slope, scale).sign() for scale in (4, 2, 1)]
    optimum = pixels + eps * sum(
        weight * F.interpolate(sign[None], 8)[0] for weight, sign in zip((3, 2, 1), signs))
    torch.testing.assert_close(data.to_pixels(adv), optimum, rtol=0, atol=1e-10)


@pytest.mark.parametrize('mean,std', NORMALISATIONS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_no_pixel_leaves_its_bounds_or_goes_farther_than_all_scales_together(mean, std, dtype):
    data = Normalised(pixel_images(32, 3, 8, 8), mean, std, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    eps = torch.tensor(data.scale(4 / 255), dtype=wide).view(-1, 1, 1)
    low, high = (torch.tensor(value, dtype=wide).view(-1, 1, 1) for value in data.bounds)
    images = data.images.to(wide)
    adv = pyramid(
        LinearModel(make_weight((3, 8, 8))), data.images, make_labels(data.images), eps=eps, alpha=eps * 0.4, steps=4,
        bounds=data.bounds, **LEVELS)
    assert adv.dtype == dtype and not adv.requires_grad
    moved = (adv.to(wide) - images).abs()
    reach = eps * sum(LEVELS['weights'])
    rounding = torch.finfo(wide).eps * 4 * (images.abs() + reach)
    assert (moved <= reach + rounding).all() and (moved > 0.5 * reach).any()
    assert ((torch.minimum(low, images) <= adv.to(wide)) & (adv.to(wide) <= torch.maximum(high, images))).all()


def test_the_papers_scales_and_weights_are_the_default():
    images, model = pixel_images(2, 3, 64, 48), LinearModel(make_weight((3, 64, 48), dtype=torch.float64))
    settings = dict(eps=0.001, alpha=0.001, steps=1, bounds=(-9, 9))
    adv = pyramid(model, images, make_labels(images), **settings)
    expected = pyramid(model, images, make_labels(images), **settings, scales=(32, 16, 1), weights=(20, 10, 1))
    assert torch.equal(adv, expected)
    assert (adv - images).abs().amax() == pytest.approx(0.031)


def test_it_starts_from_the_clean_images_and_draws_nothing():
    images, model = pixel_images(2, 3, 8, 8), LinearModel(make_weight((3, 8, 8), dtype=torch.float64))
    state = torch.get_rng_state()
    pyramid(model, images, make_labels(images), eps=0.1, alpha=0.1, steps=2, bounds=(0, 1), **LEVELS)
    assert torch.equal(model.seen[0], images) and not torch.equal(model.seen[1], images)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_pixel_patches_alone_are_pgd_without_a_random_start():
    model, images, target = conv_model(), pixel_images(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    settings = dict(eps=0.05, alpha=0.02, steps=4, bounds=(-9, 9))  # at the bounds PGD forgets what a step was cut by
    expected = pgd(model, images, target, **settings, random_start=False)
    adv = pyramid(model, images, target, **settings, scales=(1,), weights=(1.,))
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-12)


def test_overflows_that_cancel_out_are_no_step_and_no_nan():
    images, inf = torch.full((2, 1, 4, 4), 0.5), float('inf')
    gradient = torch.tensor([inf, -inf]).repeat(8).view(1, 1, 4, 4).expand_as(images)
    settings = dict(eps=0.1, alpha=0.1, steps=2, bounds=(0, 1), weights=(1.,), gradient=lambda *_: gradient)
    assert torch.equal(pyramid(None, images, torch.zeros(2).long(), scales=(4,), **settings), images)
    adv = pyramid(None, images, torch.zeros(2).long(), scales=(1,), **settings)
    torch.testing.assert_close(adv, images + 0.1 * gradient.sign())


def test_it_runs_in_inference_mode_and_changes_nothing_in_place():
    model, images, target = conv_model(), pixel_images(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    before, settings = images.clone(), dict(eps=0.05, alpha=0.02, steps=2, bounds=(0, 1), **LEVELS)
    adv = pyramid(model, images, target, **settings)
    assert torch.equal(images, before)
    with torch.inference_mode():
        assert torch.equal(pyramid(model, images.clone(), target.clone(), **settings), adv)


@pytest.mark.parametrize('wrong, error, words', [
    (dict(scales=()), ValueError, 'a weight for each of its scales'),
    (dict(weights=(1.,)), ValueError, r'scales \[4, 3, 1\] and weights \[1.0\]'),
    (dict(scales=(4, 0, 1)), ValueError, 'whole numbers of at least 1'),
    (dict(scales=(4, 2.5, 1)), ValueError, 'whole numbers of at least 1'),
    (dict(weights=(1., -1., 1.)), ValueError, 'weights must be at least 0'),
    (dict(steps=0), ValueError, 'at least 1 step'),
    (dict(eps=-0.1), ValueError, 'eps must be at least 0'),
    (dict(alpha=float('nan')), ValueError, 'alpha must be at least 0'),
    (dict(images=torch.zeros(2, 3, 8)), ValueError, r'images \[N, C, H, W\]'),
    (dict(images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), TypeError, 'floating-point'),
], ids=str)
def test_what_is_out_of_range_is_named(wrong, error, words):
    arguments = dict(images=torch.zeros(2, 3, 8, 8), eps=0.1, alpha=0.1, steps=1, bounds=(0, 1), **LEVELS)
    model = LinearModel(make_weight((3, 8, 8)))
    pyramid(model, target=torch.zeros(2).long(), **arguments)
    with pytest.raises(error, match=words):
        pyramid(model, target=torch.zeros(2).long(), **dict(arguments, **wrong))
