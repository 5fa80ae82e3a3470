"""Training regimes: which images train a model, through which norms, and how their losses add up.

One file a family. A new regime is a `RegimeTask` in a file of its own and a line in `registry.REGIMES`.
"""
from .adversary import Adversary, default_steps
from .advprop import AdvPropTask
from .fast_advprop import FastAdvPropTask
from .generators import GENERATORS, GaussianNoise
from .one_norm import JointTask, MadryTask
from .registry import REGIMES, attack_settings, create_task, default_regime, images_of_aux_norms, num_aux_of_regime
from .task import RegimeTask
from .vanilla import VanillaTask

__all__ = [
    'AdvPropTask',
    'Adversary',
    'FastAdvPropTask',
    'GENERATORS',
    'GaussianNoise',
    'JointTask',
    'MadryTask',
    'REGIMES',
    'RegimeTask',
    'VanillaTask',
    'attack_settings',
    'create_task',
    'default_regime',
    'default_steps',
    'images_of_aux_norms',
    'num_aux_of_regime',
]
