"""Groups of options: said once, checked, read-only."""
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any, Dict, Optional, Tuple

import numpy as np
import pytest

from timm_advprop.settings import ProgramSettings, Setting, Settings, setting


@dataclass(frozen=True)
class Shape(Settings):
    title = 'Shape parameters'
    size: int = setting(4, 'size', low=1)
    part: float = setting(0.5, 'part', low=0, high=1, unit='of one')
    kind: str = setting('round', 'kind', choices=('round', 'square'))
    name: Optional[str] = setting(None, 'name')
    sides: Tuple[float, ...] = setting((1., 2.), 'sides', ordered=True, nargs='+')
    corner: Optional[Tuple[int, ...]] = setting(None, 'corner', low=0, nargs=2)
    is_open: bool = setting(False, 'open')
    extra: Dict[str, Any] = setting({}, 'more')


@dataclass(frozen=True)
class Limits(Settings):
    share: Optional[float] = setting(None, 'share', low=0, below=1, advice='leave it out for none')
    weight: float = setting(1., 'weight', above=0)
    bias: float = setting(0., 'bias')
    even: str = setting('', 'even', check=lambda value: 'must be even' if value else None)


@dataclass(frozen=True)
class Program(ProgramSettings):
    shape: Shape


def test_the_kind_of_a_value_follows_from_the_annotation():
    kinds = {name: about.kind for name, about in Shape.declared().items()}
    assert kinds == dict(size=int, part=float, kind=str, name=str, sides=float, corner=int, is_open=bool, extra=dict)


def test_a_group_takes_its_part_of_a_mapping_and_defaults_for_the_rest():
    shape = Shape.from_values(dict(size=7, sides=[3., 4.], colour='red'))
    assert shape == Shape(size=7, sides=(3., 4.))  # several values are a tuple, however they arrive
    assert shape.values() == dict(
        size=7, part=0.5, kind='round', name=None, sides=(3., 4.), corner=None, is_open=False, extra={})


def test_groups_do_not_share_a_default_that_can_change():
    assert Shape().extra is not Shape().extra


@pytest.mark.parametrize('values, message', [
    (dict(size=0), 'size must be at least 1, got 0.'),
    (dict(part=1.1), 'part must be from 0 to 1 (of one), got 1.1.'),
    (dict(part=float('nan')), 'part must be from 0 to 1 (of one), got nan.'),
    (dict(size=float('inf')), 'size must be a whole number, got inf.'),
    (dict(part='half'), "part must be a number, got 'half'."),
    (dict(share=1), 'share must be at least 0, below 1: leave it out for none, got 1.'),
    (dict(share=float('-inf')), 'share must be at least 0, below 1: leave it out for none, got -inf.'),
    (dict(weight=0), 'weight must be above 0, got 0.'),
    (dict(weight=float('inf')), 'weight must be above 0, got inf.'),
    (dict(bias=float('nan')), 'bias must be finite, got nan.'),
    (dict(sides=(1., float('nan'))), 'sides must be finite, got (1.0, nan).'),
    (dict(sides=[2., 1.]), 'sides must rise, got [2.0, 1.0].'),
    (dict(sides=3.), 'sides must be several values, got 3.0.'),
    (dict(corner=(1, 2, 3)), 'corner must be 2 values, got (1, 2, 3).'),
    (dict(corner=(1, -2)), 'corner must be at least 0, got (1, -2).'),
    (dict(even=3), 'even must be even, got 3.'),
    (dict(kind='oval'), "kind must be one of round, square, got 'oval'."),
])
def test_a_value_out_of_its_range_is_named(values, message):
    group = Shape if values.keys() <= Shape.declared().keys() else Limits
    with pytest.raises(ValueError) as error:
        group(**values)
    assert str(error.value) == message
    with pytest.raises(ValueError):
        replace(group(), **values)


def test_limits_are_allowed_values_and_those_above_and_below_are_not():
    assert [Setting('', kind=float, low=0, high=1).problem(value) for value in (0, 1, np.float32(.5))] == [None] * 3
    assert Setting('', kind=float, above=0, high=1).problem(0) == 'must be above 0, at most 1'
    assert Setting('', kind=float, nargs='+', ordered=True).problem([1, 1, 2]) is None
    assert Setting('', kind=int).problem(np.int64(3)) is None


def test_settings_are_read_only():
    program = Program.from_values(dict(size=7, colour='red'))
    for owner, name in ((program, 'shape'), (program, 'given'), (program.shape, 'size'), (program.shape, 'other')):
        with pytest.raises(FrozenInstanceError):
            setattr(owner, name, None)
    with pytest.raises(TypeError):
        program.given['size'] = 8


def test_what_was_given_is_kept_whole_and_does_not_follow_the_mapping_it_came_from():
    values = dict(size=7, colour='red')
    program = Program.from_values(values)
    values['size'] = 8
    assert program.given == dict(size=7, colour='red')
    assert program.shape.size == 7


def test_flags_follow_from_names():
    (title, flags), = Program.flags()
    assert title == 'Shape parameters'
    assert list(flags) == ['--size', '--part', '--kind', '--name', '--sides', '--corner', '--is-open', '--extra']
    assert flags['--part'].help == 'part'
