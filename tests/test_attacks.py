"""Attacks are pure functions: their optima are known in closed form on linear models."""
import random

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from timm_advprop import gd, ifgsm, pgd
from timm_advprop.attacks import random_target

HALF = 0.5, 0.5, 0.5
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATIONS = [
    pytest.param((0., 0., 0.), (1., 1., 1.), id='pixels'),
    pytest.param(HALF, HALF, id='half'),
    pytest.param(IMAGENET_MEAN, IMAGENET_STD, id='imagenet'),
    pytest.param((0.9, 0.5, 0.02), (0.01, 0.3, 3.), id='uneven'),
]
ATTACKS = [pytest.param(pgd, id='pgd'), pytest.param(ifgsm, id='ifgsm'), pytest.param(gd, id='gd')]
NORMS = ['linf', 'l2']


@pytest.fixture(autouse=True)
def one_thread():
    # tensors this small only wait for other threads
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class LinearModel:
    """Logits [−s, s] of s = ⟨w, x⟩: the loss of label 0 rises along w, that of label 1 falls."""

    def __init__(self, weight):
        self.weight = weight
        self.seen = []

    def __call__(self, images):
        self.seen.append(images.detach().clone())
        score = (images * self.weight.to(images.dtype)).flatten(1).sum(dim=1)
        return torch.stack([-score, score], dim=1)


def _weight(shape, seed=0, dtype=torch.float32):
    # away from zero, so that every sign is sure, and small, so that no softmax saturates
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (sign * (0.5 + torch.rand(shape, generator=generator)) / sign.numel()).to(dtype)


def _pixel_images(*shape, seed=1):
    # the corners of pixel space are part of the sample
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return images.mul(1.4).sub(0.2).clamp(0, 1)


class Normalised:
    """Pixel images as a timm loader delivers them, and the numbers of an attack, in the model's units."""

    def __init__(self, pixels, mean, std, dtype=torch.float32):
        self.mean, self.std = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (mean, std))
        self.images = ((pixels - self.mean) / self.std).to(dtype)
        self.bounds = tuple(((value - self.mean) / self.std).flatten().tolist() for value in (0., 1.))

    def scale(self, pixels):
        return (pixels / self.std).flatten().tolist()

    def to_pixels(self, images):
        return images.double() * self.std + self.mean


def _label(images, label=0):
    return torch.full((len(images),), label)


@pytest.mark.parametrize('mean,std', NORMALISATIONS)
@pytest.mark.parametrize('targeted', [False, True])
@pytest.mark.parametrize('random_start', [0., 0.5, 1.])
def test_pgd_on_a_linear_model_reaches_the_corner_of_the_ball(mean, std, targeted, random_start):
    pixels, eps = _pixel_images(5, 3, 4, 4), 4 / 255
    data = Normalised(pixels, mean, std, torch.float64)
    model = LinearModel(_weight((3, 4, 4), dtype=torch.float64))
    adv = pgd(
        model, data.images, _label(pixels, 1 if targeted else 0), eps=data.scale(eps), alpha=data.scale(1 / 255),
        steps=8, bounds=data.bounds, random_start=random_start, targeted=targeted)
    optimum = (pixels + eps * model.weight.sign()).clamp(0, 1)
    torch.testing.assert_close(data.to_pixels(adv), optimum, rtol=0, atol=1e-12)


@pytest.mark.parametrize('norm', NORMS)
def test_an_untargeted_attack_raises_the_loss_of_a_label_and_a_targeted_one_lowers_it(norm):
    images, weight = _pixel_images(4, 3, 4, 4).float(), _weight((3, 4, 4))
    target = torch.tensor([0, 1, 0, 1])
    along = torch.tensor([1., -1., 1., -1.])  # untargeted: label 0 moves along w, label 1 against it
    for targeted in (False, True):
        adv = pgd(
            LinearModel(weight), images, target, eps=0.1, alpha=0.1, steps=1, bounds=(-9, 9), random_start=False,
            targeted=targeted, norm=norm)
        moved = ((adv - images) * weight).flatten(1).sum(dim=1).sign()
        assert moved.tolist() == (-along if targeted else along).tolist()


