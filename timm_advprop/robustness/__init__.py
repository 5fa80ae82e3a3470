"""Evaluation beyond the clean test set: corruptions, other test sets, strong attacks."""
