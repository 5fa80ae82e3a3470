"""timm models with split norms, registered as `*_ap` on import; see the table in `zoo`."""
from .builder import build_split_model
from .describe import ZooEntry, describe_model
from .factory import create_model
from .zoo import base_of, left_out_models, split_models, variant_of

__all__ = [
    'ZooEntry', 'base_of', 'build_split_model', 'create_model', 'describe_model', 'left_out_models', 'split_models',
    'variant_of',
]
