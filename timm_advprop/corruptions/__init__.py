"""Corruptions of images, as pure functions of arrays: those of ImageNet-C, and how strong each is at a severity."""
from .corruptions import check_libraries, corrupt
from .severities import ALEXNET_ERRORS, ALL_CORRUPTIONS, CORRUPTIONS, GROUPS, SEVERITIES, check_corruption

__all__ = [
    'ALEXNET_ERRORS', 'ALL_CORRUPTIONS', 'CORRUPTIONS', 'GROUPS', 'SEVERITIES', 'check_corruption', 'check_libraries',
    'corrupt',
]
