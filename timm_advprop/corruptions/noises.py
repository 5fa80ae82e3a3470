"""Corruptions of ImageNet-C that are noise. What is common to all corruptions stands in `corruptions`."""
import numpy as np

__all__ = ['gaussian_noise', 'impulse_noise', 'shot_noise', 'speckle_noise']


def gaussian_noise(x: np.ndarray, rng: np.random.Generator, scale: float, std: float) -> np.ndarray:
    """Normal noise of a standard deviation `std`."""
    noise = _normal(rng, x.shape, std)
    noise += x
    return noise


def speckle_noise(x: np.ndarray, rng: np.random.Generator, scale: float, std: float) -> np.ndarray:
    """Normal noise of a standard deviation of `std` times the pixel."""
    noise = _normal(rng, x.shape, std)
    noise += 1
    noise *= x
    return noise


def shot_noise(x: np.ndarray, rng: np.random.Generator, scale: float, photons: float) -> np.ndarray:
    """Poisson noise: `photons` are expected of a white pixel."""
    return (rng.poisson(x.astype(np.float64) * photons) / photons).astype(np.float32)


def impulse_noise(x: np.ndarray, rng: np.random.Generator, scale: float, amount: float) -> np.ndarray:
    """Salt and pepper: a part `amount` of all values become 0 or 1, as many of each."""
    chance = rng.random(x.shape, dtype=np.float32)
    return np.where(chance < amount, chance < amount / 2, x)


def _normal(rng: np.random.Generator, shape, std: float) -> np.ndarray:
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise *= std
    return noise
