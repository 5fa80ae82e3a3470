"""timm models with split norms, registered as `*_ap` on import. One file a timm family, under timm's file name."""
from . import efficientnet, resnet

__all__ = ['efficientnet', 'resnet']
