"""Recalibration: a model's running statistics, taken again from images of a data set as it is evaluated."""
import hashlib
import json
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Iterator, Optional

import torch
import torch.nn as nn
from torch.utils.data import IterableDataset

from ..errors import InputError, as_input_error
from ..norms import can_recalibrate, recalibrate
from ..output import without_folders
from .bad_images import explained_data_loss
from .datasets import DataConfig, check_dataset_root, dataset_name, has_split_folder, make_loader, open_split
from .placement import Placement
from .run_settings import DataSettings, LoaderSettings
from .wrapped_images import SampledImages

__all__ = ['Recalibration']

# Fixed, as a variance is that of a batch: the same images give the same statistics whatever --batch-size is.
_BATCH_SIZE = 100


@dataclass(frozen=True)
class Recalibration:
    """Which images a model's statistics are taken from: evenly spread over a split, and as they are evaluated.

    Args:
        data: The data set.
        split: Its split.
        num_images: Number of images, at least 2.
        config: How images are sized, cropped and normalised.
        crop_border_pixels: Pixels to crop from the border, see timm's loader.
    """
    data: DataSettings
    split: str
    num_images: int
    config: DataConfig
    crop_border_pixels: Optional[int] = None

    def __call__(self, model: nn.Module, placement: Placement, loader: LoaderSettings) -> nn.Module:
        """Take a model's statistics again, in place.

        Args:
            model: A plain model on the device of the placement, in float32.
            placement: Where it is.
            loader: How images are loaded; the size of a batch does not matter.

        Raises:
            InputError: The model has no statistics, or the split is missing, has fewer images or cannot be read.
        """
        if not can_recalibrate(model):
            raise InputError(f'{type(model).__name__} has no batch norms with running statistics: leave --recalibrate '
                             'out.')
        with explained_data_loss():
            return as_input_error(recalibrate, model, self._batches(placement, loader))

    def check_split(self, tested_split: str = '') -> None:
        """Check what can be said of the split before a model is opened.

        Args:
            tested_split: The split that the model is tested on.

        Raises:
            InputError: It is missing.
        """
        check_dataset_root(self.data, self.split)
        # timm would take the whole folder, test images and all, which is right where these are asked for
        if self.split != tested_split and not has_split_folder(self.data, self.split):
            raise InputError(f'No split {self.split!r} in {self.data.data_dir} to recalibrate with: give another with '
                             '--recalibrate-split, or --recalibrate 0.')

    def digest(self, weights: str) -> str:
        """A name for weights, see `weights_digest`, whose statistics are these.

        It goes by what they are taken from: statistics themselves differ in the last digits from device to device, and
        on a GPU from run to run.
        """
        config = {name: value for name, value in self.config.items() if value is not None}
        about = [weights, dataset_name(self.data), self.split, self.num_images, config, self.crop_border_pixels]
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """What statistics are taken from, in words."""
        return f'{self.num_images} images of split {without_folders(self.split)} of {dataset_name(self.data)}'

    def _batches(self, placement: Placement, settings: LoaderSettings) -> Iterator[torch.Tensor]:
        placement = replace(placement, dtype=None, amp_dtype=None)
        dataset: Any = open_split(
            self.data, self.split, self.config, num_samples=self.num_images, batch_size=_BATCH_SIZE,
            seed=settings.seed)
        if not isinstance(dataset, IterableDataset):
            # each batch over all of the split: where it is of one class, as in a folder, its variance is too small
            if len(dataset) < self.num_images:  # results and cards say how many there were
                raise InputError(f'--recalibrate {self.num_images}: split {self.split} of {dataset_name(self.data)} '
                                 f'has {len(dataset)} images.')
            dataset = SampledImages(dataset, self.num_images, num_rounds=-(-self.num_images // _BATCH_SIZE))
        loader = make_loader(
            dataset, self.config, placement, settings, _BATCH_SIZE, interpolation=self.config['interpolation'],
            crop_pct=self.config['crop_pct'], crop_mode=self.config['crop_mode'],
            crop_border_pixels=self.crop_border_pixels)
        # a stream may have more than it was asked for
        for images, _ in islice(loader, -(-self.num_images // _BATCH_SIZE)):
            yield placement.in_memory_format(placement.images(images))
