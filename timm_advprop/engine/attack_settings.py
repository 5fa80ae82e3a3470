"""The attack of a validation: its flags and its defaults."""
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..regimes import Attack
from ..settings import Setting

__all__ = ['TestAttack']

_NO_ATTACK = 'none'


@dataclass(frozen=True)
class TestAttack:
    """The attack of a validation run.

    Args:
        strengths: What an attack would be, for each strength.
        attack: The attack that was asked for, None for clean images alone.
        given: Flags of an attack that were given beside its name.
    """
    strengths: Tuple[Attack, ...] = ()
    attack: Optional[Attack] = None
    given: Tuple[str, ...] = ()
    default = Attack(target='none', random_start=1.)
    __test__ = False  # no test of pytest's

    @classmethod
    def flags(cls) -> Dict[str, Setting]:
        """The options by their flags; an attack is asked for by its name."""
        flags = {}
        for name, about in Attack.declared().items():
            default = getattr(cls.default, name)
            help = about.default_help or (f'{default:g}' if isinstance(default, float) else default)
            flags[about.flags[0]] = replace(about, default=None, default_help=help)
        flags['--adv-attack'] = replace(
            flags['--adv-attack'], choices=(_NO_ATTACK, *Attack.declared()['kind'].choices), default=_NO_ATTACK,  # pyright: ignore[reportOptionalIterable]
            default_help=_NO_ATTACK, help='attack the images, and report adv_top1 and adv_top5 too')
        flags['--adv-eps'] = replace(
            flags['--adv-eps'], nargs='+', help=f'{flags["--adv-eps"].help}; several give a result each')
        return flags

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> 'TestAttack':
        """The attack in a mapping from names of flags to values."""
        flags = Attack.names_of_flags()
        given = {name: values[flag] for name, flag in flags.items() if values.get(flag) is not None}
        kind, eps_px = given.pop('kind', _NO_ATTACK), given.pop('eps_px', ())
        asked = kind != _NO_ATTACK
        attack = replace(cls.default, **given, **(dict(kind=kind) if asked else {}))
        several = eps_px if isinstance(eps_px, (list, tuple)) else (eps_px,)
        strengths = tuple(replace(attack, eps_px=strength) for strength in several) or (attack,)
        names = (*given, 'eps_px') if several else given
        return cls(strengths, strengths[0] if asked else None, tuple(flags[name] for name in names))

    def each_alone(self) -> List['TestAttack']:
        """One for each strength that was asked for."""
        return [replace(self, strengths=(attack,), attack=self.attack and attack) for attack in self.strengths]

    def check_alone(self) -> None:
        """Check that it makes sense as the one attack of a run.

        Raises:
            ValueError: There are settings of an attack, but no attack, or there are several strengths.
        """
        self.check_asked()
        if len(self.strengths) > 1:
            raise ValueError('A run has one strength of an attack (--adv-eps), or --suite attacks or autoattack.')

    def check_asked(self) -> None:
        """Check that it makes sense where nothing but its flags says what is attacked.

        Raises:
            ValueError: There are settings of an attack, but no attack.
        """
        if self.attack is None and self.given:
            flags = ', '.join(f'--{flag.replace("_", "-")}' for flag in self.given)
            raise ValueError(f'{flags}: these belong to an attack, give --adv-attack pgd.')
