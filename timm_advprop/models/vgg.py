"""VGG with split norms."""
from ._builder import register_split_models

__all__ = []

register_split_models(__name__, left_out={'vgg??': 'no norms; vgg??_bn has batch norms'})