def test_l2_pgd_on_a_linear_model_reaches_the_farthest_point_of_the_sphere():
    images, weight = _pixel_images(5, 3, 4, 4), _weight((3, 4, 4), dtype=torch.float64)
    adv = pgd(
        LinearModel(weight), images, _label(images), eps=0.7, alpha=0.3, steps=40, bounds=(-9, 9), norm='l2')
    optimum = (0.7 * weight / weight.norm()).expand_as(images)
    torch.testing.assert_close(adv - images, optimum, rtol=0, atol=1e-5)


@pytest.mark.parametrize('mean,std', NORMALISATIONS)
def test_l2_pgd_with_eps_per_channel_searches_the_ball_of_pixel_space(mean, std):
    pixels, eps = _pixel_images(5, 3, 4, 4), 0.7
    data = Normalised(pixels, mean, std, torch.float64)
    slope = _weight((3, 4, 4), dtype=torch.float64)  # of the loss, by pixel
    model = LinearModel(slope * data.std)  # the same loss by normalised value
    adv = pgd(
        model, data.images, _label(pixels), eps=data.scale(eps), alpha=data.scale(0.3), steps=40,
        bounds=([-1e4] * 3, [1e4] * 3), norm='l2')
    optimum = pixels + eps * slope / slope.norm()
    torch.testing.assert_close(data.to_pixels(adv), optimum, rtol=0, atol=1e-5)


