"""Training regimes: which images train a model, through which norms, and how their losses add up.

One file a family of regimes, one a kind of source. A new regime is a `RegimeTask` in a file of its own and a line in
`registry.REGIMES`; a new kind of image is a `Source` in a file of its own and a line in `regime_settings.GENERATORS`.
"""
from .advprop import AdvPropTask
from .attack import Attack
from .fast_advprop import FastAdvPropTask
from .matched_masks import match_masks
from .model_attack import ModelAttack, frozen
from .noise import GaussianNoise
from .one_norm import JointTask, MadryTask
from .pairing import PAIRINGS
from .pixels import PixelSource, normalisation_of
from .pyramid_attack import PyramidAttack
from .regime_settings import GENERATORS, RegimeSettings
from .registry import REGIMES, create_task, regime_flags, regime_of, split_for_regime
from .source import AugmentedView, FunctionSource, Source
from .task import RegimeTask
from .trades import TradesTask
from .vanilla import VanillaTask

__all__ = [
    'AdvPropTask', 'Attack', 'AugmentedView', 'FastAdvPropTask', 'FunctionSource', 'GENERATORS', 'GaussianNoise',
    'JointTask', 'MadryTask', 'ModelAttack', 'PAIRINGS', 'PixelSource', 'PyramidAttack', 'REGIMES', 'RegimeSettings',
    'RegimeTask', 'Source', 'TradesTask', 'VanillaTask', 'create_task', 'frozen', 'match_masks', 'normalisation_of',
    'regime_flags', 'regime_of', 'split_for_regime',
]
