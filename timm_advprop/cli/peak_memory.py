"""The most memory that a call needs at a time."""
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ['bytes_of', 'peak_memory']


def peak_memory(function: Callable[[], Any], device: torch.device) -> int:
    """The peak of what is allocated during a call, beyond what was there before it, in bytes.

    Of torch's allocator for the device: tensors, also those inside of an operation. What a library takes from the
    system by itself is not seen, nor that an allocator keeps more than it hands out. On the CPU memory that was there
    before the call counts until its end, also where the call frees it.

    Args:
        function: The function. Call it once before, so that what it keeps is there.
        device: Device of its tensors, CUDA or the CPU.

    Raises:
        ValueError: The device is of another kind.
    """
    if device.type == 'cuda':
        return _peak_on_cuda(function, device)
    if device.type != 'cpu':
        raise ValueError(f'memory is measured on CUDA devices and on the CPU, not on {device.type}.')
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    return _peak_of(_allocations(profiler))


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Memory of tensors in bytes; that which several of them are views of counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _peak_on_cuda(function: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def _allocations(profiler: profile) -> Iterator[Mapping[str, Any]]:
    # In order of time. No other public interface of the profiler has each of them.
    with TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    for event in sorted((event for event in events if event.get('name') == '[memory]'), key=lambda event: event['ts']):
        if event['args']['Device Type'] == 0:  # the CPU
            yield event['args']


def _peak_of(allocations: Iterable[Mapping[str, Any]]) -> int:
    # The profiler's own total counts what earlier profiles have seen allocated, but not freed.
    alive: Dict[int, int] = {}
    now = peak = 0
    for event in allocations:
        address, size = event['Addr'], event['Bytes']
        if size < 0:
            now -= alive.pop(address, 0)
            continue
        alive[address] = size
        now += size
        peak = max(peak, now)
    return peak
