"""The settings of an `Attack`: frozen, checked in one line, said once, and told again by a model card."""
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from tests.regimes.regime_models import HALF
from timm_advprop.regimes import Attack, GaussianNoise, PyramidAttack
from timm_advprop.regimes.attack import _warn_of_units


@pytest.mark.parametrize('name', [entry.name for entry in fields(Attack)])
def test_an_attack_is_frozen(name):
    attack = Attack(**HALF)
    with pytest.raises(FrozenInstanceError):
        setattr(attack, name, 1)
    assert attack == Attack(**HALF)


def test_an_attack_takes_its_settings_by_name_alone():
    with pytest.raises(TypeError):
        Attack('pgd')
    with pytest.raises(TypeError, match='strength'):
        Attack(strength=4)


def test_attacks_of_the_same_settings_are_equal():
    assert Attack(eps_px=2) == Attack(eps_px=2.) != Attack(eps_px=3)
    assert hash(Attack(eps_px=2)) == hash(Attack(eps_px=2.))


def test_the_defaults_are_the_papers():
    assert Attack().values() == dict(
        kind='pgd', eps_px=4, alpha_px=1, steps=None, target='random', random_start=0.8, norm='linf',
        norm_stats='eval', amp_dtype=None)
    assert Attack().mean is None and Attack().std is None


@pytest.mark.parametrize('wrong, message', [
    (dict(eps_px=-1), 'eps_px must be at least 0 (in 0–255 pixels), got -1.'),
    (dict(eps_px=float('inf')), 'eps_px must be at least 0 (in 0–255 pixels), got inf.'),
    (dict(eps_px=float('nan')), 'eps_px must be at least 0 (in 0–255 pixels), got nan.'),
    (dict(alpha_px=-0.5), 'alpha_px must be at least 0 (in 0–255 pixels), got -0.5.'),
    (dict(steps=0), 'steps must be at least 1, got 0.'),
    (dict(steps=-3), 'steps must be at least 1, got -3.'),
    (dict(random_start=1.5), 'random_start must be from 0 to 1, got 1.5.'),
    (dict(random_start=-0.1), 'random_start must be from 0 to 1, got -0.1.'),
    (dict(random_start=float('nan')), 'random_start must be from 0 to 1, got nan.'),
    (dict(eps_px=256), 'eps_px (--adv-eps) must be at most 255 in the L∞ norm, got 256.'),
    (dict(eps_px=256, norm='l2'),
     'eps_px (--adv-eps) above 255 has no usual number of steps, got 256: give steps (--adv-steps).'),
    (dict(kind='fgsm'), 'kind must be one of pgd, ifgsm, gd, got \'fgsm\'.'),
    (dict(target='least-likely'), 'target must be one of random, none, got \'least-likely\'.'),
    (dict(norm='l1'), 'norm must be one of linf, l2, got \'l1\'.'),
    (dict(norm_stats='batch'), 'norm_stats must be one of eval, train, got \'batch\'.'),
    (dict(amp_dtype='float8'), 'amp_dtype must be one of float16, bfloat16, float32, got \'float8\'.'),
], ids=str)
def test_a_setting_out_of_its_range_is_named_in_one_line(wrong, message):
    for make in (Attack, lambda **settings: replace(Attack(), **settings)):
        with pytest.raises(ValueError) as error:
            make(**wrong)
        assert str(error.value) == message


@pytest.mark.parametrize('limit', [
    dict(eps_px=0), dict(alpha_px=0), dict(steps=1), dict(random_start=0), dict(random_start=1), dict(steps=None),
    dict(amp_dtype=None)], ids=str)
def test_limits_are_within_the_range(limit):
    Attack(**limit)


@pytest.mark.parametrize('settings, words', [
    ({}, 'PGD-5, eps 4/255, alpha 1/255, random target'),
    (dict(kind='ifgsm', eps_px=1, target='none'), 'I-FGSM-1, eps 1/255, alpha 1/255, untargeted'),
    (dict(kind='gd', eps_px=2.5, alpha_px=0.25, steps=7), 'GD-7, eps 2.5/255, alpha 0.25/255, random target'),
    (dict(norm='l2', eps_px=128, alpha_px=32, steps=10), 'PGD-10 (L2), eps 128/255, alpha 32/255, random target'),
], ids=str)
def test_an_attack_describes_itself(settings, words):
    assert Attack(**settings).describe() == words


@pytest.mark.parametrize('settings, steps', [(dict(eps_px=1), 1), (dict(eps_px=4), 5), (dict(eps_px=4, steps=2), 2)])
def test_a_step_of_an_attack_costs_two_thirds_of_a_training_step(settings, steps):
    assert Attack(**settings).relative_cost() == pytest.approx(steps * 2 / 3)


