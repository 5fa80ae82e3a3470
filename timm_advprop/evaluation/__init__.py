"""Evaluation: accuracy by route, clean and under attack, and the files that record it."""
from .accuracy import evaluate
from .program import main

__all__ = ['evaluate', 'main']
