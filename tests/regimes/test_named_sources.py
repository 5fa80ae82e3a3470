"""`--adv-source`: a name and settings of its own become a source; what is not a source's own is refused by name."""
from dataclasses import dataclass

import pytest

from tests.regimes.regime_models import HALF, negative
from timm_advprop.regimes import SOURCES, Attack, GaussianNoise, NamedSource, RegimeSettings, Source
from timm_advprop.settings import Settings, setting

NEGATIVE = f'{negative.__module__}:negative'
HERE = __name__
DEFAULT = Attack(eps_px=3, random_start=1.)


@dataclass(frozen=True)
class Everything(Settings, Source):
    """A source with a setting of each kind."""
    size: int = setting(1, 'a number', low=1)
    range: tuple[float, ...] = setting((0., 1.), 'two numbers', nargs=2, ordered=True, low=0)
    names: tuple[str, ...] = setting((), 'several', nargs='+', choices=('a', 'b'))
    how: str = setting('plain', 'a choice', choices=('plain', 'odd'))
    loud: bool = setting(False, 'a switch')
    eps_px: float = setting(5., 'strength', low=0)

    def describe(self):
        return 'everything'


class Harder(Attack):
    """An attack of a class of its own."""


class Users(Source):
    """A user's class without declared settings."""

    def __init__(self, shape, colour='red'):
        self.shape, self.colour = shape, colour


class WithoutStrength(Source):
    """Has no settings at all."""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(SOURCES, 'everything', Everything)
    monkeypatch.setitem(SOURCES, 'harder', Harder)


def sources_of(*named, **flags):
    return RegimeSettings.from_values(dict(adv_source=list(named), **flags)).sources(DEFAULT)


def test_a_source_is_read():
    source = NamedSource.parse('pgd eps=2  random-start=0.5')
    assert source.name == 'pgd' and dict(source.settings) == {'eps': '2', 'random-start': '0.5'}
    assert RegimeSettings(named='pgd eps=2').named == ('pgd eps=2',)


@pytest.mark.parametrize('text, source', [
    ('pgd', DEFAULT),
    ('ifgsm', Attack(kind='ifgsm', eps_px=3, random_start=1.)),
    ('gd eps=2 steps=1 target=none norm-stats=train', Attack(
        kind='gd', eps_px=2, steps=1, target='none', norm_stats='train', random_start=1.)),
    ('pgd eps_px=2 random_start=0', Attack(eps_px=2, random_start=0.)),
    ('gaussian-noise', GaussianNoise()),
    ('gaussian-noise eps=1e-1', GaussianNoise(eps_px=0.1)),
    ('everything size=3 range=[0.25,1e1] names=[a,b] how=odd loud=true',
     Everything(size=3, range=(0.25, 10.), names=('a', 'b'), how='odd', loud=True)),
    ('everything range=1,2 names=a loud=False', Everything(range=(1., 2.), names=('a',))),
    ('harder steps=2', Harder(steps=2)),
    (f'{HERE}:Everything size=4', Everything(size=4)),
])
def test_a_name_and_settings_make_a_source(text, source):
    made, = sources_of(text)
    assert made == source and type(made) is type(source)
    if isinstance(source, Everything):
        assert type(made.size) is int and all(type(value) is float for value in made.range)


def test_a_users_class_gets_numbers_lists_and_words():
    made, = sources_of(f'{HERE}:Users shape=[1,2] colour=blue')
    assert (made.shape, made.colour) == ([1, 2], 'blue')
    assert type(sources_of(f'{HERE}:WithoutStrength')[0]) is WithoutStrength


def test_each_source_has_its_own_settings_and_flags_are_the_attacks_defaults():
    sources = sources_of(
        'pgd steps=1', 'gaussian-noise', 'gd eps=2', 'harder', 'harder steps=2', adv_steps=7, adv_target='none')
    assert sources == [
        Attack(eps_px=3, random_start=1., steps=1, target='none'), GaussianNoise(),
        Attack(kind='gd', eps_px=2, random_start=1., steps=7, target='none'), Harder(steps=7, target='none'),
        Harder(steps=2, target='none')]


def test_a_strength_is_that_of_all_sources_that_have_one_and_say_none():
    assert sources_of('pgd', 'gaussian-noise eps=9', NEGATIVE, 'everything', adv_eps=2.)[:2] == [
        Attack(eps_px=2, random_start=1.), GaussianNoise(eps_px=9)]
    assert sources_of('pgd', 'everything', adv_eps=2.)[1].eps_px == 2


