"""Split norms: one main norm for clean images and auxiliary norms for the others.

AdvProp keeps clean and adversarial images apart by giving each its own batch-norm statistics and affine parameters
("auxiliary batch norm", Xie et al., *Adversarial Examples Improve Image Recognition*, CVPR 2020, arXiv:1911.09665,
section 4). A split norm is a norm whose own parameters are the main norm, so its state-dict keys are those of the plain
layer; the auxiliary norms sit below it as `aux_bn.<i>`, whatever the kind of the norm. In a model without batch norms,
layer norms and their kin are split. A *route* says which of the norms an image passes:

* `'main'` (0): the main norm. The default: the model behaves exactly as the plain one. `'clean'` is taken for it, too.
* `'aux'` (1), or `i`: the i-th auxiliary norm.
* `'split'`: training only. The batch is divided along dimension 0, the first part goes through the main norm, part
  i through auxiliary norm i. A model in eval mode uses its main norms on this route.

The routes of batch norms may share their statistics, and have affine parameters alone of their own: see
`shared_statistics`.

The tasks of `regimes` leave a model on route `'main'`: it is divided inside of a step alone. Tools that pass a model's
images in train mode, such as `torch.optim.swa_utils.update_bn`, work on the main norms then; but that one resets the
statistics of every batch norm, so give it `strip_aux(model)`.

Between the routes lie plain models, whose norms are a mix of main and auxiliary ones: `blend_routes`.
"""
from .affine_norm import SplitGroupNorm, SplitLayerNorm, SplitLayerNorm2d
from .batch_norm import (
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    SplitBatchNormAct2d,
    SplitSyncBatchNorm,
    SplitSyncBatchNormAct,
)
from .batch_norm_settings import batch_statistics, configure_batch_norm
from .blend import blend_routes
from .conversion import convert_split_norm, convert_sync_batchnorm, strip_aux, unsplit_batch_norms
from .distances import norm_distances
from .folding import folded, is_compiled
from .parameters import freeze_norms, norm_parameters, train_aux
from .routes import Route, forward_parts, norm_route, one_route, set_norm_route
from .running_statistics import can_recalibrate, recalibrate
from .shared_statistics import SHARES, share_in, share_of
from .split_norm import SplitNorm, has_split_norm, num_aux_norms, split_norms
from .state_dict import aux_indices_in, index_aux_key, main_key, num_aux_in, split_state_dict

__all__ = [
    'Route', 'SHARES', 'SplitBatchNorm1d', 'SplitBatchNorm2d', 'SplitBatchNormAct2d', 'SplitGroupNorm',
    'SplitLayerNorm', 'SplitLayerNorm2d', 'SplitNorm', 'SplitSyncBatchNorm', 'SplitSyncBatchNormAct', 'aux_indices_in',
    'batch_statistics', 'blend_routes', 'can_recalibrate', 'configure_batch_norm', 'convert_split_norm',
    'convert_sync_batchnorm', 'folded', 'forward_parts', 'freeze_norms', 'has_split_norm', 'index_aux_key',
    'is_compiled', 'main_key', 'norm_distances', 'norm_parameters', 'norm_route', 'num_aux_in', 'num_aux_norms',
    'one_route', 'recalibrate', 'set_norm_route', 'share_in', 'share_of', 'split_norms', 'split_state_dict',
    'strip_aux', 'train_aux', 'unsplit_batch_norms',
]
