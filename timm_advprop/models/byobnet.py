"""Bring-your-own-block networks: RepVGG, MobileOne, GENet, CLIP ResNets, RegNet-Z and ResNet kin with split norms."""
from ._builder import register_split_models

__all__ = []

register_split_models(__name__)
