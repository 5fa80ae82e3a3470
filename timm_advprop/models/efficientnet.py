"""EfficientNet and its kin (MixNet, MNASNet, FBNet-C, TinyNet, …) with split norms.

`efficientnet_bN_ap` is timm's `tf_efficientnet_bN` (TensorFlow padding, batch-norm epsilon 1e-3, inputs normalised by
0.5), the architecture of the published AdvProp weights.
"""
from ._builder import register_split_models

__all__ = []

register_split_models(
    __name__,
    renamed={f'tf_efficientnet_b{i}': f'efficientnet_b{i}_ap' for i in range(9)},
    left_out={'efficientnet_b[0-8]': 'its name belongs to the architecture of the AdvProp weights, tf_efficientnet_b*'},
)