# Facts of a model card


CASES = [
    {}, dict(eps_px=1), dict(kind='gd', alpha_px=0.5, target='none', random_start=0.25, steps=7),
    dict(kind='ifgsm', norm='l2', eps_px=200, alpha_px=50, steps=2)]


@pytest.mark.parametrize('settings', CASES, ids=str)
def test_an_attack_is_made_again_from_its_facts(settings):
    attack = Attack(**settings)
    again = Attack.from_facts(attack.facts())
    assert again == replace(attack, steps=attack.num_steps)
    assert again.facts() == attack.facts() and again.describe() == attack.describe()


def test_facts_are_plain_values_and_those_that_cards_have_always_told():
    assert Attack().facts() == dict(
        trained_on='adversarial images', attack='pgd', target='random', random_start=0.8, alpha_px=1, eps_px=4,
        steps=5)
    assert Attack(norm='l2').facts()['norm'] == 'l2'
    # how it was carried out is no fact about the images
    assert Attack(norm_stats='train', amp_dtype='bfloat16', **HALF).facts() == Attack().facts()


def test_settings_beside_the_facts_replace_them():
    facts = Attack(eps_px=2, target='none').facts()
    strong = Attack.from_facts(facts, eps_px=8, steps=None, random_start=1., kind='gd', **HALF)
    assert strong == Attack(kind='gd', eps_px=8, target='none', random_start=1., **HALF)
    assert strong.num_steps == 9
    with pytest.raises(ValueError, match='eps_px'):
        Attack.from_facts(dict(facts, eps_px=-1))


def test_every_setting_has_a_flag_help_and_a_range_or_choices():
    flags = Attack.names_of_flags()
    assert flags == dict(
        kind='adv_attack', eps_px='adv_eps', alpha_px='adv_alpha', steps='adv_steps', target='adv_target',
        random_start='adv_random_start', norm='adv_norm', norm_stats='adv_norm_stats', amp_dtype='adv_amp_dtype')
    for name, about in Attack.declared().items():
        assert about.flags == (f'--{flags[name].replace("_", "-")}',) and about.help
        assert about.choices or about.low > float('-inf'), name
    assert {name: about.kind for name, about in Attack.declared().items()} == dict(
        kind=str, eps_px=float, alpha_px=float, steps=int, target=str, random_start=float, norm=str, norm_stats=str,
        amp_dtype=str)


def test_noise_is_frozen_too():
    with pytest.raises(FrozenInstanceError):
        GaussianNoise().eps_px = 8


def test_an_l2_attack_may_be_as_long_as_an_image_is_large():
    assert Attack(eps_px=5000, norm='l2', steps=3).num_steps == 3
    assert Attack(eps_px=255).num_steps == Attack(eps_px=255, norm='l2').num_steps == 256


def test_a_random_wrong_label_needs_two_classes():
    with pytest.raises(ValueError, match='--adv-target random needs a wrong label, the model has 1 class'):
        Attack().check_classes(1)
    Attack().check_classes(2)
    Attack(target='none').check_classes(1)


@pytest.mark.parametrize('name', ['kind', 'eps_px', 'alpha_px', 'target', 'random_start', 'norm', 'norm_stats'])
def test_a_setting_that_has_to_be_given_is_not_none(name):
    with pytest.raises(ValueError, match=f'^{name} must be given'):
        Attack(**{name: None})
    with pytest.raises(ValueError, match='steps'):
        Attack(steps=1.5)


@pytest.mark.parametrize('settings, said', [
    (dict(eps_px=8 / 255), '0.0313725 in 0–1 is 8 here.'), (dict(eps_px=.03137), '0.03137 in 0–1 is 7.999 here.'),
    (dict(eps_px=.5, norm='l2'), '0.5 in 0–1 is 127.5 here.'), (dict(eps_px=3, norm='l2'), '3 in 0–1 is 765 here.'),
], ids=str)
def test_a_strength_in_other_units_is_warned_of_once(settings, said, caplog):
    _warn_of_units.cache_clear()
    attack = Attack(steps=1, **settings)
    attack.normalised_by((.5,), (.5,))
    Attack(steps=1, **settings)
    record, = caplog.records
    assert record.getMessage().endswith(said) and '(--adv-eps)' in record.getMessage()


@pytest.mark.parametrize('source', [
    lambda: Attack(eps_px=0), lambda: Attack(eps_px=.25), lambda: Attack(eps_px=4, norm='l2'),
    lambda: PyramidAttack(eps_px=.1)], ids=['none', 'least', 'l2', 'pyramid'])
def test_a_strength_in_pixels_is_not_warned_of(source, caplog):
    _warn_of_units.cache_clear()
    source()
    assert not caplog.records
