"""No attack leaves the ball or the bounds, whatever the units, the precision or the gradients."""
import pytest
import torch
import torch.nn.functional as F

from tests.attacks.linear_model import (
    ATTACKS,
    NORMALISATIONS,
    NORMS,
    LinearModel,
    Normalised,
    make_labels,
    make_weight,
    pixel_images,
)
from timm_advprop.attacks import gd, pgd


@pytest.mark.parametrize('mean,std', NORMALISATIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('norm', NORMS)
def test_start_and_end_stay_in_the_ball_and_the_bounds_of_pixel_space(mean, std, dtype, norm):
    torch.manual_seed(0)
    pixels, eps = pixel_images(64, 3, 4, 4), 4 / 255
    data = Normalised(pixels, mean, std, dtype)
    model = LinearModel(make_weight((3, 4, 4)))
    adv = pgd(
        model, data.images, make_labels(pixels), eps=data.scale(eps), alpha=data.scale(3 / 255), steps=3,
        bounds=data.bounds, norm=norm)
    assert adv.dtype == dtype
    pixel_rounding = 2 * torch.finfo(dtype).eps * (1 + data.mean + data.std).amax().item()
    for images in (model.seen[0], adv):
        result = data.to_pixels(images)
        perturbation = result - data.to_pixels(data.images)
        length = perturbation.abs().amax() if norm == 'linf' else perturbation.flatten(1).norm(dim=1).amax()
        assert 0.2 * eps < length <= eps + pixel_rounding
        assert result.min() >= -pixel_rounding and result.max() <= 1 + pixel_rounding


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('mean,std', NORMALISATIONS)
def test_no_rounding_leaves_the_ball_or_the_bounds_of_the_model_units(dtype, mean, std):
    data = Normalised(pixel_images(256, 3, 4, 4), mean, std, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    eps, low, high = (
        torch.tensor(value, dtype=wide).view(-1, 1, 1) for value in (data.scale(4 / 255), *data.bounds))
    low, high = torch.minimum(low, data.images.to(wide)), torch.maximum(high, data.images.to(wide))
    for seed in range(3):
        torch.manual_seed(seed)
        adv = pgd(
            LinearModel(make_weight((3, 4, 4), seed)), data.images, make_labels(data.images), eps=eps, alpha=eps * 0.3,
            steps=1 + 3 * seed, bounds=data.bounds)
        assert adv.dtype == dtype
        assert ((adv.to(wide) - data.images.to(wide)).abs() <= eps).all()
        assert ((low <= adv.to(wide)) & (adv.to(wide) <= high)).all()
        assert (adv != data.images).any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_l2_ball_holds_after_rounding(dtype):
    # values far above eps, so that the rounding of an image is large beside the ball
    images = (pixel_images(64, 3, 8, 8) * 8 - 4).to(dtype)
    adv = pgd(
        LinearModel(make_weight((3, 8, 8))), images, make_labels(images), eps=0.5, alpha=0.4, steps=4, bounds=(-4, 4),
        norm='l2')
    assert adv.dtype == dtype
    length = (adv.double() - images.double()).flatten(1).norm(dim=1)
    assert length.max() <= 0.5 * (1 + 1e-6)
    assert length.min() > 0.1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_images_near_zero_stay_numbers_in_the_ball(dtype):
    # the smallest numbers of the type, where rounding towards the image passes through zero
    smallest = torch.arange(-6, 7, dtype=torch.int16)
    positive = smallest.clamp_min(0).view(dtype)
    images = torch.where(smallest < 0, -(-smallest).clamp_min(0).view(dtype), positive).view(-1, 1, 1)
    unit = positive[positive > 0].min().float()
    for k in (0.6, 1.4, 1.6, 2.4, 2.6):
        for sign in (-1, 1):
            adv = pgd(LinearModel(torch.tensor([[float(sign)]])), images, make_labels(images), eps=k * unit,
                      alpha=k * unit, steps=1, bounds=(-1, 1), random_start=False)
            assert adv.isfinite().all()
            assert ((adv.double() - images.double()).abs() <= k * unit.double()).all()


@pytest.mark.parametrize('attack', ATTACKS)
@pytest.mark.parametrize('norm', NORMS)
def test_images_out_of_bounds_are_not_pulled_back(attack, norm):
    # random erasing fills with normal noise in normalised units
    images = torch.tensor([-3., -1., 0., 1., 3.]).view(1, 1, 1, 5).repeat(8, 1, 1, 1)
    model = LinearModel(torch.tensor([1., 1., 1., 1., 1.]) / 50)
    for target, expected in ((0, [-2.5, -0.5, 0.5, 1., 3.]), (1, [-3., -1., -0.5, 0.5, 2.5])):
        settings = dict(eps=0.5, alpha=0.25, steps=6, bounds=(-1, 1))
        if norm == 'linf' and attack is not gd:
            adv = attack(model, images, make_labels(images, target), **settings)
            torch.testing.assert_close(adv, torch.tensor(expected).expand_as(images), rtol=0, atol=1e-6)
        model.seen.clear()
        adv = attack(model, images, make_labels(images, target), **settings, norm=norm)
        for seen in (*model.seen, adv):
            assert (seen >= images.clamp(max=-1)).all() and (seen <= images.clamp(min=1)).all()


@pytest.mark.parametrize('attack', ATTACKS)
@pytest.mark.parametrize('norm', NORMS)
def test_an_attack_of_no_strength_changes_nothing(attack, norm):
    images = pixel_images(4, 3, 4, 4).float()
    alpha = 0. if attack is gd else 0.1
    adv = attack(
        LinearModel(make_weight((3, 4, 4))), images, make_labels(images), eps=0., alpha=alpha, steps=2, bounds=(0, 1),
        norm=norm)
    assert torch.equal(adv, images)


class _GivenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, gradient):
        ctx.save_for_backward(gradient)
        return images.new_zeros(len(images), 2)

    @staticmethod
    def backward(ctx, _):
        return ctx.saved_tensors[0], None


@pytest.mark.parametrize('attack', ATTACKS)
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('alpha', [0.1, 3.])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_that_are_no_numbers_give_images_that_are(attack, norm, alpha, dtype):
    values = torch.tensor([float('nan'), float('inf'), -float('inf'), torch.finfo(dtype).max, 1., 0., -1.])
    gradient = torch.stack([values, *(value.expand(7) for value in values)]).view(8, 1, 1, 7).to(dtype)
    images = torch.full((8, 1, 1, 7), 0.5, dtype=dtype)
    adv = attack(
        lambda images: _GivenGradient.apply(images, gradient), images, make_labels(images), eps=0.25, alpha=alpha,
        steps=2, bounds=(0, 1), random_start=False, norm=norm)
    assert adv.isfinite().all()
    assert adv.min() >= 0 and adv.max() <= 1
    if norm == 'linf':  # the sign of an overflow is known
        assert ((adv - images)[0, 0, 0].sign() == torch.tensor([0, 1, -1, 1, 1, 0, -1])).all()
    if attack is not gd:
        assert (adv - images).float().flatten(1).norm(dim=1, p=2. if norm == 'l2' else float('inf')).max() <= 0.25


@pytest.mark.parametrize('batch_size', [2, 256])
def test_half_precision_gradients_that_underflow_still_move_the_images(batch_size):
    images = torch.full((batch_size, 1, 2, 2), 0.5, dtype=torch.float16)
    weight = torch.tensor([1., -1., 1., -1.], dtype=torch.float16).view(1, 2, 2) * 2. ** -20

    def model(images):
        score = (images * weight).flatten(1).sum(dim=1) * 2. ** -6
        return torch.stack([-score, score], dim=1)

    leaf = images.clone().requires_grad_()
    F.cross_entropy(model(leaf).float(), make_labels(images), reduction='sum').backward()
    assert (leaf.grad == 0).all()  # the case this test is about
    adv = pgd(model, images, make_labels(images), eps=0.25, alpha=0.25, steps=1, bounds=(0, 1), random_start=False)
    assert torch.equal(adv - images, 0.25 * weight.sign().expand_as(images))


@pytest.mark.parametrize('dtype,alpha', [(torch.float16, 2. ** -11), (torch.bfloat16, 2. ** -8)], ids=str)
def test_steps_smaller_than_the_spacing_of_the_images_add_up(dtype, alpha):
    images = torch.full((2, 1, 2, 2), 2., dtype=dtype)
    assert torch.equal(images + alpha, images)  # the case this test is about
    adv = pgd(
        LinearModel(make_weight((1, 2, 2)).abs()), images, make_labels(images), eps=16 * alpha, alpha=alpha, steps=8,
        bounds=(0, 4), random_start=False)
    assert torch.equal(adv.float(), images.float() + 8 * alpha)


def test_the_direction_of_a_half_precision_gradient_is_not_rounded_to_it():
    # parts of the largest value's length that half precision has no number for
    gradient = torch.tensor([1000., 1e-4, -2e-4, 3e-4], dtype=torch.float16).view(1, 1, 2, 2)
    images = torch.zeros_like(gradient)
    adv = pgd(
        LinearModel(images[0]), images, make_labels(images), eps=2000., alpha=1000., steps=1, bounds=(-2000, 2000),
        random_start=False, norm='l2', gradient=lambda *args: gradient)
    torch.testing.assert_close(adv.float(), gradient.float(), rtol=2e-3, atol=0)
