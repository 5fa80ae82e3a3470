"""What was asked of a regime: the AdvProp group of the command line, as given, with no regime's defaults in it."""
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from .attack import Attack
from .named_sources import NamedSource
from .pairing import pairing_of
from .source import AugmentedView, Source

__all__ = ['BUDGETS', 'NO_PAIRING', 'RegimeSettings']

BUDGETS = ('epochs', 'vanilla')  # what --epochs counts: epochs of the regime, or of vanilla training
NO_PAIRING = 'none'


@dataclass(frozen=True)
class RegimeSettings:
    """What was asked of a regime.

    Args:
        regime: Name of the regime, None for the model's default one.
        attack: Settings of the attack that were given, but the strength, by the names of `Attack`'s fields.
        strengths: Strengths in 0–255 pixels, one for each auxiliary norm; empty for the regime's default.
        named: What makes the images of each auxiliary norm in place of the attack, `name key=value …` as `NamedSource`
            takes them; empty for the attack.
        weight: Weight of the losses of generated images, None for the regime's default.
        pairing: Loss between routes, a name in `pairing.PAIRINGS`; None for none.
        pairing_weight: Weight of the pairing, None for its default.
        match_masks: Dropout and stochastic depth treat all kinds of images alike.
        budget: `'epochs'` or `'vanilla'`, None for the regime's default.
        share: What main and auxiliary norms share, see `convert_split_norm`; None for what those of the model do.
        bn_momentum: Momentum of the auxiliary norms' statistics, None for that of the main norms.
        num_views: Parts of a batch that show the same images through norms of their own: clean, then augmented ones.
        given: Names of the flags that were given, such as `adv_steps`.
        runs_code: Whether code that `named` names is imported. Where not, its sources only tell its name.
    """
    regime: Optional[str] = None
    attack: Mapping[str, Any] = field(default_factory=dict)
    strengths: Tuple[float, ...] = ()
    named: Sequence[str] = ()
    weight: Optional[float] = None
    pairing: Optional[str] = None
    pairing_weight: Optional[float] = None
    match_masks: bool = False
    budget: Optional[str] = None
    share: Optional[str] = None
    bn_momentum: Optional[float] = None
    num_views: int = 1
    given: FrozenSet[str] = frozenset()
    runs_code: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, 'named', (self.named,) if isinstance(self.named, str) else tuple(self.named))
        object.__setattr__(self, 'attack', MappingProxyType(dict(self.attack)))
        if self.budget not in (None, *BUDGETS):
            raise ValueError(f'budget must be one of {", ".join(BUDGETS)}, got {self.budget!r}.')

    @classmethod
    def from_values(cls, flags: Mapping[str, Any]) -> 'RegimeSettings':
        """The settings in a mapping from flags to values, such as an `args.yaml`.

        Args:
            flags: Values by the names of the flags, `adv_eps` for `--adv-eps`; None where one was not given.
        """
        if flags.get('adv_pairing') == NO_PAIRING:  # as over a recipe that has one
            flags = {**flags, 'adv_pairing': None, 'adv_pairing_weight': None}
        given = {name for name, value in flags.items()
                 if name.startswith('adv_') and value is not None and value is not False}
        attack = {name: flags[flag] for name, flag in Attack.names_of_flags().items() if flag in given}
        strengths = attack.pop('eps_px', ())
        splits = bool(flags.get('split_bn'))
        return cls(
            regime=flags.get('regime'), attack=attack,
            strengths=tuple(strengths) if isinstance(strengths, (list, tuple)) else (strengths,),
            named=flags.get('adv_source') or (), weight=flags.get('adv_weight'), budget=flags.get('adv_budget'),
            pairing=flags.get('adv_pairing'), pairing_weight=flags.get('adv_pairing_weight'),
            match_masks=bool(flags.get('adv_match_masks')), share=flags.get('adv_share'),
            bn_momentum=flags.get('adv_bn_momentum'),
            num_views=max(1, flags.get('aug_splits') or 1) if splits else 1,
            given=frozenset(given | {name for name in ('aug_splits', 'split_bn') if flags.get(name)}))

    def attacks(self, default: Attack) -> List[Attack]:
        """The attacks that were asked for, one for each strength.

        Args:
            default: The regime's own, for settings that were not given.
        """
        attack = replace(default, **self.attack)
        return [replace(attack, eps_px=strength) for strength in self.strengths] or [attack]

    def between_routes(self, sources: Sequence[Source]) -> Dict[str, Any]:
        """Keyword arguments of a task that compares what its routes say, and matches their masks.

        Args:
            sources: The sources of the task.

        Raises:
            ValueError: The pairing is not there, or has nothing to compare.
        """
        pairing_of(self.pairing, self.pairing_weight, sources)
        return dict(pairing=self.pairing, pairing_weight=self.pairing_weight, match_masks=self.match_masks)

    def sources(self, default: Attack) -> List[Source]:
        """The sources that were asked for, one for each auxiliary norm: augmented parts of the batch, then others.

        Args:
            default: The regime's own attack.

        Raises:
            ValueError: There is no such source, a setting is not its own or out of range, or flags do not go together.
        """
        views = [AugmentedView(view) for view in range(1, self.num_views)]
        return [*views, *(self._named_sources(default) if self.named else self.attacks(default))]

    def unused_by_sources(self) -> List[str]:
        """Names of the flags given, such as `adv_steps`, that no source in place of the attack has a use for.

        Raises:
            ValueError: There is no such source.
        """
        sources = [NamedSource.parse(text) for text in self.named]
        if not sources:
            return []
        flags, taken = Attack.names_of_flags(), {
            name for source in sources if source.is_attack for name in source.options()}
        unused = [flags[name] for name in sorted(self.attack) if name not in taken]
        if self.strengths and not any(source.has_strength for source in sources):
            unused.append(flags['eps_px'])
        return unused

    def _named_sources(self, default: Attack) -> List[Source]:
        sources = [NamedSource.parse(text) for text in self.named]
        if len(sources) > 1 and len(self.strengths) > 1:
            raise ValueError('--adv-eps gives several strengths to one source, there are '
                             f'{len(sources)}: write them as settings, --adv-source {_with_strengths(self.strengths)}.')
        told = [source for source in sources if not self.runs_code and source.is_code]
        if not told:
            self._check_flags(sources)
        strengths = self.strengths or (None,)
        return [
            source.stand_in() if source in told else source.make(default, self.attack, strength)
            for source in sources for strength in strengths]

    def _check_flags(self, sources: Sequence[NamedSource]) -> None:
        unused = self.unused_by_sources()
        if unused:
            names = ', '.join(source.name for source in sources)
            raise ValueError(f'--adv-source {names} has no use for {", ".join(map(_as_flag, unused))}: leave '
                             f'{"it" if len(unused) == 1 else "them"} out.')
        if len(self.strengths) > 1 and sources[0].sets_strength:
            raise ValueError(f'--adv-source {self.named[0]} says its strength, and --adv-eps several others: leave one '
                             'out.')


def _with_strengths(strengths: Sequence[float]) -> str:
    return ' '.join(f"'pgd eps={strength:g}'" for strength in strengths)


def _as_flag(name: str) -> str:
    return f'--{name.replace("_", "-")}'
