"""AdvProp for timm: models with split norms, adversarial training, weights. Importing registers `*_ap` models."""
from . import models
from .attacks import gd, ifgsm, pgd, pyramid
from .engine.one_call import evaluate
from .errors import InputError
from .hub import push_to_hub
from .models import create_model
from .norms import (
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    SplitBatchNormAct2d,
    SplitGroupNorm,
    SplitLayerNorm,
    SplitLayerNorm2d,
    SplitSyncBatchNorm,
    SplitSyncBatchNormAct,
    blend_routes,
    convert_split_norm,
    convert_sync_batchnorm,
    freeze_norms,
    has_split_norm,
    norm_route,
    set_norm_route,
    split_state_dict,
    strip_aux,
)
from .regimes import (
    AdvPropTask,
    Attack,
    FastAdvPropTask,
    JointTask,
    MadryTask,
    PyramidAttack,
    TradesTask,
    VanillaTask,
    match_masks,
)
from .robustness import routed
from .version import __version__
from .weights import load_checkpoint

__all__ = [
    '__version__', 'AdvPropTask', 'Attack', 'FastAdvPropTask', 'InputError', 'JointTask', 'MadryTask', 'PyramidAttack',
    'SplitBatchNorm1d', 'SplitBatchNorm2d', 'SplitBatchNormAct2d', 'SplitGroupNorm', 'SplitLayerNorm',
    'SplitLayerNorm2d', 'SplitSyncBatchNorm', 'SplitSyncBatchNormAct', 'TradesTask', 'VanillaTask', 'blend_routes',
    'convert_split_norm', 'convert_sync_batchnorm', 'create_model', 'evaluate', 'freeze_norms', 'gd', 'has_split_norm',
    'ifgsm', 'load_checkpoint', 'match_masks', 'models', 'norm_route', 'pgd', 'push_to_hub', 'pyramid', 'routed',
    'set_norm_route', 'split_state_dict', 'strip_aux',
]
