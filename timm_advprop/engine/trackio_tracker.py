"""trackio, a local dashboard with the interface of Weights & Biases: `trackio show`."""
from typing import Any, Dict

from .trackers import TrackedRun
from .wandb_tracker import WandbTracker

__all__ = ['TrackioTracker']


class TrackioTracker(WandbTracker):
    """Logs to a project of trackio, on this machine."""
    package = 'trackio'

    def arguments(self, run: TrackedRun) -> Dict[str, Any]:
        return dict(project=run.project or 'timm-advprop', resume='allow' if run.first_epoch else 'never')
