"""What the studies share: where they run, and the models that they trained."""
import os
from typing import NamedTuple

import torch.nn as nn
from torch.utils.data import Dataset

from timm_advprop.engine.datasets import DataConfig, image_transform, open_split, resolve_image_config
from timm_advprop.engine.open_model import open_model
from timm_advprop.engine.run_settings import DataSettings, TrainSettings
from timm_advprop.errors import InputError
from timm_advprop.weights import open_checkpoint

__all__ = ['Trained', 'check_root', 'open_trained']


class Trained(NamedTuple):
    """A model of a run.

    Args:
        model: The model in eval mode, on the CPU.
        config: How its images are sized and normalised.
    """
    model: nn.Module
    config: DataConfig

    def images(self, folder: str, split: str = 'validation', normalise: bool = True) -> Dataset:
        """Images of a data set.

        Args:
            folder: Folder of the data set.
            split: Name of the split; `validation` are the test images.
            normalise: Normalise pixels, else leave them in 0–1.
        """
        dataset = open_split(DataSettings(data_dir=folder), split, self.config)
        dataset.transform = image_transform(self.config, normalise)
        return dataset


def open_trained(path: str) -> Trained:
    """Open a checkpoint of the training program, which knows what it was trained as.

    Args:
        path: The checkpoint.

    Raises:
        InputError: There is no such file, or it is no such checkpoint.
    """
    checkpoint = open_checkpoint(path)
    settings = TrainSettings.from_values({**checkpoint.args, 'pretrained': False})  # what it started from is replaced
    model = open_model(settings.model, settings.image, checkpoint).eval()
    return Trained(model, resolve_image_config(settings.image, model))


def check_root(what: str, *paths: str) -> None:
    """Check that a study runs in the root of the repository.

    Args:
        what: What runs, for the message.
        *paths: Files that it needs there.

    Raises:
        InputError: One is missing.
    """
    for path in paths:
        if not os.path.isfile(path):
            raise InputError(f'No {path} here: run {what} in the root of the repository.')
