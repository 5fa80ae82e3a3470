"""What is measured of a trained model: clean accuracy, accuracy under attack by route, and what its training costs."""
import statistics
from typing import Any, Dict, Optional

import torch
import torch.nn as nn
from timm.data import create_transform
from torch.utils.data import DataLoader, Subset

from ..benchmark import time_in_turn
from ..evaluation.accuracy import evaluate
from ..hub.release import open_release
from ..inputs import channel_normalisation, open_dataset
from ..norms import norm_route
from ..regimes import Adversary
from ..train import assemble
from ..train.args import parse_args
from .rows import RECIPE, Row

__all__ = ['STRENGTHS', 'STEPS', 'measure_accuracy', 'measure_costs']

STRENGTHS = (2, 4, 8)
STEPS = 20
_BATCH_SIZE = 250


def measure_accuracy(
        checkpoint: str,
        data: str,
        aux: int,
        num_attacked: int,
        device: torch.device,
) -> Dict[str, float]:
    """Top-1 accuracy on the test images: clean, and under PGD through the main norms and an auxiliary one.

    Args:
        checkpoint: Checkpoint of the training program.
        data: Folder of the data set, whose split `validation` is the test set.
        aux: Route of the auxiliary norm, 0 for a model without.
        num_attacked: Number of test images to attack, evenly over the test set.
        device: Where to evaluate.

    Returns:
        In percent: `clean_top1`, and for each strength and route `pgd_eps<eps>_<main|aux>_top1`.
    """
    release = open_release(checkpoint)
    model = release.model.to(device).eval()
    config = release.data_config
    mean, std = channel_normalisation(config)
    dataset = open_dataset('', data, 'validation', input_img_mode='L')
    dataset.transform = create_transform(
        config['input_size'], interpolation=config['interpolation'], crop_pct=config['crop_pct'], mean=mean, std=std)
    results = {'clean_top1': _evaluate(model, DataLoader(dataset, _BATCH_SIZE), device)['top1']}
    attacked = Subset(dataset, range(0, len(dataset), max(1, len(dataset) // num_attacked)))
    loader = DataLoader(attacked, _BATCH_SIZE)
    for eps in STRENGTHS:
        for name, route in (('main', 0), ('aux', aux)):
            if name == 'aux' and not aux:
                continue
            torch.manual_seed(0)
            attack = Adversary(
                eps=eps, alpha=eps / 8, steps=STEPS, target='none', random_start=1., mean=mean, std=std).to(device)
            results[f'pgd_eps{eps}_{name}_top1'] = _evaluate(model, loader, device, attack, route)['adv_top1']
    return results


def measure_costs(rows: Dict[str, Row], data: str, rounds: int) -> Dict[str, Dict[str, float]]:
    """What training costs relative to vanilla training: steps timed in turn, times the number of steps.

    Args:
        rows: What to measure, `'vanilla'` among it.
        data: Folder of the data set.
        rounds: How often each step is timed.

    Returns:
        For each row `cost` (time of the whole training) and `arithmetic` (the same by counting passes).
    """
    steps, epochs, arithmetic = {}, {}, {}
    for name, row in rows.items():
        for i, flags in enumerate(row.phases):
            args = parse_args(['--config', RECIPE, '--data-dir', data, *flags])
            task, steps[name, i], device = _step(args)
            epochs[name, i], arithmetic[name, i] = assemble.match_budget(args, task).epochs, task.relative_cost()
    seconds = time_in_turn(steps, rounds, device)
    baseline = ('vanilla', 0)
    ratios = {case: statistics.median(a / b for a, b in zip(times, seconds[baseline]))
              for case, times in seconds.items()}
    return {name: {
        column: sum(values[name, i] * epochs[name, i] for i in range(len(row.phases))) / epochs[baseline]
        for column, values in (('cost', ratios), ('arithmetic', arithmetic))
    } for name, row in rows.items()}


def _step(args):
    assemble.check_arguments(args)
    device = assemble.setup_device(args)
    model = assemble.build_model(args, device, None)
    data_config = assemble.resolve_data(args, model)
    task = assemble.build_task(args, model, data_config, device, None)
    optimizer = assemble.build_optimizer(args, task)
    task.get_trainable_module().train()
    size = args.batch_size * max(1, args.aug_splits)
    images = torch.randn(size, *data_config['input_size'], device=device)
    target = torch.randint(args.num_classes, (size,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        task(images, target)['loss'].backward()
        optimizer.step()
    return task, step, device


def _evaluate(
        model: nn.Module,
        loader: Any,
        device: torch.device,
        attack: Optional[Adversary] = None,
        route: int = 0,
) -> Dict[str, float]:
    def adversary(model, images, target):
        return attack(model, images, target, route)
    criterion = nn.CrossEntropyLoss()
    if not route:
        return evaluate(model, loader, criterion, device, adversary=attack and adversary, log_name=None)
    with norm_route(model, route):
        return evaluate(model, loader, criterion, device, adversary=adversary, log_name=None)

