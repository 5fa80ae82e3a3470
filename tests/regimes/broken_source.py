"""A module that cannot be imported, for `test_source.py`."""
noise = nothing  # noqa: F821
