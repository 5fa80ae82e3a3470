"""Attacks are pure functions: their optima are known in closed form on linear models."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.attacks.linear_model import (
    NORMALISATIONS,
    NORMS,
    LinearModel,
    Normalised,
    make_labels,
    make_weight,
    pixel_images,
)
from timm_advprop.attacks import gd, ifgsm, pgd


@pytest.mark.parametrize('mean,std', NORMALISATIONS)
@pytest.mark.parametrize('targeted', [False, True])
@pytest.mark.parametrize('random_start', [0., 0.5, 1.])
def test_pgd_on_a_linear_model_reaches_the_corner_of_the_ball(mean, std, targeted, random_start):
    pixels, eps = pixel_images(5, 3, 4, 4), 4 / 255
    data = Normalised(pixels, mean, std, torch.float64)
    model = LinearModel(make_weight((3, 4, 4), dtype=torch.float64))
    adv = pgd(
        model, data.images, make_labels(pixels, 1 if targeted else 0), eps=data.scale(eps), alpha=data.scale(1 / 255),
        steps=8, bounds=data.bounds, random_start=random_start, targeted=targeted)
    optimum = (pixels + eps * model.weight.sign()).clamp(0, 1)
    torch.testing.assert_close(data.to_pixels(adv), optimum, rtol=0, atol=1e-12)


@pytest.mark.parametrize('norm', NORMS)
def test_an_untargeted_attack_raises_the_loss_of_a_label_and_a_targeted_one_lowers_it(norm):
    images, weight = pixel_images(4, 3, 4, 4).float(), make_weight((3, 4, 4))
    target = torch.tensor([0, 1, 0, 1])
    along = torch.tensor([1., -1., 1., -1.])  # untargeted: label 0 moves along w, label 1 against it
    for targeted in (False, True):
        adv = pgd(
            LinearModel(weight), images, target, eps=0.1, alpha=0.1, steps=1, bounds=(-9, 9), random_start=False,
            targeted=targeted, norm=norm)
        moved = ((adv - images) * weight).flatten(1).sum(dim=1).sign()
        assert moved.tolist() == (-along if targeted else along).tolist()


def test_l2_pgd_on_a_linear_model_reaches_the_farthest_point_of_the_sphere():
    images, weight = pixel_images(5, 3, 4, 4), make_weight((3, 4, 4), dtype=torch.float64)
    adv = pgd(
        LinearModel(weight), images, make_labels(images), eps=0.7, alpha=0.3, steps=40, bounds=(-9, 9), norm='l2')
    optimum = (0.7 * weight / weight.norm()).expand_as(images)
    torch.testing.assert_close(adv - images, optimum, rtol=0, atol=1e-5)


@pytest.mark.parametrize('mean,std', NORMALISATIONS)
def test_l2_pgd_with_eps_per_channel_searches_the_ball_of_pixel_space(mean, std):
    pixels, eps = pixel_images(5, 3, 4, 4), 0.7
    data = Normalised(pixels, mean, std, torch.float64)
    slope = make_weight((3, 4, 4), dtype=torch.float64)  # of the loss, by pixel
    model = LinearModel(slope * data.std)  # the same loss by normalised value
    adv = pgd(
        model, data.images, make_labels(pixels), eps=data.scale(eps), alpha=data.scale(0.3), steps=40,
        bounds=([-1e4] * 3, [1e4] * 3), norm='l2')
    optimum = pixels + eps * slope / slope.norm()
    torch.testing.assert_close(data.to_pixels(adv), optimum, rtol=0, atol=1e-5)


def test_each_sample_is_attacked_as_if_it_were_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).double()
    images = pixel_images(4, 3, 8, 8) * torch.tensor([1., 0.1, 0.5, 0.01]).view(-1, 1, 1, 1)
    target = torch.tensor([0, 1, 2, 3])
    for norm in NORMS:
        settings = dict(eps=0.1, alpha=0.04, steps=4, bounds=(0, 1), random_start=False, norm=norm)
        together = pgd(model, images, target, **settings)
        alone = torch.cat([pgd(model, images[i:i + 1], target[i:i + 1], **settings) for i in range(4)])
        assert (together != images).flatten(1).any(dim=1).all()
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize('targeted', [False, True])
def test_soft_targets_are_class_weights(targeted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).double()
    images, target = pixel_images(6, 3, 4, 4), torch.rand(6, 5, dtype=torch.float64).softmax(dim=1)
    settings = dict(eps=0.1, alpha=0.1, steps=1, bounds=(-9, 9), random_start=False, targeted=targeted)
    adv = pgd(model, images, target, **settings)
    # the gradient of softmax cross-entropy is (p − t) W
    gradient = ((model(images).softmax(dim=1) - target) @ model[1].weight).view_as(images)
    torch.testing.assert_close(adv, images + (-0.1 if targeted else 0.1) * gradient.sign())
    hard = F.one_hot(torch.arange(6) % 5, 5).double()
    assert torch.equal(pgd(model, images, hard, **settings), pgd(model, images, hard.argmax(dim=1), **settings))


@pytest.mark.parametrize('reduction', ['none', 'sum', 'mean'])
@pytest.mark.parametrize('norm', NORMS)
def test_a_loss_of_ones_own_replaces_cross_entropy(reduction, norm):
    images, weight = pixel_images(4, 3, 4, 4), make_weight((3, 4, 4), dtype=torch.float64)
    wanted = torch.tensor([5., -5., 5., -5.], dtype=torch.float64)

    def distance(output, target):
        return F.mse_loss(output[:, 1], target, reduction=reduction)

    adv = pgd(LinearModel(weight), images, wanted, eps=0.1, alpha=0.1, steps=1, bounds=(-9, 9), random_start=False,
              targeted=True, loss=distance, norm=norm)
    step = weight.sign() if norm == 'linf' else weight / weight.norm()
    torch.testing.assert_close(adv, images + 0.1 * wanted.sign().view(-1, 1, 1, 1) * step)


@pytest.mark.parametrize('norm', NORMS)
def test_ifgsm_is_pgd_without_a_random_start(norm):
    images, model = pixel_images(4, 3, 4, 4), LinearModel(make_weight((3, 4, 4)))
    settings = dict(eps=0.1, alpha=0.03, steps=3, bounds=(0, 1), norm=norm)
    expected = pgd(model, images, make_labels(images), **settings, random_start=False)
    for random_start in (False, True):
        assert torch.equal(ifgsm(model, images, make_labels(images), **settings, random_start=random_start), expected)


@pytest.mark.parametrize('random_start', [False, True])
def test_gd_leaves_the_ball_and_keeps_the_bounds(random_start):
    torch.manual_seed(0)
    pixels, eps, alpha, steps = pixel_images(8, 3, 4, 4), 0.02, 0.05, 6
    model = LinearModel(make_weight((3, 4, 4), dtype=torch.float64))
    adv = gd(model, pixels, make_labels(pixels), eps=eps, alpha=alpha, steps=steps, bounds=(0, 1),
             random_start=random_start)
    start = model.seen[0]
    assert (start - pixels).abs().max() <= eps + 1e-12
    assert torch.equal(start, pixels) != random_start
    optimum = (start + steps * alpha * model.weight.sign()).clamp(0, 1)
    torch.testing.assert_close(adv, optimum, rtol=0, atol=1e-12)
    assert (adv - pixels).abs().max() > 5 * eps


@pytest.mark.parametrize('shape', [(4, 3), (4, 3, 8), (4, 3, 2, 2, 2)], ids=str)
def test_images_may_have_any_number_of_dimensions(shape):
    images, weight = pixel_images(*shape), make_weight(shape[1:], dtype=torch.float64)
    eps = torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)
    adv = pgd(LinearModel(weight), images, make_labels(images), eps=eps, alpha=eps, steps=2, bounds=(0, 1))
    optimum = (images + eps.view(-1, *(1,) * (len(shape) - 2)) * weight.sign()).clamp(0, 1)
    torch.testing.assert_close(adv, optimum, rtol=0, atol=1e-12)