def test_each_sample_is_attacked_as_if_it_were_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).double()
    images = _pixel_images(4, 3, 8, 8) * torch.tensor([1., 0.1, 0.5, 0.01]).view(-1, 1, 1, 1)
    target = torch.tensor([0, 1, 2, 3])
    for norm in NORMS:
        settings = dict(eps=0.1, alpha=0.04, steps=4, bounds=(0, 1), random_start=False, norm=norm)
        together = pgd(model, images, target, **settings)
        alone = torch.cat([pgd(model, images[i:i + 1], target[i:i + 1], **settings) for i in range(4)])
        assert (together != images).flatten(1).any(dim=1).all()
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize('mean,std', NORMALISATIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('norm', NORMS)
def test_start_and_end_stay_in_the_ball_and_the_bounds_of_pixel_space(mean, std, dtype, norm):
    torch.manual_seed(0)
    pixels, eps = _pixel_images(64, 3, 4, 4), 4 / 255
    data = Normalised(pixels, mean, std, dtype)
    model = LinearModel(_weight((3, 4, 4)))
    adv = pgd(
        model, data.images, _label(pixels), eps=data.scale(eps), alpha=data.scale(3 / 255), steps=3,
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
    data = Normalised(_pixel_images(256, 3, 4, 4), mean, std, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    eps, low, high = (
        torch.tensor(value, dtype=wide).view(-1, 1, 1) for value in (data.scale(4 / 255), *data.bounds))
    low, high = torch.minimum(low, data.images.to(wide)), torch.maximum(high, data.images.to(wide))
    for seed in range(3):
        torch.manual_seed(seed)
        adv = pgd(
            LinearModel(_weight((3, 4, 4), seed)), data.images, _label(data.images), eps=eps, alpha=eps * 0.3,
            steps=1 + 3 * seed, bounds=data.bounds)
        assert adv.dtype == dtype
        assert ((adv.to(wide) - data.images.to(wide)).abs() <= eps).all()
        assert ((low <= adv.to(wide)) & (adv.to(wide) <= high)).all()
        assert (adv != data.images).any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_l2_ball_holds_after_rounding(dtype):
    # values far above eps, so that the rounding of an image is large beside the ball
    images = (_pixel_images(64, 3, 8, 8) * 8 - 4).to(dtype)
    adv = pgd(LinearModel(_weight((3, 8, 8))), images, _label(images), eps=0.5, alpha=0.4, steps=4, bounds=(-4, 4),
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
            adv = pgd(LinearModel(torch.tensor([[float(sign)]])), images, _label(images), eps=k * unit,
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
            adv = attack(model, images, _label(images, target), **settings)
            torch.testing.assert_close(adv, torch.tensor(expected).expand_as(images), rtol=0, atol=1e-6)
        model.seen.clear()
        adv = attack(model, images, _label(images, target), **settings, norm=norm)
        for seen in (*model.seen, adv):
            assert (seen >= images.clamp(max=-1)).all() and (seen <= images.clamp(min=1)).all()


def test_the_images_and_the_target_are_left_as_they_are():
    for dtype in (torch.float32, torch.float16):
        images, target = _pixel_images(4, 3, 4, 4).to(dtype).requires_grad_(), torch.rand(4, 2)
        before = images.detach().clone(), target.clone()
        adv = pgd(LinearModel(_weight((3, 4, 4))), images, target, eps=0.1, alpha=0.1, steps=2, bounds=(0, 1))
        assert torch.equal(images, before[0]) and torch.equal(target, before[1])
        assert images.grad is None and images.requires_grad
        assert not adv.requires_grad and adv.data_ptr() != images.data_ptr()


@pytest.mark.parametrize('attack', ATTACKS)
def test_an_attack_leaves_no_trace_on_the_model(attack):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    model[0].weight.requires_grad_(False)
    model.eval()
    model[3].train()
    model[3].bias.grad = torch.ones(5)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attack(model, _pixel_images(4, 3, 8, 8).float(), torch.arange(4), eps=0.1, alpha=0.05, steps=3, bounds=(0, 1))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == {
        name: name != '0.weight' for name, _ in model.named_parameters()}
    assert [module.training for module in model] == [False, False, False, True]
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {'3.bias'}
    assert torch.equal(model[3].bias.grad, torch.ones(5))


def test_only_torch_seeds_matter():
    images, model = _pixel_images(16, 3, 4, 4).float(), LinearModel(_weight((3, 4, 4)))
    python_state, numpy_state = random.getstate(), np.random.get_state()

    def attacked(seed, norm):
        torch.manual_seed(seed)
        return pgd(model, images, _label(images), eps=0.1, alpha=0.01, steps=2, bounds=(0, 1), random_start=0.5,
                   norm=norm)

    for norm in NORMS:
        assert torch.equal(attacked(3, norm), attacked(3, norm))
        assert not torch.equal(attacked(3, norm), attacked(4, norm))
    assert random.getstate() == python_state
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state))


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('probability', [0., 0.3, 0.8, 1.])
def test_a_random_start_is_drawn_for_each_sample_with_its_probability(probability, norm):
    torch.manual_seed(0)
    count = 4000
    images, model = torch.zeros(count, 2, 2, 2), LinearModel(_weight((2, 2, 2)))
    pgd(model, images, _label(images), eps=0.5, alpha=0., steps=1, bounds=(-1, 1), random_start=probability, norm=norm)
    start = model.seen[0].flatten(1)
    moved = (start != 0).any(dim=1)
    assert abs(moved.float().mean() - probability) <= 4 * (probability * (1 - probability) / count) ** 0.5
    assert len(start[moved].unique(dim=0)) == moved.sum()


def test_the_random_start_is_uniform_in_the_ball():
    torch.manual_seed(0)
    count, eps = 20000, 0.5
    images, model = torch.zeros(count, 2, 1, 2), LinearModel(_weight((2, 1, 2)))
    settings = dict(eps=eps, alpha=0., steps=1, bounds=(-1, 1), random_start=True)
    pgd(model, images, _label(images), **settings)
    start = model.seen[-1].flatten()
    deciles = torch.histc(start, bins=10, min=-eps, max=eps) / len(start)
    assert (deciles - 0.1).abs().max() < 0.005
    pgd(model, images, _label(images), **settings, norm='l2')
    start = model.seen[-1].flatten(1)
    fraction_within = (start.norm(dim=1) / eps) ** 4  # of the volume of a ball in 4 dimensions
    deciles = torch.histc(fraction_within, bins=10, min=0, max=1) / count
    assert (deciles - 0.1).abs().max() < 0.01
    assert start.mean(dim=0).abs().max() < 0.01


@pytest.mark.parametrize('batch_size', [2, 256])
def test_half_precision_gradients_that_underflow_still_move_the_images(batch_size):
    images = torch.full((batch_size, 1, 2, 2), 0.5, dtype=torch.float16)
    weight = torch.tensor([1., -1., 1., -1.], dtype=torch.float16).view(1, 2, 2) * 2. ** -20

    def model(images):
        score = (images * weight).flatten(1).sum(dim=1) * 2. ** -6
        return torch.stack([-score, score], dim=1)

    leaf = images.clone().requires_grad_()
    F.cross_entropy(model(leaf).float(), _label(images), reduction='sum').backward()
    assert (leaf.grad == 0).all()  # the case this test is about
    adv = pgd(model, images, _label(images), eps=0.25, alpha=0.25, steps=1, bounds=(0, 1), random_start=False)
    assert torch.equal(adv - images, 0.25 * weight.sign().expand_as(images))


@pytest.mark.parametrize('dtype,alpha', [(torch.float16, 2. ** -11), (torch.bfloat16, 2. ** -8)], ids=str)
def test_steps_smaller_than_the_spacing_of_the_images_add_up(dtype, alpha):
    images = torch.full((2, 1, 2, 2), 2., dtype=dtype)
    assert torch.equal(images + alpha, images)  # the case this test is about
    adv = pgd(LinearModel(_weight((1, 2, 2)).abs()), images, _label(images), eps=16 * alpha, alpha=alpha, steps=8,
              bounds=(0, 4), random_start=False)
    assert torch.equal(adv.float(), images.float() + 8 * alpha)


@pytest.mark.parametrize('targeted', [False, True])
def test_soft_targets_are_class_weights(targeted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).double()
    images, target = _pixel_images(6, 3, 4, 4), torch.rand(6, 5, dtype=torch.float64).softmax(dim=1)
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
    images, weight = _pixel_images(4, 3, 4, 4), _weight((3, 4, 4), dtype=torch.float64)
    wanted = torch.tensor([5., -5., 5., -5.], dtype=torch.float64)

    def distance(output, target):
        return F.mse_loss(output[:, 1], target, reduction=reduction)

    adv = pgd(LinearModel(weight), images, wanted, eps=0.1, alpha=0.1, steps=1, bounds=(-9, 9), random_start=False,
              targeted=True, loss=distance, norm=norm)
    step = weight.sign() if norm == 'linf' else weight / weight.norm()
    torch.testing.assert_close(adv, images + 0.1 * wanted.sign().view(-1, 1, 1, 1) * step)


@pytest.mark.parametrize('norm', NORMS)
def test_ifgsm_is_pgd_without_a_random_start(norm):
    images, model = _pixel_images(4, 3, 4, 4), LinearModel(_weight((3, 4, 4)))
    settings = dict(eps=0.1, alpha=0.03, steps=3, bounds=(0, 1), norm=norm)
    expected = pgd(model, images, _label(images), **settings, random_start=False)
    for random_start in (False, True):
        assert torch.equal(ifgsm(model, images, _label(images), **settings, random_start=random_start), expected)


@pytest.mark.parametrize('random_start', [False, True])
def test_gd_leaves_the_ball_and_keeps_the_bounds(random_start):
    torch.manual_seed(0)
    pixels, eps, alpha, steps = _pixel_images(8, 3, 4, 4), 0.02, 0.05, 6
    model = LinearModel(_weight((3, 4, 4), dtype=torch.float64))
    adv = gd(model, pixels, _label(pixels), eps=eps, alpha=alpha, steps=steps, bounds=(0, 1),
             random_start=random_start)
    start = model.seen[0]
    assert (start - pixels).abs().max() <= eps + 1e-12
    assert torch.equal(start, pixels) != random_start
    optimum = (start + steps * alpha * model.weight.sign()).clamp(0, 1)
    torch.testing.assert_close(adv, optimum, rtol=0, atol=1e-12)
    assert (adv - pixels).abs().max() > 5 * eps


@pytest.mark.parametrize('attack', ATTACKS)
@pytest.mark.parametrize('norm', NORMS)
def test_an_attack_of_no_strength_changes_nothing(attack, norm):
    images = _pixel_images(4, 3, 4, 4).float()
    alpha = 0. if attack is gd else 0.1
    adv = attack(LinearModel(_weight((3, 4, 4))), images, _label(images), eps=0., alpha=alpha, steps=2, bounds=(0, 1),
                 norm=norm)
    assert torch.equal(adv, images)


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode], ids=['no_grad', 'inference_mode'])
@pytest.mark.parametrize('images_within', [False, True])
@pytest.mark.parametrize('target_within', [False, True])
def test_attacks_work_where_gradients_are_off(context, images_within, target_within):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    images, target = _pixel_images(4, 3, 8, 8).float(), torch.arange(4)
    settings = dict(eps=0.1, alpha=0.05, steps=2, bounds=(0, 1), random_start=False)
    expected = pgd(model, images, target, **settings)
    with context():
        images = images.clone() if images_within else images
        target = target.clone() if target_within else target
        adv = pgd(model, images, target, **settings)
        assert not torch.is_grad_enabled()
    assert torch.equal(adv, expected)
    model(adv).sum().backward()  # may be trained on
    assert model[0].weight.grad is not None


@pytest.mark.parametrize('shape', [(4, 3), (4, 3, 8), (4, 3, 2, 2, 2)], ids=str)
def test_images_may_have_any_number_of_dimensions(shape):
    images, weight = _pixel_images(*shape), _weight(shape[1:], dtype=torch.float64)
    eps = torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)
    adv = pgd(LinearModel(weight), images, _label(images), eps=eps, alpha=eps, steps=2, bounds=(0, 1))
    optimum = (images + eps.view(-1, *(1,) * (len(shape) - 2)) * weight.sign()).clamp(0, 1)
    torch.testing.assert_close(adv, optimum, rtol=0, atol=1e-12)


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
    adv = attack(lambda images: _GivenGradient.apply(images, gradient), images, _label(images), eps=0.25, alpha=alpha,
                 steps=2, bounds=(0, 1), random_start=False, norm=norm)
    assert adv.isfinite().all()
    assert adv.min() >= 0 and adv.max() <= 1
    if norm == 'linf':  # the sign of an overflow is known
        assert ((adv - images)[0, 0, 0].sign() == torch.tensor([0, 1, -1, 1, 1, 0, -1])).all()
    if attack is not gd:
        assert (adv - images).float().flatten(1).norm(dim=1, p=2. if norm == 'l2' else float('inf')).max() <= 0.25


