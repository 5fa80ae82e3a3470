"""What is measured of a trained model: clean accuracy, accuracy under attack by route, and under corruptions."""
from contextlib import nullcontext
from typing import Dict

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset, Subset

from timm_advprop.engine.datasets import channel_normalisation
from timm_advprop.engine.evaluation import evaluate
from timm_advprop.engine.placement import Placement
from timm_advprop.norms import blend_routes, norm_route
from timm_advprop.regimes import Attack

from ..trained import Trained, open_trained
from .corrupted import measure_corruptions

__all__ = ['STEPS', 'STRENGTHS', 'attacked_top1', 'measure_accuracy', 'measure_blend']

STRENGTHS = (2, 4, 8)
STEPS = 20
_BATCH_SIZE = 250


def attacked_top1(eps: int, route: str) -> str:
    """Name of the accuracy under attack: of its strength in pixels and the route, `'main'` or `'aux'`."""
    return f'pgd_eps{eps}_{route}_top1'


def measure_accuracy(checkpoint: str, data: str, aux: int, num_attacked: int, placement: Placement) -> Dict[str, float]:
    """Top-1 accuracy on the test images: clean, and under PGD through the main norms and an auxiliary one.

    Args:
        checkpoint: Checkpoint of the training program.
        data: Folder of the data set, whose split `validation` is the test set.
        aux: Route of the auxiliary norm, 0 for a model without.
        num_attacked: Number of test images to attack, evenly over the test set.
        placement: Where to evaluate.

    Returns:
        In percent: `clean_top1`, `corruption_top1` (see `measure_corruptions`), and for each strength and route what
        `attacked_top1` names.
    """
    trained = open_trained(checkpoint)
    routes = (('main', 0), ('aux', aux))[:2 if aux else 1]
    return _measure(trained, trained.model, data, dict(routes), num_attacked, placement)


def measure_blend(
        checkpoint: str,
        data: str,
        weight: float,
        num_attacked: int,
        placement: Placement,
) -> Dict[str, float]:
    """What `measure_accuracy` measures, of the plain model between the main norms and the first auxiliary ones.

    Args:
        checkpoint: Checkpoint of the training program.
        data: Folder of the data set.
        weight: Share of the auxiliary norms.
        num_attacked: Number of test images to attack.
        placement: Where to evaluate.
    """
    trained = open_trained(checkpoint)
    return _measure(trained, blend_routes(trained.model, weight), data, dict(main=0), num_attacked, placement)


def _measure(
        trained: Trained,
        model: nn.Module,
        data: str,
        routes: Dict[str, int],
        num_attacked: int,
        placement: Placement,
) -> Dict[str, float]:
    model, dataset = placement.place(model), trained.test_images(data)
    clean = evaluate(model, DataLoader(dataset, _BATCH_SIZE), placement, log_name=None)
    results = {'clean_top1': clean['top1'], **measure_corruptions(model, trained, data, num_attacked, placement)}
    attacked = Subset(dataset, range(0, len(dataset), max(1, len(dataset) // num_attacked)))
    for name, route in routes.items():
        with norm_route(model, route) if len(routes) > 1 else nullcontext():
            results.update(_attacked(model, attacked, trained, name, placement))
    return results


def _attacked(
        model: nn.Module,
        images: Dataset,
        trained: Trained,
        route: str,
        placement: Placement,
) -> Dict[str, float]:
    results = {}
    for eps in STRENGTHS:
        attack = Attack(eps_px=eps, alpha_px=eps / 8, steps=STEPS, target='none', random_start=1.).normalised_by(
            *channel_normalisation(trained.config))
        torch.manual_seed(0)
        found = evaluate(model, DataLoader(images, _BATCH_SIZE), placement, attack=attack, log_name=None)
        results[attacked_top1(eps, route)] = found['adv_top1']
    return results
