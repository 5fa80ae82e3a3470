"""Corruptions as transforms of images, which can be repeated: the same image gets the same pixels in every run."""
import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..corruptions import check_corruption, corrupt
from ..engine.seeding import seed_at
from ..errors import InputError

__all__ = ['Corruption']

_MODES = ('L', 'RGB')


@dataclass(frozen=True)
class Corruption:
    """A corruption of ImageNet-C, for images as they come out of resizing and cropping.

    What is drawn follows from the seed, the name and the pixels of the image. So workers, batches, order and a run that
    goes on later make no difference, models of the same input size see the same pixels, and the severities of an image
    share their chance.

    Args:
        name: One of `corruptions.ALL_CORRUPTIONS`.
        severity: 1 to 5.
        seed: Seed of the run.

    Raises:
        InputError: There is no such corruption or severity.
    """
    name: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_corruption(self.name, self.severity)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Corrupt an image of mode L or RGB; the result is of its mode and size.

        Raises:
            InputError: The image is of another mode, or the extra `robustness` is not installed.
        """
        if image.mode not in _MODES:
            raise InputError(f'Corruptions take images of mode L or RGB, got {image.mode}: convert them first.')
        pixels = np.asarray(image)
        digest = hashlib.blake2b(pixels, digest_size=16).hexdigest()  # pyright: ignore[reportArgumentType]
        rng = np.random.default_rng(seed_at(self.seed, self.name, pixels.shape, digest))
        return Image.fromarray(corrupt(pixels, self.name, self.severity, rng))