@pytest.mark.parametrize('attack', ATTACKS)
@pytest.mark.parametrize('wrong,error,message', [
    (dict(steps=0), ValueError, 'step'),
    (dict(eps=-1.), ValueError, 'eps'),
    (dict(eps=float('nan')), ValueError, 'eps'),
    (dict(eps=(0.1, -0.1, 0.1)), ValueError, 'eps'),
    (dict(eps=torch.tensor([0.1, 0.1, -0.1])), ValueError, 'eps'),
    (dict(alpha=-1.), ValueError, 'alpha'),
    (dict(norm='l3'), ValueError, 'l3'),
    (dict(eps=(0.1, 0.1)), ValueError, '2 values'),
    (dict(alpha=(0.1, 0.1)), ValueError, '2 values'),
    (dict(bounds=((0., 0.), 1.)), ValueError, '2 values'),
    (dict(images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), TypeError, 'uint8'),
    (dict(images=torch.zeros(2, 3, 4, 4, dtype=torch.long)), TypeError, 'int64'),
], ids=str)
def test_wrong_arguments_raise_an_error_that_names_them(attack, wrong, error, message):
    arguments = dict(
        forward=LinearModel(_weight((3, 4, 4))), images=torch.zeros(2, 3, 4, 4), target=torch.zeros(2).long(),
        eps=0.1, alpha=0.1, steps=1, bounds=(0, 1))
    attack(**arguments)
    with pytest.raises(error, match=message):
        attack(**dict(arguments, **wrong))


