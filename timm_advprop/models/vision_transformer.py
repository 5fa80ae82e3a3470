"""Vision transformers with 16-pixel patches, tiny to base, with split layer norms."""
from ._builder import register_split_models

__all__ = []

register_split_models(
    __name__,
    names=('vit_tiny_patch16_*', 'vit_small_patch16_*', 'vit_base_patch16_*', 'test_vit*'),
)
