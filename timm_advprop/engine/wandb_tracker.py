"""Weights & Biases, as timm's `--log-wandb` has it."""
from importlib import import_module
from typing import Any, Dict, Mapping

import yaml

from ..weights.downloads import redact
from .trackers import TrackedRun, Tracker

__all__ = ['WandbTracker']


class WandbTracker(Tracker):
    """Logs to a project of Weights & Biases, or to a package with the same interface."""
    package = 'wandb'

    def __init__(self, run: TrackedRun):
        self.module = import_module(self.package)
        config = yaml.safe_load(redact(yaml.safe_dump(dict(run.arguments))))  # which others read: as in args.yaml
        self.run = self.module.init(name=run.name, config=config, **self.arguments(run))

    def arguments(self, run: TrackedRun) -> Dict[str, Any]:
        """Further arguments of the package's `init`."""
        return dict(project=run.project, tags=run.tags, resume='must' if run.resume_id else None,
                    id=run.resume_id or None)

    def log_row(self, epoch: int, row: Mapping[str, float]) -> None:
        self.run.log({'epoch': epoch, **row})

    def log_picture(self, epoch: int, path: str) -> None:
        self.run.log({'epoch': epoch, 'attacked': self.module.Image(path)})

    def close(self) -> None:
        self.run.finish()
