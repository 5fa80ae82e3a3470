"""EfficientNet with split norms.

`efficientnet_bN_ap` is timm's `tf_efficientnet_bN` (TensorFlow padding, batch-norm epsilon 1e-3, inputs normalised by
0.5), the architecture of the published AdvProp weights.
"""
from ._builder import register_split_models

__all__ = []

_SIZES = [f'b{i}' for i in range(9)]

register_split_models(
    __name__,
    bases={
        **{f'efficientnet_{size}_ap': f'tf_efficientnet_{size}' for size in _SIZES},
        'test_efficientnet_ap': 'test_efficientnet',
    },
    weights={f'efficientnet_{size}_ap': f'tf_efficientnet_{size}.ap_in1k' for size in _SIZES},
)
