"""What callers may rely on: nothing but images comes out of an attack, and wrong arguments are named."""
import random

import numpy as np
import pytest
import torch
import torch.nn as nn

from tests.attacks.linear_model import ATTACKS, NORMS, LinearModel, make_labels, make_weight, pixel_images
from timm_advprop.attacks import pgd


def test_the_images_and_the_target_are_left_as_they_are():
    for dtype in (torch.float32, torch.float16):
        images, target = pixel_images(4, 3, 4, 4).to(dtype).requires_grad_(), torch.rand(4, 2)
        before = images.detach().clone(), target.clone()
        adv = pgd(LinearModel(make_weight((3, 4, 4))), images, target, eps=0.1, alpha=0.1, steps=2, bounds=(0, 1))
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
    attack(model, pixel_images(4, 3, 8, 8).float(), torch.arange(4), eps=0.1, alpha=0.05, steps=3, bounds=(0, 1))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == {
        name: name != '0.weight' for name, _ in model.named_parameters()}
    assert [module.training for module in model] == [False, False, False, True]
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {'3.bias'}
    assert torch.equal(model[3].bias.grad, torch.ones(5))


def test_only_torch_seeds_matter():
    images, model = pixel_images(16, 3, 4, 4).float(), LinearModel(make_weight((3, 4, 4)))
    python_state, numpy_state = random.getstate(), np.random.get_state()

    def attacked(seed, norm):
        torch.manual_seed(seed)
        return pgd(model, images, make_labels(images), eps=0.1, alpha=0.01, steps=2, bounds=(0, 1), random_start=0.5,
                   norm=norm)

    for norm in NORMS:
        assert torch.equal(attacked(3, norm), attacked(3, norm))
        assert not torch.equal(attacked(3, norm), attacked(4, norm))
    assert random.getstate() == python_state
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state))


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode], ids=['no_grad', 'inference_mode'])
@pytest.mark.parametrize('images_within', [False, True])
@pytest.mark.parametrize('target_within', [False, True])
def test_attacks_work_where_gradients_are_off(context, images_within, target_within):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    images, target = pixel_images(4, 3, 8, 8).float(), torch.arange(4)
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
        forward=LinearModel(make_weight((3, 4, 4))), images=torch.zeros(2, 3, 4, 4), target=torch.zeros(2).long(),
        eps=0.1, alpha=0.1, steps=1, bounds=(0, 1))
    attack(**arguments)
    with pytest.raises(error, match=message):
        attack(**dict(arguments, **wrong))


@pytest.mark.parametrize('make', [torch.as_tensor, np.asarray, torch.Tensor.tolist], ids=['torch', 'numpy', 'list'])
@pytest.mark.parametrize('shape', [(3, 2), (3, 3), (3, 3, 4), (3, 3, 4, 4), (3, 3, 2, 4, 4)], ids=str)
def test_strengths_are_of_channels_and_never_of_images(shape, make):
    # as many images as channels, so that the number of values cannot tell
    images, num_channels, rest = torch.rand(shape), shape[1], (1,) * (len(shape) - 2)
    forward = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 3))
    rows = torch.linspace(0.1, 0.3, shape[0]).view(-1, 1, *rest)
    settings = dict(alpha=0.4, steps=1, bounds=(0, 1), random_start=False)
    for name in ('eps', 'alpha'):
        with pytest.raises(ValueError, match='have one value for each channel'):
            pgd(forward, images, torch.arange(3), **{'eps': 0.1, **settings, name: make(rows)})
    values = torch.linspace(0.1, 0.3, num_channels)
    flat, *others = (pgd(forward, images, torch.arange(3), eps=make(values.view(form)), **settings)
                     for form in ((-1,), (-1, *rest), (1, -1, *rest)))
    assert all(torch.equal(adversarial, flat) for adversarial in others)
    reach = (flat - images).abs().transpose(0, 1).flatten(1).amax(dim=1)
    torch.testing.assert_close(reach, values)


@pytest.mark.parametrize('make', [list, tuple, np.array, torch.tensor])
def test_strengths_may_be_of_any_kind_of_sequence(make):
    images, target = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    forward = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    expected = pgd(forward, images, target, eps=.1, alpha=.05, steps=1, bounds=(0, 1), random_start=False)
    adversarial = pgd(forward, images, target, eps=make([.1] * 3), alpha=make([.05] * 3), steps=1,
                      bounds=(make([0.] * 3), make([1.] * 3)), random_start=False)
    assert torch.equal(adversarial, expected)
