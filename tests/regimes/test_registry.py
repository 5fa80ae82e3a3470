"""The regimes by name: which one a run has, the model it needs, and flags whose help the classes themselves tell."""
from argparse import HelpFormatter

import pytest
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy

from tests.regimes.regime_models import CLASSES, HALF, make_batch, split_model, task_of, tiny_model
from timm_advprop import AdvPropTask
from timm_advprop.cli import train
from timm_advprop.cli.parser import ProgramParser
from timm_advprop.engine.attack_settings import TestAttack
from timm_advprop.norms import has_split_norm, num_aux_norms
from timm_advprop.regimes import (
    REGIMES,
    Attack,
    FastAdvPropTask,
    JointTask,
    MadryTask,
    RegimeSettings,
    TradesTask,
    VanillaTask,
    create_task,
    regime_flags,
    regime_of,
)

pytestmark = pytest.mark.usefixtures('one_thread')
NEGATIVE = 'tests.regimes.regime_models:negative'


# The regime of a run


def test_the_regimes_are_those_of_the_paper_and_fast_advprop():
    assert REGIMES == {
        'vanilla': VanillaTask, 'madry': MadryTask, 'joint': JointTask, 'advprop': AdvPropTask,
        'trades': TradesTask, 'fast-advprop': FastAdvPropTask}


@pytest.mark.parametrize('name, task_type', [('test_resnet_ap', AdvPropTask), ('test_resnet', VanillaTask)])
def test_the_default_regime_follows_the_norms(name, task_type):
    model = timm.create_model(name)
    assert regime_of(RegimeSettings(), has_split_norm(model)) is task_type
    assert type(create_task(RegimeSettings(), model, verbose=False)) is task_type


@pytest.mark.parametrize('regime', REGIMES)
@pytest.mark.parametrize('is_split', [False, True])
def test_the_regime_that_was_asked_for_does_not_depend_on_the_model(regime, is_split):
    assert regime_of(RegimeSettings(regime=regime), is_split) is REGIMES[regime]


@pytest.mark.parametrize('is_split', [False, True])
def test_an_unknown_regime_is_named_and_so_are_the_known_ones(is_split):
    for ask in (lambda settings: regime_of(settings, is_split),
                lambda settings: create_task(settings, timm.create_model('test_resnet'))):
        with pytest.raises(ValueError, match='adverprop.*vanilla.*advprop'):
            ask(RegimeSettings(regime='adverprop'))


def test_flags_without_a_use_are_refused_with_the_regime_named_or_not():
    settings = RegimeSettings(given=frozenset({'split_bn'}))
    with pytest.raises(ValueError, match='Regime vanilla has no use for --split-bn .its images share one norm.'):
        regime_of(settings, is_split=False)
    assert regime_of(settings, is_split=True) is AdvPropTask


# The task


