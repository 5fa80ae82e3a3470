"""Evaluation beyond the clean test set: corruptions, shifted test sets, strong attacks."""
from .autoattack import autoattack
from .routed import routed

__all__ = ['autoattack', 'routed']
