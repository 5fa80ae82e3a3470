"""What was asked of a regime: the AdvProp group of the command line, as given, with no regime's defaults in it."""
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Tuple

from .attack import Attack
from .noise import GaussianNoise
from .source import AugmentedView, Source, as_source, import_source

__all__ = ['BUDGETS', 'GENERATORS', 'RegimeSettings']

BUDGETS = ('epochs', 'vanilla')  # what --epochs counts: epochs of the regime, or of vanilla training

# Sources that are not attacks, by the name that --adv-generator takes; one is made for each of --adv-eps.
GENERATORS: Dict[str, Callable[..., Source]] = {'gaussian-noise': GaussianNoise}


@dataclass(frozen=True)
class RegimeSettings:
    """What was asked of a regime.

    Args:
        regime: Name of the regime, None for the model's default one.
        attack: Settings of the attack that were given, but the strength, by the names of `Attack`'s fields.
        strengths: Strengths in 0–255 pixels, one for each auxiliary norm; empty for the regime's default.
        generator: Makes the images of the auxiliary norms in place of an attack: a name in `GENERATORS`, or
            `package.module:name` of a source, a class of sources, or a function (model, images, target) → (images,
            target).
        weight: Weight of the losses of generated images, None for the regime's default.
        budget: `'epochs'` or `'vanilla'`, None for the regime's default.
        share: What main and auxiliary norms share, see `convert_split_norm`; None for what those of the model do.
        bn_momentum: Momentum of the auxiliary norms' statistics, None for that of the main norms.
        num_views: Parts of a batch that show the same images through norms of their own: clean, then augmented ones.
        given: Names of the flags that were given, such as `adv_steps`.
    """
    regime: Optional[str] = None
    attack: Mapping[str, Any] = field(default_factory=dict)
    strengths: Tuple[float, ...] = ()
    generator: Optional[str] = None
    weight: Optional[float] = None
    budget: Optional[str] = None
    share: Optional[str] = None
    bn_momentum: Optional[float] = None
    num_views: int = 1
    given: FrozenSet[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, 'attack', MappingProxyType(dict(self.attack)))
        if self.budget not in (None, *BUDGETS):
            raise ValueError(f'budget must be one of {", ".join(BUDGETS)}, got {self.budget!r}.')

    @classmethod
    def from_values(cls, flags: Mapping[str, Any]) -> 'RegimeSettings':
        """The settings in a mapping from flags to values, such as an `args.yaml`.

        Args:
            flags: Values by the names of the flags, `adv_eps` for `--adv-eps`; None where one was not given.
        """
        given = {name for name, value in flags.items() if name.startswith('adv_') and value is not None}
        attack = {name: flags[flag] for name, flag in Attack.names_of_flags().items() if flag in given}
        strengths = attack.pop('eps_px', ())
        splits = bool(flags.get('split_bn'))
        return cls(
            regime=flags.get('regime'), attack=attack,
            strengths=tuple(strengths) if isinstance(strengths, (list, tuple)) else (strengths,),
            generator=flags.get('adv_generator'), weight=flags.get('adv_weight'), budget=flags.get('adv_budget'),
            share=flags.get('adv_share'), bn_momentum=flags.get('adv_bn_momentum'),
            num_views=max(1, flags.get('aug_splits') or 1) if splits else 1,
            given=frozenset(given | {name for name in ('aug_splits', 'split_bn') if flags.get(name)}))

    def attacks(self, default: Attack) -> List[Attack]:
        """The attacks that were asked for, one for each strength.

        Args:
            default: The regime's own, for settings that were not given.
        """
        attack = replace(default, **self.attack)
        return [replace(attack, eps_px=strength) for strength in self.strengths] or [attack]

    def sources(self, default: Attack) -> List[Source]:
        """The sources that were asked for, one for each auxiliary norm: augmented parts of the batch, then others.

        Args:
            default: The regime's own attack.

        Raises:
            ValueError: There is no such generator, or it comes together with settings of an attack.
        """
        views = [AugmentedView(view) for view in range(1, self.num_views)]
        if self.generator is None:
            return [*views, *self.attacks(default)]
        if self.attack:
            flags = ', '.join(f'--{Attack.names_of_flags()[name].replace("_", "-")}' for name in sorted(self.attack))
            raise ValueError(f'A generator takes the place of the attack: leave {flags} out.')
        return [*views, *self._generated(self.strengths or (default.eps_px,))]

    def _generated(self, strengths: Tuple[float, ...]) -> List[Source]:
        if self.generator not in GENERATORS and ':' not in self.generator:
            raise ValueError(f'Unknown generator {self.generator!r}: give {", ".join(GENERATORS)}, or '
                             'package.module:name of a callable from (model, images, target) to (images, target).')
        make = GENERATORS.get(self.generator) or import_source(self.generator)
        if isinstance(make, type) and issubclass(make, Source):
            try:
                return [make(eps_px=strength) for strength in strengths]
            except TypeError as error:
                raise ValueError(
                    f'The generator {self.generator} is not made by its strength eps_px: {error}.') from error
        return [as_source(make)]
