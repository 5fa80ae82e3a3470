"""Randomness that can be repeated: what is drawn follows from the seed and the position in the run, from nothing else.

A run that goes on in a new process has other generators, and its loader's workers have never seen the former images.
Instead of keeping the states of all generators, each image and each batch seeds them anew, by its epoch and its place
in it: a run continues at any batch as if it had not stopped, and the number of workers makes no difference.
"""
import hashlib
import random
from itertools import islice
from typing import Any, Callable, Iterator, Sequence, Tuple

import numpy as np
import torch
from timm.data.readers.shared_count import SharedCount
from torch.utils.data import Sampler, get_worker_info

from .wrapped_images import WrappedImages

__all__ = ['SeededErasing', 'SeededImages', 'SeededOrder', 'SeededReader', 'seed_at', 'seed_generators']


_CPU = torch.device('cpu')


def seed_at(*place: Any) -> int:
    """A seed for a place in a run, such as (seed, rank, epoch, batch): 63 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), 'big') >> 1


def seed_generators(seed: int, device: torch.device = _CPU) -> None:
    """Seed the generators of torch, for the CPU and for a device, of numpy and of python."""
    # not torch.manual_seed, which asks all kinds of devices and takes half a millisecond for it
    torch.default_generator.manual_seed(seed)
    if device.type != 'cpu':
        torch.get_device_module(device).manual_seed(seed)
    np.random.seed(seed % 2 ** 32)
    random.seed(seed)


class SeededOrder(Sampler):
    """The order of another sampler, which may begin in the middle, and a seed for each image.

    Args:
        sampler: Yields indices. A `RandomSampler` gets a generator, that its order follows from the epoch.
        place: Seed of the run and number of the process.
    """

    def __init__(self, sampler: Sampler, place: Tuple[int, ...]):
        self.sampler: Any = sampler
        self.place = place
        self.epoch = self.first = 0

    def start(self, epoch: int, first: int = 0) -> None:
        """Set the epoch, and the images of it that are passed over."""
        self.epoch, self.first = epoch, first

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        if hasattr(self.sampler, 'generator'):
            self.sampler.generator = torch.Generator().manual_seed(seed_at(*self.place, self.epoch))
        for position, index in islice(enumerate(self.sampler), self.first, None):
            yield seed_at(*self.place, self.epoch, position), index

    def __len__(self) -> int:
        return len(self.sampler)


class SeededImages(WrappedImages):
    """A data set whose images are asked for with a seed, for what is drawn when they are augmented."""

    def __getitem__(self, place: Tuple[int, int]) -> Sequence[Any]:
        seed, index = place
        seed_generators(seed)
        return self.dataset[index]


class SeededReader:
    """The reader of an iterable data set, which has no indices: a worker seeds its generators by counting its images.

    Args:
        dataset: A `timm.data.IterableImageDataset`, whose reader it takes the place of.
        place: Seed of the run and number of the process.
    """

    def __init__(self, dataset: Any, place: Tuple[int, ...]):
        self.reader, self.place, self.epoch = dataset.reader, place, SharedCount()
        dataset.reader = self

    def start(self, epoch: int) -> None:
        """Set the epoch, for workers that are there already, too."""
        self.epoch.value = epoch

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        place = (*self.place, self.epoch.value, worker.id if worker else 0)
        for position, sample in enumerate(self.reader):
            seed_generators(seed_at(*place, position))
            yield sample

    def __len__(self) -> int:
        return len(self.reader)

    def __getattr__(self, name: str) -> Any:
        if name == 'reader':  # not there yet, while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.reader, name)


class SeededErasing:
    """Random erasing on the device. The loader erases ahead of the step, so that a batch has a seed of its own for it.

    Args:
        erasing: Maps images [N, C, H, W] to images.
        place: Seed of the run and number of the process.
    """

    def __init__(self, erasing: Callable[[torch.Tensor], torch.Tensor], place: Tuple[int, ...]):
        self.erasing, self.place = erasing, place
        self.epoch = self.batch = 0

    def start(self, epoch: int, batch: int = 0) -> None:
        """Set the epoch and the batch that comes next."""
        self.epoch, self.batch = epoch, batch

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        seed_generators(seed_at(*self.place, 'erasing', self.epoch, self.batch), images.device)
        self.batch += 1
        return self.erasing(images)
