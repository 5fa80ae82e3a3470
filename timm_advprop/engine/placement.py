"""Where and how a program computes: device, processes, precision."""
import importlib
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Iterable, List, Optional, Tuple

import torch
import torch.nn as nn
from timm.utils import NativeScaler, random_seed
from timm.utils.distributed import init_distributed_device_so

from ..errors import InputError
from .cpu_precision import warn_of_emulation
from .run_settings import DeviceSettings

__all__ = ['Placement', 'available_device', 'open_placement']

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Where tensors live and in which precision a model computes. Found out by a run, not set.

    Args:
        device: The device of this process.
        dtype: Type of the model and of images, None for float32.
        amp_dtype: Lower precision of mixed precision, None for none.
        channels_last: Models and images are in the channels-last memory format.
        rank: Number of this process.
        world_size: Number of processes.
        distributed: Whether there is a process group.
    """
    device: torch.device
    dtype: Optional[torch.dtype] = None
    amp_dtype: Optional[torch.dtype] = None
    channels_last: bool = False
    rank: int = 0
    world_size: int = 1
    distributed: bool = False

    @property
    def primary(self) -> bool:
        """Whether this process writes logs and files."""
        return self.rank == 0

    def autocast(self) -> ContextManager:
        """The context of a forward pass."""
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)

    def loss_scaler(self) -> Optional[Callable]:
        """timm's scaler of losses, where the precision needs one."""
        if self.device.type in ('cuda', 'cpu') and self.amp_dtype == torch.float16:
            return NativeScaler(device=self.device.type)
        return None

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, its type and memory format."""
        model.to(device=self.device, dtype=self.dtype)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def gather(self, value: Any) -> List[Any]:
        """What each process has, on all of them."""
        values = [value] * self.world_size
        if self.distributed:
            torch.distributed.all_gather_object(values, value)
        return values

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Move images [N, C, H, W] to the device and the type, where the loader did not."""
        return images.to(device=self.device, dtype=self.dtype, non_blocking=True)

    def in_memory_format(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] in the memory format of the model."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


def open_placement(
        settings: DeviceSettings,
        seed: Optional[int] = None,
        join_processes: bool = False,
        modules: Tuple[str, ...] = (),
        attack_dtypes: Iterable[Optional[str]] = (),
) -> Placement:
    """Choose the device, start the process group where there is one, seed all generators.

    Args:
        settings: Where and in which precision.
        seed: Seed of torch, numpy and python, shifted by the number of the process; None leaves them alone.
        join_processes: Be one of the processes that torchrun or Slurm started.
        modules: Modules to import before, for a device's backend.
        attack_dtypes: Precisions of attacks of their own, None for that of the model. With the model's, they are warned
            of where a CPU has no instructions for them.

    Raises:
        InputError: The device is unknown, a module is missing, or precisions exclude each other.
    """
    if settings.amp and settings.model_dtype not in (None, 'float32'):
        raise InputError('--amp needs --model-dtype float32.')
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f'Cannot import {module} of --device-modules: {error}.') from error
    found = dict(device=available_device(settings.device))
    if join_processes:
        joined = init_distributed_device_so(found['device'])
        found = dict(device=joined['device'], rank=joined['global_rank'], world_size=joined['world_size'],
                     distributed=joined['distributed'])
    placement = Placement(
        **{**found, 'device': torch.device(found['device'])}, dtype=_type(settings.model_dtype),
        amp_dtype=_type(settings.amp_dtype) if settings.amp else None, channels_last=settings.channels_last)
    if placement.device.type == 'cuda':
        if placement.device.index is not None:
            torch.cuda.set_device(placement.device)  # whose generator is seeded, and which is waited for
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if placement.primary:
        warn_of_emulation(placement.device, [placement.dtype, placement.amp_dtype, *map(_type, attack_dtypes)])
    if seed is not None:
        random_seed(seed, placement.rank)
    return placement


def available_device(device: str) -> str:
    """The device asked for, or the CPU, with a notice, where a CUDA device is asked for and there is none.

    Raises:
        InputError: The device is unknown, or not there.
    """
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise InputError(f'Unknown device {device!r} (--device): give cuda, cuda:N or cpu.') from error
    if asked.type != 'cuda':
        _try_device(device)
        return device
    if not torch.cuda.is_available():
        _logger.info('No CUDA device is available, running on the CPU.')
        return 'cpu'
    count = torch.cuda.device_count()
    if asked.index is not None and asked.index >= count:
        raise InputError(f'There is no device {device!r} (--device): there are {count}, from cuda:0.')
    return device


def _try_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, ImportError, RuntimeError) as error:  # every backend has its own for its absence
        raise InputError(f'There is no device {device!r} (--device): give cuda, cuda:N or cpu.') from error


def _type(name: Optional[str]) -> Any:
    return getattr(torch, name) if name else None
