"""The 15 corruptions of ImageNet-C, and 4 more, made on the fly for images of any size.

Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*, ICLR 2019,
arXiv:1903.12261. Each follows the authors' definition, written anew for float32 arrays, a generator that is given, and
any size: at 32, 64 and 224 px with the parameters of their CIFAR-10-C, Tiny ImageNet-C and ImageNet-C, elsewhere with
those of the nearest size, lengths scaled (see `severities`).

Each corruption is a function (x, rng, scale, *parameters) -> image in `noises`, `blurs`, `weather` or `digital`: `x` is
the image, float32 [H, W, C] in 0–1, which it leaves as it is; `rng` a `numpy.random.Generator`; `scale` what lengths in
pixels among its parameters are multiplied by. What leaves 0–1 is clipped afterwards.
"""
import importlib
from contextlib import contextmanager
from functools import lru_cache
from typing import Callable, Dict, Iterator

import numpy as np

from ..errors import InputError
from .severities import ALL_CORRUPTIONS, parameters_for

__all__ = ['check_libraries', 'corrupt']

_MODULES = ('noises', 'blurs', 'weather', 'digital')
_COLOURED = ('brightness', 'frost', 'saturate', 'snow', 'spatter')  # defined for three channels
_LUMA = np.array([.299, .587, .114], dtype=np.float32)
_ROUNDING = 1e-3  # in grey levels: a level that float32 falls short of by its rounding is not lost by truncation
_SMALLEST = 8


def corrupt(image: np.ndarray, name: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Corrupt an image.

    A grey image is treated as one of three equal channels where the corruption is one of colours, and its result made
    grey again by ITU-R 601 luma.

    Args:
        image: uint8 [H, W], [H, W, 1] or [H, W, 3] (RGB), at least 8 pixels high and wide.
        name: One of `severities.ALL_CORRUPTIONS`.
        severity: 1 to 5.
        rng: What is drawn comes from this generator alone.

    Returns:
        uint8, of the image's shape.

    Raises:
        InputError: An unknown name or severity, an image of another kind, or the extra `robustness` is not installed.
    """
    channels, function = _num_channels(image), _functions().get(name)
    scale, parameters = parameters_for(name, severity, *image.shape[:2])
    assert function is not None  # parameters_for refuses a name without one
    x = image.reshape(*image.shape[:2], channels).astype(np.float32)
    x /= 255
    if channels == 1 and name in _COLOURED:
        x = np.repeat(x, 3, axis=2)
    with _one_thread():
        x = function(x, rng, scale, *parameters)
    if x.shape[2] != channels:
        x = np.clip(x, 0, 1) @ _LUMA
    return _to_uint8(x).reshape(image.shape)


def _num_channels(image: np.ndarray) -> int:
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3) or min(image.shape) == 0:
        raise InputError('Corruptions take uint8 images [H, W], [H, W, 1] or [H, W, 3], got '
                         f'{image.dtype} {list(image.shape)}.')
    if min(image.shape[:2]) < _SMALLEST:
        raise InputError(f'Corruptions take images of at least {_SMALLEST} pixels a side, got {list(image.shape)}.')
    return channels


def _to_uint8(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    x *= 255
    x += np.float32(_ROUNDING)
    return x.astype(np.uint8)


def check_libraries() -> None:
    """Check that what corruptions need is there.

    Raises:
        InputError: The extra `robustness` is not installed.
    """
    _functions()


@lru_cache(maxsize=1)
def _functions() -> Dict[str, Callable[..., np.ndarray]]:
    try:
        modules = [importlib.import_module(f'.{name}', __package__) for name in _MODULES]
        modules[_MODULES.index('weather')].frost_textures()
    except ImportError as error:
        raise InputError(f"Corruptions need more ({error}): pip install 'timm-advprop[robustness]'.") from error
    return {name: getattr(module, name) for name in ALL_CORRUPTIONS for module in modules if name in module.__all__}


@contextmanager
def _one_thread() -> Iterator[None]:
    # OpenCV's own threads would compete with the loader's workers; what the process has set comes back.
    import cv2
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
