"""How long calls take, and where."""
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple

import torch

from ..output import counted

__all__ = ['Case', 'device_name', 'time_in_turn']


class Case(NamedTuple):
    """What is measured.

    Args:
        run: Makes it once.
        floor: Its arithmetic, relative to the first case.
    """
    run: Callable[[], Any]
    floor: float


def time_in_turn(cases: Mapping[str, Callable[[], None]], rounds: int, device: torch.device) -> Dict[str, List[float]]:
    """Time functions in turn.

    Args:
        cases: The functions, by name.
        rounds: How often each is timed, after one call that is not.
        device: Device to wait for.

    Returns:
        Seconds of each call, by name.
    """
    synchronize = torch.get_device_module(device).synchronize
    seconds: Dict[str, List[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, case in cases.items():
            synchronize()
            start = time.perf_counter()
            case()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def device_name(device: torch.device) -> str:
    """The name of a device, for the head of a table."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU, {counted(torch.get_num_threads(), "thread")}'
