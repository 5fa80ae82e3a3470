"""Numbers of an attack in the units of images, and images in the precision of their type."""
from functools import lru_cache
from typing import Any, Sequence, Tuple, Union

import torch

__all__ = ['Scale', 'cast_towards', 'check_arguments', 'limits', 'per_channel', 'widened']

Scale = Union[float, Sequence[float], torch.Tensor]


def check_arguments(images: torch.Tensor, eps: Scale, alpha: Scale, steps: int) -> None:
    """Check what every attack takes.

    Raises:
        TypeError: Images are not of a floating-point type.
        ValueError: A number is out of range.
    """
    if not images.is_floating_point():
        raise TypeError(f'Images must be of a floating-point type, got {images.dtype}.')
    if steps < 1:
        raise ValueError(f'An attack needs at least 1 step, got {steps}.')
    for name, value in (('eps', eps), ('alpha', alpha)):
        if isinstance(value, torch.Tensor) and value.device.type != 'cpu':
            continue  # reading it would wait for the device
        if not bool((torch.as_tensor(value) >= 0).all()):
            raise ValueError(f'{name} must be at least 0, got {value}.')


def per_channel(value: Scale, images: torch.Tensor) -> torch.Tensor:
    """A number, or one for each channel, as a tensor that broadcasts with images [N, C, …], of their type and device.

    Raises:
        ValueError: There are neither one value nor C; or they lie along another dimension than that of channels.
    """
    if isinstance(value, torch.Tensor):
        value = value.to(dtype=images.dtype, device=images.device)
    else:
        # of numpy
        value = value.tolist() if hasattr(value, 'tolist') else value  # pyright: ignore[reportAttributeAccessIssue]
        value = _on_device(_as_tuple(value), images.dtype, images.device)
    channels, rest = images.shape[1], (1,) * (images.ndim - 2)
    if value.numel() != 1 and value.shape not in ((channels,), (channels, *rest), (1, channels, *rest)):
        raise ValueError(f'Got {value.numel()} values of shape {list(value.shape)} for images of {channels} channels: '
                         'eps, alpha and bounds (mean and std) are numbers or have one value for each channel, which '
                         'holds for all images.')
    return value.reshape(-1, *rest)


def limits(images: torch.Tensor, bounds: Tuple[Scale, Scale]) -> Tuple[torch.Tensor, torch.Tensor]:
    """The lowest and highest value that each pixel may take: the bounds, or what leaves them already."""
    low, high = (per_channel(value, images) for value in bounds)
    return torch.minimum(low, images), torch.maximum(high, images)


def widened(images: torch.Tensor) -> torch.Tensor:
    """Images in float32 or wider: steps smaller than the spacing of 16-bit numbers would be lost."""
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images


def cast_towards(adv: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Adversarial images in the type of the images they are of, rounded towards these: others could leave the ball."""
    if adv.dtype == images.dtype:
        return adv
    cast = adv.to(images.dtype)
    farther = (cast.float() - images.float()).abs() > (adv - images.float()).abs()
    # torch.nextafter lacks 16-bit types on some devices: count numbers by their bits, from 0 up and down
    bits = cast.view(torch.int16)
    rank = torch.where(bits < 0, -(bits & 0x7fff), bits) + torch.sign(images.float() - cast.float()).to(torch.int16)
    nearer = torch.where(rank < 0, -32768 - rank, rank).to(torch.int16).view(images.dtype)
    return torch.where(farther, nearer, cast)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, Sequence) else value


@lru_cache(maxsize=256)
def _on_device(value: Union[float, Tuple[float, ...]], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # Kept: a copy from the host in every step would make the device wait.
    with torch.inference_mode(False):  # autograd takes no tensors made in inference mode
        return torch.tensor(value, dtype=dtype, device=device)