@pytest.mark.parametrize('regime, flags, num_aux', [
    ('advprop', {}, 1),
    ('advprop', dict(adv_eps=4.), 1),
    ('advprop', dict(adv_eps=[1., 4.]), 2),
    ('advprop', dict(adv_eps=[1., 2., 4.]), 3),
    ('advprop', dict(aug_splits=2, split_bn=True), 2),
    ('advprop', dict(aug_splits=3, split_bn=True, adv_eps=[1., 4.]), 4),
    ('advprop', dict(aug_splits=3), 1),
    ('advprop', dict(adv_source='gaussian-noise', adv_eps=[4., 8.]), 2),
    ('advprop', dict(adv_source=NEGATIVE), 1),
    ('advprop', dict(adv_source=['pgd steps=1', NEGATIVE, 'gaussian-noise'], adv_eps=2.), 3),
    ('fast-advprop', {}, 1),
    ('madry', {}, 0), ('joint', {}, 0), ('vanilla', {}, 0),
], ids=str)
def test_a_plain_model_gets_a_norm_for_each_kind_of_images(regime, flags, num_aux):
    model = timm.create_model('test_resnet', num_classes=CLASSES)
    task = task_of(regime, model, **flags)
    assert type(task) is REGIMES[regime] and task.get_trainable_module() is model
    assert (num_aux_norms(model) if has_split_norm(model) else 0) == num_aux
    task(*make_batch(12, torch.float32))['loss'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_that_is_split_is_not_converted_again():
    model = timm.create_model('test_resnet_ap', num_aux=2)
    task_of('advprop', model, adv_eps=[1., 4.])
    assert num_aux_norms(model) == 2
    with pytest.raises(ValueError, match='num_aux=3'):
        task_of('advprop', model, adv_eps=[1., 2., 4.])


def test_create_task_passes_the_criterion_the_attack_and_the_normalisation_on():
    images, target = make_batch()
    criterion, attack = LabelSmoothingCrossEntropy(0.3), Attack(eps_px=2, steps=1, target='none', random_start=0.)
    created = task_of(
        'advprop', split_model().train(), criterion, adv_eps=2., adv_steps=1, adv_target='none', adv_random_start=0.,
        adv_weight=0.25)
    built = AdvPropTask(split_model().train(), criterion, attack, weight=0.25, verbose=False, **HALF)
    assert created.sources == built.sources
    assert created(images, target)['loss'] == built(images, target)['loss']


@pytest.mark.parametrize('flags', [
    dict(adv_eps=4.), dict(adv_steps=2), dict(adv_source='gaussian-noise')], ids=str)
def test_an_attack_on_a_plain_model_needs_a_regime(flags):
    with pytest.raises(ValueError, match='has no split norms: say which regime'):
        task_of(None, timm.create_model('test_resnet'), **flags)
    assert type(task_of('vanilla', timm.create_model('test_resnet'), **flags)) is VanillaTask  # of a shared recipe
    assert type(task_of(None, tiny_model(), **flags)) is AdvPropTask


# Flags


def parser_of(flags):
    parser = ProgramParser()
    parser.add_settings('AdvProp parameters', flags)
    return parser


def asked_for(*command):
    return RegimeSettings.from_values(vars(parser_of(regime_flags()).parse_args(command)))


def help_text(flag):
    parser = train.create_parser()
    parser.formatter_class = lambda prog: HelpFormatter(prog, max_help_position=100, width=1000)
    line, = [line for line in parser.format_help().splitlines() if line.lstrip().startswith(f'{flag} ')]
    return line


def test_no_flag_asks_for_nothing():
    assert asked_for() == RegimeSettings()


def test_every_flag_reaches_the_task():
    settings = asked_for(
        '--regime', 'advprop', '--adv-attack', 'gd', '--adv-eps', '1', '2.5', '--adv-alpha', '0.5', '--adv-steps', '3',
        '--adv-target', 'none', '--adv-random-start', '0.25', '--adv-weight', '0.1', '--adv-norm', 'l2',
        '--adv-norm-stats', 'train', '--adv-amp-dtype', 'bfloat16', '--adv-budget', 'vanilla')
    task = create_task(settings, tiny_model(2), verbose=False, **HALF)
    attack = dict(kind='gd', alpha_px=0.5, steps=3, target='none', random_start=0.25, norm='l2', norm_stats='train',
                  amp_dtype='bfloat16', **HALF)
    assert task.sources == [Attack(eps_px=1, **attack), Attack(eps_px=2.5, **attack)]
    assert task.weight == 0.1 and settings.budget == 'vanilla'
    noise = create_task(asked_for('--adv-source', 'gaussian-noise'), tiny_model(), verbose=False, **HALF)
    assert noise.sources[0].describe() == 'Gaussian noise, std 4/255'


@pytest.mark.parametrize('regime', REGIMES)
def test_every_regime_can_be_chosen(regime):
    assert asked_for('--regime', regime).regime == regime


@pytest.mark.parametrize('flags', [regime_flags, TestAttack.flags], ids=['train', 'validate'])
@pytest.mark.parametrize('flag,value', [
    ('--adv-eps', '-1'), ('--adv-eps', 'nan'), ('--adv-eps', 'inf'), ('--adv-eps', 'four'),
    ('--adv-alpha', '-0.5'), ('--adv-alpha', 'one'),
    ('--adv-steps', '0'), ('--adv-steps', '-3'), ('--adv-steps', '1.5'),
    ('--adv-random-start', '1.1'), ('--adv-random-start', '-0.1'), ('--adv-random-start', 'nan'),
    ('--adv-attack', 'fgsm'), ('--adv-target', 'true'), ('--adv-norm', 'l1'), ('--adv-norm-stats', 'batch'),
    ('--adv-amp-dtype', 'float8'),
])
def test_a_wrong_value_ends_with_status_2_and_names_the_flag(flags, flag, value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parser_of(flags()).parse_args([flag, value])
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert f'argument {flag}' in message and value in message


@pytest.mark.parametrize('flag,value', [
    ('--adv-weight', '-1'), ('--adv-weight', 'nan'), ('--regime', 'adverprop'), ('--adv-budget', 'long')])
def test_a_wrong_value_of_training_ends_with_status_2_and_names_the_flag(flag, value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        asked_for(flag, value)
    assert exit_info.value.code == 2
    assert f'argument {flag}' in capsys.readouterr().err


def test_validation_alone_takes_one_strength_and_the_attack_that_is_worst_by_default():
    values = vars(parser_of(TestAttack.flags()).parse_args(['--adv-attack', 'pgd']))
    assert TestAttack.from_values(values).attack == Attack(target='none', random_start=1.)
    values = vars(parser_of(TestAttack.flags()).parse_args(['--adv-attack', 'gd', '--adv-eps', '2']))
    assert TestAttack.from_values(values).attack == Attack(kind='gd', eps_px=2, target='none', random_start=1.)
    several = TestAttack.from_values(
        vars(parser_of(TestAttack.flags()).parse_args(['--adv-attack', 'pgd', '--adv-eps', '1', '2'])))
    assert [attack.eps_px for attack in several.strengths] == [1, 2]
    with pytest.raises(ValueError, match='A run has one strength'):
        several.check_alone()
    assert [one.strengths for one in several.each_alone()] == [(one.attack,) for one in several.each_alone()]
    assert [one.attack.eps_px for one in several.each_alone()] == [1, 2]
    assert TestAttack.from_values(vars(parser_of(TestAttack.flags()).parse_args([]))).attack is None


# Facts are said once


@pytest.mark.parametrize('flag, words', [
    ('--regime', '(default: advprop where the model has split norms, else vanilla)'),
    ('--adv-attack', '(default: pgd)'),
    ('--adv-eps', 'several train one aux norm each (default: 4, trades: 8, fast-advprop: 1)'),
    ('--adv-alpha', '(default: 1, trades: 2)'),
    ('--adv-steps', '(default: eps + 1, and 1 where eps is at most 1, trades: 10, fast-advprop: 1)'),
    ('--adv-target', '(default: random, madry: none, trades: none, fast-advprop: none)'),
    ('--adv-random-start', '(default: 0.8, madry: 1, trades: 1)'),
    ('--adv-norm', '(default: linf)'),
    ('--adv-norm-stats', '(default: eval)'),
    ('--adv-amp-dtype', '(default: as the training step)'),
    ('--adv-weight', '(default: 1, trades: 6, fast-advprop: 0.5)'),
    ('--adv-pairing', '(default: none)'),
    ('--adv-pairing-weight', '(default: alp: 0.5, kl: 6, js: 12)'),
    ('--adv-budget', '(default: epochs, fast-advprop: vanilla)'),
])
def test_help_tells_each_regimes_own_default(flag, words):
    assert words in help_text(flag)


def test_help_follows_the_class_that_says_the_default(monkeypatch):
    monkeypatch.setattr(JointTask, 'default_attack', Attack(eps_px=7, random_start=0.3, kind='ifgsm'))
    monkeypatch.setattr(JointTask, 'default_weight', 0.7)
    monkeypatch.setattr(MadryTask, 'default_budget', 'vanilla')
    assert '(default: 4, joint: 7, trades: 8, fast-advprop: 1)' in help_text('--adv-eps')
    assert '(default: 0.8, madry: 1, joint: 0.3, trades: 1)' in help_text('--adv-random-start')
    assert '(default: pgd, joint: ifgsm)' in help_text('--adv-attack')
    assert '(default: 1, joint: 0.7, trades: 6, fast-advprop: 0.5)' in help_text('--adv-weight')
    assert '(default: epochs, madry: vanilla, fast-advprop: vanilla)' in help_text('--adv-budget')
    task = task_of('joint', tiny_model())
    assert (task.attack.eps_px, task.attack.kind, task.weight) == (7, 'ifgsm', 0.7)


def test_help_and_choices_follow_the_registry(monkeypatch):
    monkeypatch.setitem(REGIMES, 'gentle', type('Gentle', (JointTask,), dict(
        name='gentle', default_attack=Attack(eps_px=0.5))))
    assert 'gentle: 0.5' in help_text('--adv-eps')
    assert regime_flags()['--regime'].choices == tuple(REGIMES) and 'gentle' in REGIMES
    assert asked_for('--regime', 'gentle').regime == 'gentle'
