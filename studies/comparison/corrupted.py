"""Images under the corruptions of ImageNet-C, which are made once for all models."""
import os
from typing import Dict, List, Tuple

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.functional import to_pil_image

from timm_advprop.corruptions import CORRUPTIONS, SEVERITIES
from timm_advprop.engine.datasets import channel_normalisation
from timm_advprop.output import replacing
from timm_advprop.robustness.corrupted_images import Corruption

from ..trained import Trained
from .kept import digest

__all__ = ['corrupted_images', 'evenly']


def corrupted_images(trained: Trained, data: str, split: str, num_images: int) -> Dict[str, TensorDataset]:
    """Images and labels under the 15 corruptions, all five severities of each.

    Args:
        trained: How its images are sized and normalised.
        data: Folder of the data set, beside which the corrupted images are kept.
        split: The split of the images.
        num_images: Number of images of it, evenly over it.

    Returns:
        For each corruption normalised images [severities · N, C, H, W] and their labels.
    """
    pixels, labels = _kept_pixels(trained, data, split, num_images)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in channel_normalisation(trained.config))
    labels = torch.from_numpy(labels).repeat(len(SEVERITIES))
    return {name: TensorDataset((torch.from_numpy(severities).flatten(0, 1).float() / 255 - mean) / std, labels)
            for name, severities in zip(CORRUPTIONS, pixels)}


def evenly(num_images: int, num_chosen: int) -> List[int]:
    """Positions of images, evenly over a data set; all where there are no more."""
    num_chosen = min(num_chosen, num_images)
    return [i * num_images // num_chosen for i in range(num_chosen)]


def _kept_pixels(trained: Trained, data: str, split: str, num_images: int) -> Tuple[np.ndarray, np.ndarray]:
    # Pixels [corruptions, severities, N, C, H, W] and labels [N].
    sized = digest(sorted((name, str(value)) for name, value in trained.config.items()))[:8]
    path = f'{os.path.normpath(data)}-{split}-corrupted-{num_images}-{sized}.npz'
    with FileLock(f'{path}.lock'):  # one process makes them, the others wait
        if not os.path.isfile(path):
            _write_pixels(path, trained.images(data, split, normalise=False), num_images)
    with np.load(path) as kept:
        return kept['images'], kept['labels']


def _write_pixels(path: str, dataset: Dataset, num_images: int) -> None:
    chosen = [dataset[i] for i in evenly(len(dataset), num_images)]
    corrupted = [[np.stack([_corrupt(image, name, severity) for image, _ in chosen]) for severity in SEVERITIES]
                 for name in CORRUPTIONS]
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        np.savez(file, images=np.array(corrupted), labels=np.array([label for _, label in chosen]))


def _corrupt(image: torch.Tensor, name: str, severity: int) -> np.ndarray:
    pixels = Corruption(name, severity)(to_pil_image(image))
    return np.atleast_3d(np.asarray(pixels)).transpose(2, 0, 1)