@pytest.mark.parametrize('attack', [pgd, gd])
@pytest.mark.parametrize('probability', [-0.1, 1.1, 5, float('nan')])
def test_a_random_start_is_a_probability(attack, probability):
    with pytest.raises(ValueError, match='random_start'):
        attack(LinearModel(_weight((3, 4, 4))), torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), eps=0.1, alpha=0.1,
               steps=1, bounds=(0, 1), random_start=probability)


@pytest.mark.parametrize('num_classes', [2, 3, 5, 1000])
@pytest.mark.parametrize('soft', [False, True])
def test_a_random_target_is_never_the_true_label(num_classes, soft):
    torch.manual_seed(0)
    labels = torch.arange(num_classes).repeat(2000 // num_classes + 1)
    drawn = random_target(F.one_hot(labels, num_classes).float() if soft else labels, num_classes)
    assert drawn.shape == labels.shape and drawn.dtype == torch.long
    assert (drawn != labels).all()
    assert drawn.min() >= 0 and drawn.max() < num_classes
    if num_classes == 2:
        assert torch.equal(drawn, 1 - labels)


@pytest.mark.parametrize('label', [0, 2, 4])
@pytest.mark.parametrize('smoothing', [None, 0., 0.1])
def test_a_random_target_is_uniform_over_the_wrong_labels(label, smoothing):
    torch.manual_seed(0)
    count = 20000
    target = torch.full((count,), label)
    if smoothing is not None:
        target = F.one_hot(target, 5) * (1 - smoothing) + smoothing / 5
    drawn = random_target(target, 5)
    counts = torch.bincount(drawn, minlength=5).double()
    wrong = torch.arange(5) != label
    assert counts[label] == 0
    chi_square = ((counts[wrong] - count / 4) ** 2 / (count / 4)).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize('smoothing', [0., 0.1])
@pytest.mark.parametrize('lam', [0.02, 0.4, 0.5])
def test_a_random_target_of_two_mixed_classes_is_neither(smoothing, lam):
    torch.manual_seed(0)
    first, second = torch.randint(0, 6, (2, 3000))
    weights = [F.one_hot(labels, 6) * (1 - smoothing) + smoothing / 6 for labels in (first, second)]
    drawn = random_target(weights[0] * lam + weights[1] * (1 - lam), 6)
    assert ((drawn != first) & (drawn != second)).all()
    assert len(drawn.unique()) == 6


def test_a_random_target_of_two_classes_mixed_with_each_other_is_the_lesser_one():
    target = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    assert random_target(target, 2).tolist() == [0, 1]


@pytest.mark.parametrize('num_classes', [0, 1])
def test_a_random_target_needs_a_wrong_label(num_classes):
    with pytest.raises(ValueError, match='2 classes'):
        random_target(torch.zeros(3, dtype=torch.long), num_classes)


def test_a_random_target_needs_weights_of_every_class():
    with pytest.raises(ValueError, match='10'):
        random_target(torch.rand(3, 5), 10)
