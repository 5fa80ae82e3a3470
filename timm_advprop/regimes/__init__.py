"""Training regimes: which images train a model, through which norms, and how their losses add up.

One file a family of regimes, one a kind of source. A new regime is a `RegimeTask` in a file of its own and a line in
`registry.REGIMES`; a new kind of image is a `Source` in a file of its own and a line in `named_sources.SOURCES`.
"""
from .advprop import AdvPropTask
from .amplitude_mix import AmplitudeMix
from .attack import Attack
from .augmax import AugMax
from .augmix import AugMix
from .corrupted import CorruptedImages
from .fast_advprop import FastAdvPropTask
from .matched_masks import match_masks
from .model_attack import ModelAttack, frozen
from .named_sources import SOURCES, NamedSource
from .noise import GaussianNoise
from .one_norm import JointTask, MadryTask
from .pairing import PAIRINGS
from .pixels import PixelSource, normalisation_of
from .pyramid_attack import PyramidAttack
from .regime_settings import RegimeSettings
from .registry import (
    REGIMES,
    attacks_of,
    create_task,
    lacks_regime,
    regime_flags,
    regime_of,
    split_for_regime,
    unused_flags,
)
from .source import AugmentedView, FunctionSource, Source
from .task import MadeImages, RegimeTask
from .trades import TradesTask
from .vanilla import VanillaTask

__all__ = [
    'AdvPropTask', 'AmplitudeMix', 'Attack', 'AugMax', 'AugMix', 'AugmentedView', 'CorruptedImages', 'FastAdvPropTask',
    'FunctionSource', 'GaussianNoise', 'JointTask', 'MadeImages', 'MadryTask', 'ModelAttack', 'NamedSource', 'PAIRINGS',
    'PixelSource', 'PyramidAttack', 'REGIMES', 'RegimeSettings', 'RegimeTask', 'SOURCES', 'Source', 'TradesTask',
    'VanillaTask', 'attacks_of', 'create_task', 'frozen', 'lacks_regime', 'match_masks', 'normalisation_of',
    'regime_flags', 'regime_of', 'split_for_regime', 'unused_flags',
]
