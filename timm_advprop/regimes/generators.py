"""Other images than adversarial ones for the auxiliary norms.

A generator is any callable that maps (images, target) to (images, target): images [N, C, H, W] as the loader delivers
them, normalised, and labels [N] or class weights [N, classes]; as many of each come back, on the same device.
`AdvPropTask(model, generator=…)` sends what it returns through an auxiliary norm, in place of an attack's images.
"""
import importlib
from typing import Callable, List, Optional, Sequence, Tuple, Union

import torch

__all__ = ['GENERATORS', 'GaussianNoise', 'Generator', 'create_generators']

Generator = Callable[[torch.Tensor, torch.Tensor], Tuple[torch.Tensor, torch.Tensor]]


class GaussianNoise:
    """Adds normal noise to images and clamps them to the range of pixels.

    Args:
        eps: Standard deviation of the noise in 0–255 pixels, at least 0.
        mean: Mean of each channel that the images were normalised by, in 0–1.
        std: Standard deviation of each channel, in 0–1.

    Raises:
        ValueError: The deviation is below 0.
    """

    def __init__(self, eps: float, mean: Sequence[float], std: Sequence[float]):
        if not eps >= 0:
            raise ValueError(f'eps must be at least 0 (in 0–255 pixels), got {eps}.')
        self.eps_px, self.mean, self.std = float(eps), tuple(mean), tuple(std)

    def __call__(self, images: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)
                     for values in (self.mean, self.std))
        noisy = images + torch.randn_like(images) * (self.eps_px / 255 / std)
        # values that random erasing left out of the range stay where they are
        low, high = torch.minimum((0 - mean) / std, images), torch.maximum((1 - mean) / std, images)
        return noisy.clamp(low, high), target

    def __repr__(self) -> str:
        return f'Gaussian noise, std {self.eps_px:g}/255'


GENERATORS = {'gaussian-noise': GaussianNoise}


def create_generators(
        generator: Union[str, Generator],
        eps: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
) -> List[Generator]:
    """The generators of a task's auxiliary norms.

    Args:
        generator: A name in `GENERATORS`, one generator for each strength; or `'package.module:name'` of a generator,
            or a generator.
        eps: Strengths in 0–255 pixels.
        mean: Mean of each channel, in 0–1.
        std: Standard deviation of each channel, in 0–1.

    Raises:
        ValueError: There is no such generator.
    """
    if not isinstance(generator, str):
        return [generator]
    if generator in GENERATORS:
        return [GENERATORS[generator](strength, mean, std) for strength in eps]
    return [_import(generator)]


def count_generators(generator: Optional[Union[str, Generator]], eps: Union[float, Sequence[float]]) -> int:
    """Number of auxiliary norms that a generator, or an attack where it is None, trains.

    Args:
        generator: See `create_generators`.
        eps: Strength in 0–255 pixels, or several.
    """
    by_strength = generator is None or generator in GENERATORS
    return len(eps) if by_strength and isinstance(eps, Sequence) else 1


def _import(path: str) -> Generator:
    module, _, name = path.partition(':')
    if not name:
        raise ValueError(f'Unknown generator {path!r}: give {", ".join(GENERATORS)}, or package.module:name of a '
                         'callable from (images, target) to (images, target).')
    try:
        generator = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'Cannot import the generator {path}: {error}.') from error
    if not callable(generator):
        raise ValueError(f'The generator {path} cannot be called.')
    return generator
