"""Evaluation beyond the clean test set: corruptions, shifted test sets, strong attacks."""
