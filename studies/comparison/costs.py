"""What the trainings of the study cost: steps timed in turn, times their number."""
import csv
import os
import statistics
from typing import Callable, Dict, List, NamedTuple, Sequence

import torch

from timm_advprop.cli.timing import time_in_turn
from timm_advprop.cli.train import parse_args
from timm_advprop.engine.datasets import resolve_image_config
from timm_advprop.engine.optimization import build_optimizer, learning_rate
from timm_advprop.engine.placement import open_placement
from timm_advprop.engine.run_settings import TrainSettings
from timm_advprop.engine.training import build_model, build_task, check_settings, schedule_of
from timm_advprop.output import replacing

from .job import asked_for
from .kept import digest
from .study import Study

__all__ = ['Costs', 'keep_costs', 'kept_costs', 'measure_costs']

Costs = Dict[str, float]
_ROUNDS = 15


class _Phase(NamedTuple):
    step: Callable[[], None]
    epochs: int
    device: torch.device


def kept_costs(path: str, study: Study) -> Costs:
    """Costs that were measured before; nothing of rows that have changed since.

    Args:
        path: CSV file that `keep_costs` wrote.
        study: The study.
    """
    return {row: float(cost) for row, cost, settings in _read(path)
            if row in study.rows and settings == _settings(study, row)}


def keep_costs(path: str, study: Study, rows: Sequence[str], data: str) -> None:
    """Measure costs that the file does not have.

    Args:
        path: CSV file to keep them in.
        study: The study.
        rows: Names of the rows whose costs are wanted.
        data: Folder of the data set.
    """
    kept = kept_costs(path, study)
    missing = [row for row in rows if row not in kept]
    if missing:
        costs = measure_costs(study, missing, data, _ROUNDS)
        measured = [(row, f'{cost:.3f}', _settings(study, row)) for row, cost in costs.items()]
        others = [line for line in _read(path) if line[0] not in missing]
        with replacing(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
            csv.writer(file).writerows([('row', 'cost', 'settings'), *others, *measured])


def measure_costs(study: Study, rows: Sequence[str], data: str, rounds: int) -> Costs:
    """What training costs relative to the study's reference.

    Args:
        study: The study.
        rows: Names of the rows to measure.
        data: Folder of the data set.
        rounds: How often each step is timed.

    Returns:
        For each of these rows the time of all steps of its training, without loading of images.
    """
    phases = {(row, i): _open_phase(parse_args([*flags, '--data-dir', data]))
              for row in dict.fromkeys([study.reference, *rows]) for i, flags in enumerate(study.commands(row))}
    vanilla = phases[study.reference, 0]
    seconds = time_in_turn({case: phase.step for case, phase in phases.items()}, rounds, vanilla.device)
    costs: Costs = dict.fromkeys(rows, 0.)
    for name, i in phases:
        if name in costs:
            ratio = _ratio(seconds[name, i], seconds[study.reference, 0])
            costs[name] += ratio * phases[name, i].epochs / vanilla.epochs
    return costs


def _read(path: str) -> List[List[str]]:
    # Row, cost and settings of each line but the first.
    if not os.path.isfile(path):
        return []
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.reader(file))[1:]


def _settings(study: Study, row: str) -> str:
    # What a cost depends on: how the row is trained, and the reference, of which it is a multiple.
    return digest([asked_for(flags) for name in (row, study.reference) for flags in study.commands(name)])[:12]


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
    return _Phase(step, schedule_of(settings, task).epochs, placement.device)
