"""The engine: builds a run from settings, trains, evaluates, and keeps a run's checkpoints and log."""
