"""Training: the program, its arguments, the parts it assembles, the loop, checkpoints and the run's log."""
from .program import main

__all__ = ['main']
