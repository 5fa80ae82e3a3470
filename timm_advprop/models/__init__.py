"""timm models with split norms, registered as `*_ap` on import. One file a timm family, under timm's file name."""
from . import efficientnet, resnet
from ._batch_norm import configure_batch_norm

__all__ = ['configure_batch_norm', 'efficientnet', 'resnet']
