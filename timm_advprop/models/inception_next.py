"""InceptionNeXt with split norms."""
from ._builder import register_split_models

__all__ = []

register_split_models(__name__)
