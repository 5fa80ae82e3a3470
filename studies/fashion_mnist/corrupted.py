"""Accuracy under the corruptions of ImageNet-C, on images that are corrupted once for all models."""
import os
import statistics
from typing import Dict, List

import numpy as np
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_pil_image

from timm_advprop.corruptions import CORRUPTIONS, GROUPS, SEVERITIES
from timm_advprop.engine.datasets import channel_normalisation
from timm_advprop.engine.evaluation import evaluate
from timm_advprop.engine.placement import Placement
from timm_advprop.output import replacing
from timm_advprop.robustness.corrupted_images import Corruption

from ..trained import Trained

__all__ = ['measure_corruptions']

_BATCH_SIZE = 500


def measure_corruptions(
        model: nn.Module,
        trained: Trained,
        data: str,
        num_images: int,
        placement: Placement,
) -> Dict[str, float]:
    """Accuracy under the 15 corruptions, the mean over five severities.

    Args:
        model: The model, on its device and route, in eval mode.
        trained: How its images are sized and normalised.
        data: Folder of the data set, where the corrupted images are kept.
        num_images: Number of test images, evenly over the test set.
        placement: Where to evaluate.

    Returns:
        In percent: `corruption_top1`, the mean of all, and `<group>_top1` for each group of corruptions.
    """
    images, labels = _corrupted_images(trained, data, num_images)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in channel_normalisation(trained.config))
    top1 = {}
    for name, severities in zip(CORRUPTIONS, images):
        pixels = torch.from_numpy(severities).flatten(0, 1)
        dataset = TensorDataset((pixels.float() / 255 - mean) / std, torch.from_numpy(labels).repeat(len(SEVERITIES)))
        top1[name] = evaluate(model, DataLoader(dataset, _BATCH_SIZE), placement, log_name=None)['top1']
    groups = {f'{group}_top1': [top1[name] for name in names if name in top1] for group, names in GROUPS.items()}
    means = {name: statistics.mean(values) for name, values in groups.items() if values}
    return {'corruption_top1': statistics.mean(top1.values()), **means}


def _corrupted_images(trained: Trained, data: str, num_images: int) -> List[np.ndarray]:
    # Pixels [corruptions, severities, N, C, H, W] and labels [N].
    path = f'{os.path.normpath(data)}-corrupted-{num_images}.npz'
    if not os.path.isfile(path):
        dataset = trained.test_images(data, normalise=False)
        chosen = [dataset[i] for i in range(0, len(dataset), max(1, len(dataset) // num_images))]
        corrupted = [[np.stack([_corrupt(image, name, severity) for image, _ in chosen]) for severity in SEVERITIES]
                     for name in CORRUPTIONS]
        with replacing(path) as temporary, open(temporary, 'wb') as file:
            np.savez(file, images=np.array(corrupted), labels=np.array([label for _, label in chosen]))
    with np.load(path) as kept:
        return [kept['images'], kept['labels']]


def _corrupt(image: torch.Tensor, name: str, severity: int) -> np.ndarray:
    pixels = Corruption(name, severity)(to_pil_image(image))
    return np.atleast_3d(np.asarray(pixels)).transpose(2, 0, 1)
