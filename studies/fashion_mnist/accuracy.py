"""What is measured of a trained model: clean accuracy, and accuracy under attack by route."""
from contextlib import nullcontext
from typing import Dict

import torch
from torch.utils.data import DataLoader, Subset

from timm_advprop.engine.datasets import channel_normalisation
from timm_advprop.engine.evaluation import evaluate
from timm_advprop.engine.placement import Placement
from timm_advprop.norms import norm_route
from timm_advprop.regimes import Attack

from ..trained import open_trained

__all__ = ['STEPS', 'STRENGTHS', 'attacked_top1', 'measure_accuracy']

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
        In percent: `clean_top1`, and for each strength and route what `attacked_top1` names.
    """
    trained = open_trained(checkpoint)
    model, dataset = placement.place(trained.model), trained.test_images(data)
    clean = evaluate(model, DataLoader(dataset, _BATCH_SIZE), placement, log_name=None)
    results = {'clean_top1': clean['top1']}
    attacked = Subset(dataset, range(0, len(dataset), max(1, len(dataset) // num_attacked)))
    loader = DataLoader(attacked, _BATCH_SIZE)
    for eps in STRENGTHS:
        attack = Attack(eps_px=eps, alpha_px=eps / 8, steps=STEPS, target='none', random_start=1.).normalised_by(
            *channel_normalisation(trained.config))
        for name, route in (('main', 0), ('aux', aux))[:2 if aux else 1]:
            torch.manual_seed(0)
            with norm_route(model, route) if aux else nullcontext():
                found = evaluate(model, loader, placement, attack=attack, log_name=None)
            results[attacked_top1(eps, name)] = found['adv_top1']
    return results
