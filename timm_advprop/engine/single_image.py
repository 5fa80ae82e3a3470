"""Single images from anywhere: files that people choose, read or refused, and what a model sees of them."""
import os
import warnings

import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import to_pil_image

from ..errors import InputError
from .datasets import DataConfig, image_transform

__all__ = ['image_of', 'pixels_of', 'read_image']

# Others have no need to be opened: Pillow would start programs for some of them.
_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
_SMALLEST_SIDE = 4
_MOST_PIXELS = 50_000_000
_LARGEST_RATIO = 20  # of the sides: the shorter one is resized to the model's, and the longer one grows with it


def read_image(path: str) -> Image.Image:
    """Read an image file that anybody may have chosen. Of several frames the first; upright, as its camera says.

    Args:
        path: The file.

    Raises:
        InputError: It is no image, damaged, of a format that is not read, too small, too large or too narrow, or of
            more than 8 bits a channel.
    """
    name = os.path.basename(path)
    try:
        with warnings.catch_warnings(), Image.open(path, formats=_FORMATS) as image:
            warnings.simplefilter('ignore')
            _check_size(name, *image.size)  # before it is decoded
            _check_mode(name, image.mode)
            upright = ImageOps.exif_transpose(image)
            upright.load()
            return upright
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(name)) from error
    except Exception as error:  # Pillow has an error of its own for each way in which a format can be broken
        raise InputError(f'{name} is not an image that can be read: give a whole file of one of '
                         f'{", ".join(_FORMATS)}.') from error


def pixels_of(image: Image.Image, config: DataConfig) -> torch.Tensor:
    """What a model sees of an image, sized and cropped as for validation.

    Args:
        image: An image of any mode; transparent parts become what is behind them in the file.
        config: How images are sized and cropped, of 1 channel or 3.

    Returns:
        Pixels [C, H, W] in 0–1.
    """
    mode = 'L' if config['input_size'][0] == 1 else 'RGB'
    return image_transform(config, normalise=False)(image.convert(mode))


def image_of(pixels: torch.Tensor) -> Image.Image:
    """Pixels [C, H, W], C of 1 or 3, as an image; values out of 0–1 are clamped."""
    return to_pil_image((pixels.clamp(0, 1) * 255).round().byte().cpu())


def _check_size(name: str, width: int, height: int) -> None:
    size = f'{width} × {height} pixels'
    if min(width, height) < _SMALLEST_SIDE:
        raise InputError(f'{name} is too small, {size}: give an image of at least {_SMALLEST_SIDE} × {_SMALLEST_SIDE}.')
    if width * height > _MOST_PIXELS:
        raise InputError(_too_large(name))
    if max(width, height) > _LARGEST_RATIO * min(width, height):
        raise InputError(f'{name} is too narrow, {size}: give an image whose longer side is at most {_LARGEST_RATIO} '
                         'times the shorter one.')


def _check_mode(name: str, mode: str) -> None:
    if mode[0] in 'FI':  # which Pillow would cut off at 255, almost all of them white
        raise InputError(f'{name} has more than 8 bits a channel: save it with 8.')


def _too_large(name: str) -> str:
    return f'{name} is too large: give an image of at most {_MOST_PIXELS // 10 ** 6} million pixels.'
