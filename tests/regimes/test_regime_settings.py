"""`RegimeSettings`: what was asked for becomes sources, with the regime's own defaults for the rest."""
from dataclasses import FrozenInstanceError

import pytest

from tests.regimes.regime_models import negative
from timm_advprop.regimes import (
    REGIMES,
    SOURCES,
    AdvPropTask,
    Attack,
    AugmentedView,
    FastAdvPropTask,
    GaussianNoise,
    JointTask,
    MadryTask,
    RegimeSettings,
    VanillaTask,
)

NEGATIVE = f'{negative.__module__}:negative'
DEFAULT = Attack(eps_px=3, random_start=1.)
ALL = dict(
    regime='advprop', adv_attack='gd', adv_eps=[1., 2.5], adv_alpha=0.5, adv_steps=3, adv_target='none',
    adv_random_start=0.25, adv_norm='l2', adv_norm_stats='train', adv_amp_dtype='bfloat16', adv_weight=0.1,
    adv_pairing='kl', adv_pairing_weight=2., adv_match_masks=True, adv_budget='vanilla')


def settings_of(**flags):
    return RegimeSettings.from_values(flags)


def test_what_was_asked_for_is_read_only():
    with pytest.raises(FrozenInstanceError):
        settings_of().weight = 2.


def test_nothing_is_asked_for_by_default():
    nothing = RegimeSettings()
    assert RegimeSettings.from_values({}) == nothing
    assert RegimeSettings.from_values({name: None for name in ALL}) == nothing
    assert RegimeSettings.from_values(dict(lr=0.1, aug_splits=0, split_bn=False)) == nothing
    assert RegimeSettings.from_values(dict(adv_pairing='none', adv_match_masks=False)) == nothing


def test_every_flag_reaches_the_settings():
    settings = settings_of(**ALL)
    assert settings == RegimeSettings(
        regime='advprop', attack=dict(
            kind='gd', alpha_px=0.5, steps=3, target='none', random_start=0.25, norm='l2', norm_stats='train',
            amp_dtype='bfloat16'),
        strengths=(1., 2.5), weight=0.1, pairing='kl', pairing_weight=2., match_masks=True, budget='vanilla',
        given=frozenset(ALL) - {'regime'})
    attack = dict(kind='gd', alpha_px=0.5, steps=3, target='none', random_start=0.25, norm='l2', norm_stats='train',
                  amp_dtype='bfloat16')
    assert settings.sources(DEFAULT) == [Attack(eps_px=1, **attack), Attack(eps_px=2.5, **attack)]


@pytest.mark.parametrize('eps', [2., [2.], (2.,)], ids=str)
def test_one_strength_may_be_a_number(eps):  # as recipes and older runs' args.yaml have it
    assert settings_of(adv_eps=eps).strengths == (2.,)


def test_a_value_of_0_is_a_value():
    settings = settings_of(adv_eps=0., adv_random_start=0., adv_weight=0.)
    assert settings.weight == 0 and settings.sources(DEFAULT) == [Attack(eps_px=0, random_start=0.)]
    assert settings.given == {'adv_eps', 'adv_random_start', 'adv_weight'}


def test_settings_that_are_not_given_are_the_regimes():
    assert settings_of().sources(DEFAULT) == [DEFAULT]
    assert settings_of(adv_alpha=2.).sources(DEFAULT) == [Attack(eps_px=3, alpha_px=2, random_start=1.)]
    assert settings_of(adv_eps=[1., 4.]).attacks(DEFAULT) == [
        Attack(eps_px=1, random_start=1.), Attack(eps_px=4, random_start=1.)]


@pytest.mark.parametrize('flags, num_views, given', [
    (dict(aug_splits=3, split_bn=True), 3, {'aug_splits', 'split_bn'}),
    (dict(aug_splits=3), 1, {'aug_splits'}),  # of JSD's loss: all parts pass the main norms
    (dict(aug_splits=0, split_bn=False), 1, set()),
])
def test_augmented_parts_have_norms_where_split_bn_says_so(flags, num_views, given):
    settings = settings_of(**flags)
    assert settings.num_views == num_views and settings.given == given
    views = [AugmentedView(view) for view in range(1, num_views)]
    assert settings.sources(DEFAULT) == [*views, DEFAULT]


def test_augmented_views_come_before_attacks_and_noise():
    flags = dict(aug_splits=3, split_bn=True, adv_eps=[1., 4.])
    views = [AugmentedView(1), AugmentedView(2)]
    assert settings_of(**flags).sources(Attack()) == [*views, Attack(eps_px=1), Attack(eps_px=4)]
    noise = settings_of(**flags, adv_source='gaussian-noise').sources(Attack())
    assert noise == [*views, GaussianNoise(eps_px=1), GaussianNoise(eps_px=4)]


def test_a_source_takes_the_place_of_the_attack():
    assert settings_of(adv_source='gaussian-noise').sources(DEFAULT) == [GaussianNoise()]
    source, = settings_of(adv_source=NEGATIVE).sources(DEFAULT)
    assert source.function is negative


@pytest.mark.parametrize('flags, words', [
    (dict(adv_source='gaussian-noise', adv_steps=3), 'gaussian-noise has no use for --adv-steps: leave it out'),
    (dict(adv_source=NEGATIVE, adv_steps=3, adv_attack='pgd'),
     'negative has no use for --adv-attack, --adv-steps: leave them out'),
    (dict(adv_source='gaussian-noise', adv_eps=-1.), 'eps_px must be at least 0'),
    (dict(adv_source='os:getcwd'), 'os:getcwd must take .model, images, target.: too many positional arguments'),
    (dict(adv_source='salt'), 'Unknown source .salt. .*: give one of pgd, ifgsm, gd, .*or package.module:name'),
    (dict(adv_eps=[4., -1.]), 'eps_px must be at least 0'),
    (dict(adv_attack='fgsm'), 'kind must be one of'),
])
def test_what_does_not_go_together_is_refused(flags, words):
    with pytest.raises(ValueError, match=words):
        settings_of(**flags).sources(DEFAULT)


