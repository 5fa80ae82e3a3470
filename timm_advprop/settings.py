"""Settings: the default, help, range and name of an option stand once, in a frozen dataclass.

Flags, `--help`, checks and descriptions derive from the dataclass, and a program's settings are read-only.
"""
import math
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar, get_args, get_origin

__all__ = ['ProgramSettings', 'Setting', 'Settings', 'setting']

_Group = TypeVar('_Group', bound='Settings')
_Program = TypeVar('_Program', bound='ProgramSettings')


@dataclass(frozen=True)
class Setting:
    """What is said of an option.

    Args:
        help: What it does.
        kind: Type of a value, or of each of several; bool for a switch, dict for key=value.
        optional: It may be None.
        low: Lowest value.
        high: Highest value.
        above: A limit that it may not reach from above.
        below: A limit that it may not reach from below.
        ordered: Several values rise, or stay.
        check: Says what else is wrong with a value, such as `must be even`; None where nothing is.
        choices: All values it may take.
        nargs: Number of values, as in argparse.
        metavar: Name of a value in `--help`.
        flags: Its flag, and others; a single dash and a letter alone stand beside `--<name>`.
        unit: Unit of its value, for messages.
        advice: What to do in place of a value out of its range, for messages.
        const: Value of the flag alone.
        default: Default on the command line.
        default_help: What `--help` says of the default where that is more than its value.
    """
    help: str
    kind: Callable[[str], Any] = str
    optional: bool = True
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    ordered: bool = False
    check: Optional[Callable[[Any], Optional[str]]] = None
    choices: Optional[Sequence[Any]] = None
    nargs: Optional[Any] = None
    metavar: Optional[str] = None
    flags: Sequence[str] = ()
    unit: str = ''
    advice: str = ''
    const: Any = None
    default: Any = None
    default_help: Optional[str] = None

    @property
    def takes_several(self) -> bool:
        """Whether it has several values."""
        return self.nargs not in (None, '?')

    def problem(self, value: Any) -> Optional[str]:
        """What is wrong with a value, or with several, such as `must be at least 0`; None where nothing is."""
        if value is None:
            return None if self.optional else 'must be given'
        if not self.takes_several or self.kind is dict:
            return self._problem_of(value)
        if not isinstance(value, (list, tuple)):
            return 'must be several values'
        if isinstance(self.nargs, int) and len(value) != self.nargs:
            return f'must be {self.nargs} values'
        problem = next(filter(None, map(self._problem_of, value)), None)
        return problem or ('must rise' if self.ordered and list(value) != sorted(value) else None)

    def _problem_of(self, value: Any) -> Optional[str]:
        if self.choices is not None and value not in self.choices:
            return f'must be one of {", ".join(map(str, self.choices))}'
        problem = self._problem_of_number(value) if self.kind in (int, float) else None
        return problem or (self.check(value) if self.check else None)

    def _problem_of_number(self, value: Any) -> Optional[str]:
        number: Any = Integral if self.kind is int else Real
        if not isinstance(value, number):
            return f'must be a {"whole " if self.kind is int else ""}number'
        if math.isfinite(value) and self.low <= value <= self.high and self.above < value < self.below:
            return None
        return f'must be {self._range()}{self.unit and f" ({self.unit})"}{self.advice and f": {self.advice}"}'

    def _range(self) -> str:
        if self.low > -math.inf and self.high < math.inf:
            return f'from {_text(self.low)} to {_text(self.high)}'
        limits = dict(low='at least', above='above', high='at most', below='below')
        said = [f'{word} {_text(getattr(self, name))}' for name, word in limits.items()
                if math.isfinite(getattr(self, name))]
        return ', '.join(said) or 'finite'


def setting(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field that is an option; its annotation says its kind.

    Args:
        default: Its default.
        help: What it does.
        **about: See `Setting`.
    """
    metadata = dict(setting=Setting(help, default=default, **about))
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


class Settings:
    """A group of options: a frozen dataclass whose fields are made by `setting`.

    Raises:
        ValueError: A value is out of its range; the message names it.
    """
    title = ''

    def __post_init__(self) -> None:
        for name, about in self.declared().items():
            value = getattr(self, name)
            if isinstance(value, (list, dict)):  # several values, as argparse and YAML deliver them
                read_only = tuple(value) if isinstance(value, list) else MappingProxyType(dict(value))
                object.__setattr__(self, name, read_only)
            problem = about.problem(value)
            if problem:
                raise ValueError(f'{name} {problem}, got {value!r}.')

    @classmethod
    def declared(cls) -> Dict[str, Setting]:
        """The options by name."""
        return {entry.name: replace(
            entry.metadata['setting'], kind=_kind(entry.type), optional=type(None) in get_args(entry.type),
        ) for entry in fields(cls) if 'setting' in entry.metadata}  # pyright: ignore[reportArgumentType]

    @classmethod
    def flags(cls) -> Dict[str, Setting]:
        """The options by their flags."""
        return {f'--{name.replace("_", "-")}': about for name, about in cls.declared().items()}

    @classmethod
    def from_values(cls: Type[_Group], values: Mapping[str, Any]) -> _Group:
        """The group's part of a mapping from names to values; others are passed over, missing ones have defaults."""
        return cls(**{name: values[name] for name in cls.declared() if name in values})

    def values(self) -> Dict[str, Any]:
        """The options by name, for functions that take them all."""
        return {name: getattr(self, name) for name in self.declared()}


@dataclass(frozen=True)
class ProgramSettings:
    """All settings of a program, a group a field. A group that is no `Settings` has its flags in the field's metadata.

    Args:
        given: What was parsed, by the names of the flags; read-only.
    """
    given: Mapping[str, Any] = field(init=False, default_factory=dict, repr=False)

    @classmethod
    def from_values(cls: Type[_Program], values: Mapping[str, Any]) -> _Program:
        """The settings in a mapping from names of flags to values."""
        groups = {entry.name: entry.type.from_values(values) for entry in cls._groups()}
        settings = cls(**groups)
        object.__setattr__(settings, 'given', MappingProxyType(dict(values)))
        return settings

    @classmethod
    def flags(cls) -> List[Tuple[str, Dict[str, Setting]]]:
        """The groups of flags: their titles, and the options by their flags."""
        return [
            (entry.metadata['title'], entry.metadata['flags']()) if entry.metadata else
            (entry.type.title, entry.type.flags()) for entry in cls._groups()
        ]

    @classmethod
    def _groups(cls) -> List[Any]:
        return [entry for entry in fields(cls) if entry.init]


def _kind(annotation: Any) -> Any:
    # float for Optional[Tuple[float, ...]]
    if get_origin(annotation) is dict:
        return dict
    inner = [entry for entry in get_args(annotation) if entry not in (type(None), Ellipsis)]
    return _kind(inner[0]) if inner else annotation


def _text(number: float) -> str:
    return str(number) if isinstance(number, int) else f'{number:g}'
