"""Gaussian noise: its strength in pixels, its bounds, its draws."""
import math

import pytest
import torch

from tests.regimes.regime_models import HALF, make_batch, recorded_batches, split_model, task_of, tiny_model
from timm_advprop.regimes import GaussianNoise

pytestmark = pytest.mark.usefixtures('one_thread')
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def in_units(pixels):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def in_pixels(images):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return images * std + mean


def test_gaussian_noise_has_its_strength_and_stays_in_the_range_of_pixels():
    noise = GaussianNoise(eps_px=8, mean=MEAN, std=STD)
    pixels = torch.full((8, 3, 64, 64), 0.5)
    images, target = in_units(pixels), torch.arange(8)
    noisy, labels = noise(None, images, target)
    change = (in_pixels(noisy) - pixels) * 255
    assert labels is target and noisy.dtype == images.dtype
    for channel in change.unbind(1):
        assert channel.mean().abs() < 0.2 and channel.std().item() == pytest.approx(8, rel=0.02)
    for edge, inwards in ((in_units(torch.ones(1, 3, 8, 8)), -1), (in_units(torch.zeros(1, 3, 8, 8)), 1)):
        moved = (noise(None, edge, target)[0] - edge) * inwards
        assert (moved >= 0).all() and 0.2 < (moved > 0).float().mean() < 0.8


@pytest.mark.parametrize('value', [9., -9.])
def test_values_that_random_erasing_left_out_of_the_range_stay_within_themselves(value):
    noise, erased = GaussianNoise(eps_px=8, mean=MEAN, std=STD), torch.full((1, 3, 8, 8), value)
    noisy, _ = noise(None, erased, torch.zeros(1))
    inwards = (9 - noisy.abs()) * torch.tensor(STD).view(3, 1, 1) * 255  # in pixels
    assert (inwards >= 0).all() and (inwards > 0).any()
    assert inwards.max() < 6 * 8  # moved by noise, not into the range


def test_noise_of_several_strengths_has_a_norm_each():
    model, (images, target) = split_model(num_aux=2).train(), make_batch()
    task = task_of('advprop', model, adv_source='gaussian-noise', adv_eps=[2., 16.])
    with recorded_batches(model) as seen:
        result = task(images * 0.5, target)
    weak, strong = ((part - images * 0.5).std().item() * 255 / 2 for part in seen[0].chunk(3)[1:])
    assert weak == pytest.approx(2, rel=0.05) and strong == pytest.approx(16, rel=0.05)
    assert len(seen) == 1 and math.isfinite(result['loss'].item())  # no pass but the training one


def test_noise_follows_torchs_seed_and_is_new_in_every_step():
    images, target = make_batch()
    noise = GaussianNoise(**HALF)

    def twice(seed):
        torch.manual_seed(seed)
        return [noise(tiny_model, images, target)[0] for _ in range(2)]

    first, second = twice(1)
    assert not torch.equal(first, second)
    assert all(torch.equal(*pair) for pair in zip(twice(1), (first, second)))


def test_the_normalisation_is_the_models_where_none_is_given():
    model, (images, target) = split_model('test_efficientnet_ap'), make_batch()
    cfg = model.pretrained_cfg
    results = []
    for noise in (GaussianNoise(), GaussianNoise(mean=cfg['mean'], std=cfg['std']), GaussianNoise(**HALF)):
        torch.manual_seed(0)
        results.append(noise(model, images, target)[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_what_noise_says_of_itself():
    assert GaussianNoise(eps_px=8).describe() == 'Gaussian noise, std 8/255'
    assert GaussianNoise(eps_px=8).facts() == dict(trained_on='gaussian-noise', eps_px=8)
    assert GaussianNoise().relative_cost() == 0
    with pytest.raises(ValueError, match='eps_px must be at least 0 .in 0–255 pixels., got -1'):
        GaussianNoise(eps_px=-1)