def test_a_registered_source_is_made_for_each_strength(monkeypatch):
    monkeypatch.setitem(SOURCES, 'louder-noise', lambda: None)
    monkeypatch.setitem(SOURCES, 'louder-noise', type('Louder', (GaussianNoise,), {}))
    sources = settings_of(adv_source='louder-noise', adv_eps=[4., 8.]).sources(DEFAULT)
    assert [(type(source).__name__, source.eps_px) for source in sources] == [('Louder', 4), ('Louder', 8)]


# What each regime makes of it


def facts_of(task_type, **flags):
    return [source.facts() for source in task_type.sources_of_aux_norms(settings_of(**flags))]


def test_what_auxiliary_norms_are_trained_on_is_told():
    for task_type in (VanillaTask, MadryTask, JointTask):
        assert facts_of(task_type) == []
    attack = dict(attack='pgd', target='random', random_start=0.8, alpha_px=1)
    assert facts_of(AdvPropTask, aug_splits=2, split_bn=True, adv_eps=[1., 4.]) == [
        dict(trained_on='augmented images'),
        dict(trained_on='adversarial images', eps_px=1, steps=1, **attack),
        dict(trained_on='adversarial images', eps_px=4, steps=5, **attack),
    ]
    assert facts_of(AdvPropTask, adv_norm='l2', adv_eps=200., adv_steps=2)[0]['norm'] == 'l2'
    assert facts_of(AdvPropTask, adv_source='gaussian-noise', adv_eps=8.) == [
        dict(trained_on='gaussian-noise', eps_px=8)]
    assert facts_of(AdvPropTask, adv_source=NEGATIVE) == [dict(trained_on='images of negative')]
    assert facts_of(FastAdvPropTask) == [dict(
        trained_on='adversarial images', eps_px=1, steps=1, alpha_px=1, attack='pgd', target='none', random_start=0.8)]


@pytest.mark.parametrize('regime, default', [
    ('madry', dict(eps_px=4, target='none', random_start=1.)),
    ('joint', dict(eps_px=4)),
    ('trades', dict(eps_px=8, alpha_px=2, steps=10, target='none', random_start=1.)),
    ('advprop', dict(eps_px=4)),
    ('fast-advprop', dict(eps_px=1, steps=1, target='none')),
])
def test_each_regime_has_its_own_default_attack(regime, default):
    task_type = REGIMES[regime]
    assert task_type.default_attack == Attack(**default)
    arguments = task_type.arguments(settings_of())
    attack = arguments['sources'][0] if regime == 'advprop' else arguments['attack']
    assert attack == task_type.default_attack
    assert arguments.get('weight') is None  # the task's own


@pytest.mark.parametrize('regime, weight, budget, smallest_batch', [
    ('vanilla', 1, 'epochs', 1), ('madry', 1, 'epochs', 1), ('joint', 1, 'epochs', 1), ('advprop', 1, 'epochs', 1),
    ('trades', 6, 'epochs', 1), ('fast-advprop', 0.5, 'vanilla', 5)])
def test_each_regime_says_what_programs_need_to_know(regime, weight, budget, smallest_batch):
    task_type = REGIMES[regime]
    assert task_type.name == regime
    assert (task_type.default_weight, task_type.default_budget, task_type.smallest_batch) == (
        weight, budget, smallest_batch)


@pytest.mark.parametrize('regime, no_use_for', [
    ('vanilla', {'adv_bn_momentum', 'adv_share', 'split_bn'}),
    ('madry', {'adv_bn_momentum', 'adv_share', 'adv_weight', 'split_bn', 'adv_pairing', 'adv_pairing_weight',
               'adv_match_masks'}),
    ('joint', {'adv_bn_momentum', 'adv_share', 'split_bn'}),
    ('trades', {'adv_target', 'adv_random_start', 'adv_pairing', 'adv_pairing_weight', 'adv_source', 'split_bn'}),
    ('advprop', set()),
    ('fast-advprop', {'adv_steps', 'adv_norm_stats', 'adv_amp_dtype', 'adv_source', 'aug_splits', 'adv_pairing',
                      'adv_pairing_weight', 'adv_match_masks'}),
])
def test_each_regime_refuses_the_flags_it_has_no_use_for_and_no_others(regime, no_use_for):
    for name in {*ALL, 'adv_bn_momentum', 'adv_source', 'adv_share', 'aug_splits', 'split_bn'} - {'regime'}:
        settings = RegimeSettings(given=frozenset({name, 'adv_eps'}))
        if name in no_use_for:
            with pytest.raises(ValueError, match=f'^Regime {regime} has no use for --{name.replace("_", "-")}.*: '
                                                 'leave it out'):
                REGIMES[regime].check(settings)
        else:
            REGIMES[regime].check(settings)


@pytest.mark.parametrize('share', ['statistics', 'statistics-of-main'])
def test_a_momentum_of_statistics_that_are_shared_is_refused(share):
    settings = settings_of(adv_share=share, adv_bn_momentum=0.)
    with pytest.raises(ValueError, match=f'^--adv-share {share} leaves no statistics .* --adv-bn-momentum'):
        AdvPropTask.check(settings)
    AdvPropTask.check(settings_of(adv_share='none', adv_bn_momentum=0.01))


def test_augmented_norms_without_augmented_parts_are_no_crash():
    assert RegimeSettings.from_values({'split_bn': True}).num_views == 1
