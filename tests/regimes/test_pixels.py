"""From pixels to the units of normalised images, and whose normalisation it is."""
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn as nn

from tests.regimes.regime_models import DETERMINISTIC, HALF, make_batch, split_model, tiny_model
from timm_advprop import AdvPropTask, norm_route
from timm_advprop.regimes import Attack, GaussianNoise, normalisation_of

pytestmark = pytest.mark.usefixtures('one_thread')
MEAN, STD = (0.5, 0.25, 0.1), (0.5, 0.25, 0.2)


def test_pixels_become_units_for_each_channel():
    attack = Attack(mean=MEAN, std=STD)
    assert attack.normalised(51.) == pytest.approx((0.4, 0.8, 1.))
    low, high = attack.bounds
    assert low == pytest.approx((-1, -1, -0.5)) and high == pytest.approx((1, 3, 4.5))


@pytest.mark.parametrize('source', [Attack(eps_px=2), GaussianNoise(eps_px=2)], ids=['attack', 'noise'])
def test_a_source_keeps_its_own_normalisation_and_its_settings(source):
    given = source.normalised_by([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (given.mean, given.std, given.eps_px) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 2)
    assert source.mean is None and source.std is None
    again = given.normalised_by(*HALF.values())
    assert (again.mean, again.std) == (given.mean, given.std)


@pytest.mark.parametrize('mean, std', [
    ((0.5, 0.5), (0.5, 0.5, 0.5)), (HALF['mean'], (0.5, 0., 0.5)), (HALF['mean'], (0.5, -0.5, 0.5)),
    (HALF['mean'], (0.5, float('nan'), 0.5))])
def test_a_wrong_normalisation_is_named(mean, std):
    with pytest.raises(ValueError, match='mean and std need one value for each channel, std above 0'):
        Attack().normalised_by(mean, std)


@pytest.mark.parametrize('kind', [list, np.array, torch.tensor])
def test_a_normalisation_may_be_of_any_kind_of_sequence(kind):
    given = [(0.5, 0.25, 0.125), (0.5, 0.25, 0.25)]
    attack = Attack(mean=kind(given[0]), std=kind(given[1]))
    assert attack == Attack(mean=given[0], std=given[1]) and hash(attack)
    assert Attack().normalised_by(*map(kind, given)) == attack
    task = AdvPropTask(split_model(), mean=kind(given[0]), std=kind(given[1]), verbose=False)
    assert (task.sources[0].mean, task.sources[0].std) == tuple(given)


def test_a_model_says_how_its_inputs_are_normalised():
    model = tiny_model()
    with pytest.raises(ValueError, match='Sequential does not say how its inputs are normalised: pass mean and std'):
        normalisation_of(model)
    assert normalisation_of(model, [0.1], [0.2]) == ((0.1,), (0.2,))
    model.pretrained_cfg = dict(mean=MEAN, std=STD)
    assert normalisation_of(model) == (MEAN, STD)
    assert normalisation_of(model, mean=HALF['mean']) == (HALF['mean'], STD)
    assert normalisation_of(model, std=HALF['std']) == (MEAN, HALF['std'])


@pytest.mark.parametrize('channels, mean', [(3, MEAN), (1, (0.85 / 3,)), (4, (0.85 / 3,) * 4)])
def test_a_model_of_other_channels_has_the_average_as_in_timms_loaders(channels, mean):
    model = nn.Identity()
    model.pretrained_cfg, model.in_chans = dict(mean=MEAN, std=STD), channels
    found = normalisation_of(model)
    assert found[0] == pytest.approx(mean) and len(found[1]) == channels


def test_mean_and_std_default_to_those_of_the_model():
    images, target = make_batch()
    model = split_model('test_efficientnet_ap').train()
    cfg = model.pretrained_cfg
    assert cfg['mean'] != HALF['mean'] and cfg['std'] != HALF['std']  # or this test could not fail
    results = []
    for normalisation in ({}, dict(mean=cfg['mean'], std=cfg['std']), HALF, dict(std=HALF['std'])):
        task = AdvPropTask(deepcopy(model), sources=Attack(**DETERMINISTIC), verbose=False, **normalisation)
        results.append(task(images, target)['adv_loss'])
    assert results[0] == results[1]
    assert len({result.item() for result in results}) == 3


def test_an_attack_alone_has_the_normalisation_of_the_model_or_its_own():
    model, (images, target) = split_model('test_efficientnet_ap'), make_batch()
    cfg = model.pretrained_cfg
    with norm_route(model, 'aux'):
        of_model, as_given, other = (Attack(**DETERMINISTIC, **normalisation)(model, images, target)[0]
                                     for normalisation in ({}, dict(mean=cfg['mean'], std=cfg['std']), HALF))
    assert torch.equal(of_model, as_given) and not torch.equal(of_model, other)


def test_one_mean_for_all_channels_fits_any_number_of_channels():
    for in_chans in (1, 4):
        model = split_model(in_chans=in_chans).train()
        images, target = torch.rand(4, in_chans, 32, 32).double() * 2 - 1, torch.arange(4)
        result = AdvPropTask(model, mean=(0.5,), std=(0.5,), verbose=False)(images, target)
        assert result['loss'].isfinite() and result['adv_loss'] != result['clean_loss']


def test_an_attack_that_is_used_alone_checks_its_normalisation():
    for wrong in (dict(mean=(.5,), std=(0.,)), dict(mean=(.5, .5), std=(.5,))):
        with pytest.raises(ValueError, match='mean and std need one value for each channel'):
            Attack(**wrong)


def test_values_out_of_the_range_of_pixels_may_stay_where_they_are_and_go_no_farther():
    source = GaussianNoise(mean=(0.5,), std=(0.25,))
    images, made = (torch.tensor(values).view(1, 1, 1, -1) for values in (
        (-3., -3., 3., 3., 0., 0.), (-3., -4., 3., 4., -2.5, 2.5)))
    assert source.in_range_of(images, made).flatten().tolist() == [-3, -3, 3, 3, -2, 2]