def test_several_strengths_are_for_one_source():
    assert sources_of('pgd steps=1', adv_eps=[1., 2.]) == [
        Attack(eps_px=eps, steps=1, random_start=1.) for eps in (1, 2)]
    assert [source.eps_px for source in sources_of('everything', adv_eps=[1., 2.])] == [1, 2]


@pytest.mark.parametrize('named, flags, words', [
    (['pgdd'], {}, r"Unknown source 'pgdd' \(--adv-source\) \(did you mean pgd.*give one of pgd, ifgsm, gd, "),
    ([''], {}, "Unknown source ''"),
    (['everything sise=2'], {}, r"--adv-source everything: unknown setting 'sise' \(did you mean size\?\): "
     'it has size, range, names, how, loud, eps.$'),
    (['pgd kind=gd'], {}, "--adv-source pgd: unknown setting 'kind'"),
    (['pgd mean=1'], {}, "--adv-source pgd: unknown setting 'mean'"),
    ([f'{NEGATIVE} eps=2'], {}, "negative: unknown setting 'eps': it has none"),
    (['pgd eps'], {}, "--adv-source pgd: 'eps' is no setting: write key=value"),
    (['pgd eps='], {}, "'eps=' is no setting"),
    (['pgd eps=1 eps=2'], {}, '--adv-source pgd: eps is given twice'),
    (['pgd eps=1 eps_px=2'], {}, '--adv-source pgd: eps_px is given twice'),
    (['augmax step-size=1 step_size=1'], {}, '--adv-source augmax: step_size is given twice'),
    (['pgd steps=two'], {}, '--adv-source pgd: steps must be a whole number, got two'),
    (['pgd steps=1.5'], {}, '--adv-source pgd: steps must be a whole number, got 1.5'),
    (['pgd steps=0'], {}, '--adv-source pgd: steps must be at least 1, got 0'),
    (['pgd eps=-1'], {}, r'--adv-source pgd: eps must be at least 0 \(in 0–255 pixels\), got -1'),
    (['pgd eps=nan'], {}, '--adv-source pgd: eps must be at least 0'),
    (['pgd eps=300'], {}, r'--adv-source pgd: eps_px \(--adv-eps\) must be at most 255'),
    (['everything range=[1]'], {}, '--adv-source everything: range must be 2 values'),
    (['everything range=[2,1]'], {}, '--adv-source everything: range must rise'),
    (['everything names=[a,c]'], {}, '--adv-source everything: names must be one of a, b'),
    (['everything how=even'], {}, '--adv-source everything: how must be one of plain, odd'),
    ([f'{HERE}:Users'], {}, f"--adv-source {HERE}:Users: .*'shape'"),
    (['pgd', 'gaussian-noise'], dict(adv_eps=[1., 2.]), "--adv-source 'pgd eps=1' 'pgd eps=2'"),
    (['pgd eps=3'], dict(adv_eps=[1., 2.]), 'pgd eps=3 says its strength'),
    (['pgd eps-px=3'], dict(adv_eps=[1., 2.]), 'pgd eps-px=3 says its strength'),
    (['pgd'], dict(adv_attack='gd'), '--adv-source pgd has no use for --adv-attack: leave it out'),
    (['pgd', 'everything'], dict(adv_attack='gd'), 'no use for --adv-attack'),
    (['gaussian-noise', NEGATIVE], dict(adv_steps=3, adv_norm='l2'), 'no use for --adv-norm, --adv-steps: leave them'),
    ([NEGATIVE], dict(adv_eps=4.), 'no use for --adv-eps: leave it out'),
])
def test_what_is_no_source_or_not_its_own_is_refused_by_name(named, flags, words):
    with pytest.raises(ValueError, match=words) as error:
        sources_of(*named, **flags)
    assert '\n' not in str(error.value)


def test_code_is_told_by_its_name_where_it_is_not_to_run():
    settings = RegimeSettings(named=('pgd', 'not_here:noise eps=2'), attack=dict(steps=2), runs_code=False)
    assert [source.facts()['trained_on'] for source in settings.sources(DEFAULT)] == [
        'adversarial images', 'images of not_here:noise']
    with pytest.raises(ValueError, match='Cannot import'):
        RegimeSettings(named=('not_here:noise',)).sources(DEFAULT)


def test_registered_sources_say_what_a_card_needs():
    for name, maker in SOURCES.items():
        source = maker()
        assert source.describe() and source.facts()['trained_on'] and source.relative_cost() >= 0, name
        assert source.normalised_by(HALF['mean'], HALF['std']).against(None) is not None
        assert all(about.help for about in NamedSource.parse(name).options().values())
