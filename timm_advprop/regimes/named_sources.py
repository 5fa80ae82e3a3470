"""Sources by name, as `--adv-source` takes them: a name, and settings of its own, `'pgd eps=2 steps=1'`."""
import ast
import inspect
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Union

from ..attacks import ATTACKS
from ..errors import near_matches, one_line
from ..settings import Setting, Settings
from .amplitude_mix import AmplitudeMix
from .attack import Attack
from .augmax import AugMax
from .augmix import AugMix
from .corrupted import CorruptedImages
from .model_attack import ModelAttack
from .noise import GaussianNoise
from .pyramid_attack import PyramidAttack
from .source import NamedImages, Source, as_source, import_source

__all__ = ['SOURCES', 'NamedSource', 'source_names']

# Sources that are no `Attack`, by name.
SOURCES: Dict[str, Callable[..., Source]] = {
    'pyramid': PyramidAttack,
    'gaussian-noise': GaussianNoise,
    'augmix': AugMix,
    'augmax': AugMax,
    'corruption': CorruptedImages,
    'amplitude-mix': AmplitudeMix,
}

_STRENGTH = 'eps_px'
_SAID_BY_NAME = 'kind'  # setting of an attack
_WORDS = {'true': True, 'false': False}


def source_names() -> Tuple[str, ...]:
    """All names but those of importable code."""
    return (*ATTACKS, *SOURCES)


@dataclass(frozen=True)
class NamedSource:
    """A source as it is asked for.

    Args:
        name: A kind of attack (`ATTACKS`), a name in `SOURCES`, or `package.module:name` of a source, a class of
            sources or a function (model, images, target) → (images, target).
        settings: Texts of the settings that were given, by the names that were given.
    """
    name: str
    settings: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> 'NamedSource':
        """The source in a text, `name key=value …`, values without blanks.

        Raises:
            ValueError: What follows the name is no setting, or one is given twice.
        """
        name, *rest = str(text).split() or ['']
        settings: Dict[str, str] = {}
        for word in rest:
            key, equals, value = word.partition('=')
            if not (key and equals and value):
                raise ValueError(f'--adv-source {name}: {word!r} is no setting: write key=value, lists as [1,2].')
            if key in settings:
                raise ValueError(f'--adv-source {name}: {key} is given twice.')
            settings[key] = value
        return cls(name, MappingProxyType(settings))

    @property
    def is_code(self) -> bool:
        """Whether it names code outside of this package."""
        return ':' in self.name

    @property
    def maker(self) -> Any:
        """`Attack` for a kind of attack, else what the name stands for: a class of sources, a source, a function.

        Raises:
            ValueError: The name is unknown, or cannot be imported.
        """
        if self.name in ATTACKS:
            return Attack
        if self.name in SOURCES:
            return SOURCES[self.name]
        if self.is_code:
            return import_source(self.name)
        names = source_names()
        if '=' in self.name:
            raise ValueError(f'--adv-source {self.name}: a source and its settings are one word of the command line: '
                             "put them in quotes, as in 'pgd eps=2 steps=1'.")
        raise ValueError(f'Unknown source {self.name!r} (--adv-source){near_matches(self.name, names)}: give one of '
                         f'{", ".join(names)}, or package.module:name of a callable from (model, images, target) to '
                         '(images, target).')

    @property
    def is_attack(self) -> bool:
        """Whether flags of the attack are its settings, where it has none of its own."""
        return _is_class(self.maker, ModelAttack)

    @property
    def has_strength(self) -> bool:
        """Whether it is made for a strength in pixels."""
        return _STRENGTH in self.options()

    @property
    def sets_strength(self) -> bool:
        """Whether its own settings say the strength."""
        options = self.options()
        return _STRENGTH in {self._field(key, options) for key in self.settings}

    def options(self) -> Dict[str, Setting]:
        """Its settings by name."""
        maker = self.maker
        if _is_class(maker, Settings):
            return {name: about for name, about in maker.declared().items()
                    if not (self.is_attack and name == _SAID_BY_NAME)}
        return _options_of(maker) if _is_class(maker, Source) else {}

    def make(self, attack: Attack, flags: Mapping[str, Any], strength: Optional[float] = None) -> Source:
        """The source.

        Args:
            attack: The regime's own attack, for what was not given.
            flags: Settings of attacks that were given beside the source.
            strength: Strength in 0–255 pixels that was given beside the source.

        Raises:
            ValueError: A setting is unknown, of another type or out of its range; or the source cannot be made.
        """
        maker, options = self.maker, self.options()
        given = {_STRENGTH: strength} if strength is not None and self.has_strength else {}
        given.update(self._values(options))
        try:
            if maker is Attack:
                return replace(attack, **{**flags, **given, 'kind': self.name})
            if not _is_class(maker, Source):
                return as_source(maker)
            if _needs_strength(maker):
                given.setdefault(_STRENGTH, attack.eps_px)
            of_flags = {name: value for name, value in flags.items() if name in options} if self.is_attack else {}
            return maker(**{**of_flags, **given})
        except (TypeError, ValueError) as error:
            raise ValueError(f'--adv-source {self.name}: {one_line(error)}') from error

    def stand_in(self) -> Source:
        """A source that can tell its name, for code that is not to be run."""
        return NamedImages(self.name)

    def _values(self, options: Mapping[str, Setting]) -> Dict[str, Any]:
        values: Dict[str, Any] = {}
        for key in self.settings:
            name = self._field(key, options)
            if name in values:
                raise ValueError(f'--adv-source {self.name}: {key} is given twice.')
            values[name] = self._value(key, options[name])
        return values

    def _field(self, key: str, options: Mapping[str, Setting]) -> str:
        name = key.replace('-', '_')
        for field in (name, f'{name}_px'):
            if field in options:
                return field
        known = [field.removesuffix('_px') for field in options]
        there = f'it has {", ".join(known)}' if known else 'it has none'
        raise ValueError(f'--adv-source {self.name}: unknown setting {key!r}{near_matches(name, known)}: {there}.')

    def _value(self, key: str, about: Setting) -> Any:
        text = self.settings[key]
        if about.takes_several:
            inner = text[1:-1] if text[0] == '[' and text[-1] == ']' else text
            value = [_converted(part, about.kind) for part in inner.split(',') if part]
        else:
            value = _converted(text, about.kind)
        problem = about.problem(value)
        if problem:
            raise ValueError(f'--adv-source {self.name}: {key} {problem}, got {text}.')
        return value


def _converted(text: str, kind: Callable[[str], Any]) -> Union[str, Any]:
    # As argparse converts the text of a flag; `Setting.problem` says what is wrong with a text that stays one.
    if kind is bool:
        return _WORDS.get(text.lower(), text)
    try:
        return kind(text)
    except (SyntaxError, TypeError, ValueError):
        return text


def _is_class(maker: Any, base: type) -> bool:
    return isinstance(maker, type) and issubclass(maker, base)


def _options_of(source: type) -> Dict[str, Setting]:
    # of a class that a user wrote: its arguments; numbers and lists are taken as Python has them, the rest as words
    parameters = list(inspect.signature(source).parameters.values())
    return {parameter.name: Setting('', kind=ast.literal_eval) for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)}


def _needs_strength(source: type) -> bool:
    parameter = inspect.signature(source).parameters.get(_STRENGTH)
    return parameter is not None and parameter.default is parameter.empty
