"""Running statistics of batch norms, taken again from images."""
from typing import Iterable, List

import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from .split_norm import has_split_norm

__all__ = ['can_recalibrate', 'recalibrate']


def can_recalibrate(model: nn.Module) -> bool:
    """Whether a model has running statistics."""
    return bool(_tracking_norms(model))


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[torch.Tensor]) -> nn.Module:
    """Take the running statistics of a plain model's batch norms from images, in place: the mean over all of them.

    Unlike `torch.optim.swa_utils.update_bn`, the rest of the model stays in eval mode, as it is used: dropout and
    stochastic depth would change the statistics. And a batch counts by its images: a small last one would count as a
    whole one there.

    Args:
        model: A model with plain batch norms. Modes and momenta are restored, also after an exception.
        batches: Images [N, C, H, W] as the model takes them, N at least 2; batches of one image are passed over, as a
            norm may see a single value of each channel then.

    Returns:
        The model.

    Raises:
        ValueError: The model has no running statistics, or split norms, or there are no images.
    """
    if has_split_norm(model):
        raise ValueError('Statistics are taken again for one route: give strip_aux(model) or blend_routes(model, …).')
    norms = _tracking_norms(model)
    if not norms:
        raise ValueError(f'{type(model).__name__} has no batch norms with running statistics: there is nothing to '
                         'recalibrate.')
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    try:
        _average(model.eval(), norms, batches)
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in momenta:
            norm.momentum = momentum
    return model


def _average(model: nn.Module, norms: List[_BatchNorm], batches: Iterable[torch.Tensor]) -> None:
    for norm in norms:
        norm.training = True
    num_images = 0
    for images in (batch for batch in batches if len(batch) > 1):
        if not num_images:  # where there are none, statistics stay
            for norm in norms:
                norm.reset_running_stats()
        num_images += len(images)
        for norm in norms:
            norm.momentum = len(images) / num_images  # a running mean over images, not a decaying one
        model(images)
    if not num_images:
        raise ValueError('There are no images to recalibrate with: give at least 2.')


def _tracking_norms(model: nn.Module) -> List[_BatchNorm]:
    return [module for module in model.modules()
            if isinstance(module, _BatchNorm) and module.running_var is not None]
