"""What the trainings of the study cost: steps timed in turn, times their number."""
import statistics
from typing import Callable, Dict, List, Mapping, NamedTuple, Sequence

import torch

from timm_advprop.cli.benchmark import time_in_turn
from timm_advprop.cli.train import parse_args
from timm_advprop.engine.datasets import resolve_image_config
from timm_advprop.engine.optimization import build_optimizer, learning_rate
from timm_advprop.engine.placement import open_placement
from timm_advprop.engine.run_settings import TrainSettings
from timm_advprop.engine.training import build_model, build_task, check_settings, schedule_of

from .kept import keep, read_kept
from .rows import RECIPE, Row

__all__ = ['Costs', 'kept_costs', 'measure_costs']

Costs = Dict[str, Dict[str, float]]
_ROUNDS = 15


class _Phase(NamedTuple):
    step: Callable[[], None]
    arithmetic: float  # of a step, relative to a vanilla one
    epochs: int
    device: torch.device


def kept_costs(path: str, trainings: Sequence[str], rows: Mapping[str, Row], data: str) -> Costs:
    """The costs of rows, which are measured where the file has none of these trainings.

    Args:
        path: File to keep them in.
        trainings: Names for what the trainings depend on.
        rows: What to measure, `'vanilla'` among it.
        data: Folder of the data set.
    """
    kept = read_kept(path)
    if kept.get('trainings') != trainings:
        kept = dict(trainings=trainings, costs=measure_costs(rows, data, _ROUNDS))
        keep(path, kept)
    return kept['costs']


def measure_costs(rows: Mapping[str, Row], data: str, rounds: int) -> Costs:
    """What training costs relative to vanilla training.

    Args:
        rows: What to measure, `'vanilla'` among it.
        data: Folder of the data set.
        rounds: How often each step is timed.

    Returns:
        For each row `cost` (time of the whole training) and `arithmetic` (the same by counting passes).
    """
    phases = {(name, i): _open_phase(parse_args(['--config', RECIPE, '--data-dir', data, *flags]))
              for name, row in rows.items() for i, flags in enumerate(row.phases)}
    vanilla = phases['vanilla', 0]
    seconds = time_in_turn({case: phase.step for case, phase in phases.items()}, rounds, vanilla.device)
    costs: Costs = {name: dict(cost=0., arithmetic=0.) for name in rows}
    for (name, i), phase in phases.items():
        share = phase.epochs / vanilla.epochs
        costs[name]['cost'] += _ratio(seconds[name, i], seconds['vanilla', 0]) * share
        costs[name]['arithmetic'] += phase.arithmetic * share
    return costs


def _ratio(times: List[float], baseline: List[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, baseline))


def _open_phase(settings: TrainSettings) -> _Phase:
    check_settings(settings)
    placement = open_placement(settings.device, settings.loader.seed)
    model = build_model(settings, placement)
    config = resolve_image_config(settings.image, model)
    task = build_task(settings, model, config, placement)
    module = task.get_trainable_module().train()
    optimizer = build_optimizer(
        settings.optimizer, module, learning_rate(settings.optimizer, settings.loader.batch_size, verbose=False))
    size = settings.loader.batch_size * max(1, settings.augmentation.aug_splits)
    images = torch.randn(size, *config['input_size'], device=placement.device)
    target = torch.randint(settings.model.num_classes, (size,), device=placement.device)

    def step() -> None:
        optimizer.zero_grad()
        task(images, target)['loss'].backward()
        optimizer.step()
    return _Phase(step, task.relative_cost(), schedule_of(settings, task).epochs, placement.device)
