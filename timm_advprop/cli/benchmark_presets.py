"""Sets of measurements: what `python -m timm_advprop.benchmark --preset gpu` measures, and the table that it prints."""
import csv
import gc
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch

from ..engine.placement import Placement
from ..errors import InputError, one_line
from ..output import duration
from ..regimes import AdvPropTask, FastAdvPropTask
from .step_memory import step_memory
from .timing import Case, device_name, time_in_turn
from .training_step import TrainingStep

__all__ = ['PRESETS', 'Preset', 'run_preset']

_MIB = 2 ** 20


@dataclass(frozen=True)
class Preset:
    """Models, each of them eager and compiled, and the flags that hold for all.

    Args:
        models: The models.
        device: Device that is needed where no other is asked for.
        flags: Defaults of the program's flags, by name.
    """
    models: Tuple[str, ...]
    device: str
    flags: Mapping[str, Any] = field(default_factory=dict)

    def defaults(self) -> Dict[str, Any]:
        """Defaults of the flags; None where a value that is given narrows the set."""
        return dict(self.flags, model=None, device=None)

    def variants(self, values: Mapping[str, Any]) -> List[Dict[str, Any]]:
        """The values of the flags of each measurement.

        Args:
            values: The flags that were given, and the defaults for others.

        Raises:
            InputError: The device is not there.
        """
        device = values['device'] or self.device
        if device.startswith('cuda') and not torch.cuda.is_available():
            raise InputError(f'--preset {values["preset"]} needs a CUDA device, and there is none. To try it on '
                             'the CPU give --device cpu, and a small --model, --img-size and -b.')
        models = [values['model']] if values['model'] else self.models
        modes = [True] if values['torchcompile'] else [False, True]
        return [{**values, 'device': device, 'model': model, 'torchcompile': compiled}
                for model in models for compiled in modes]


PRESETS = {
    'gpu': Preset(
        models=('resnet50_ap', 'efficientnet_b0_ap', 'efficientnet_b3_ap', 'convnext_tiny_ap',
                'deit_small_patch16_224_ap'),
        device='cuda',
        flags=dict(img_size=224, batch_size=128, amp_dtype='bfloat16', channels_last=True, rounds=10,
                   regime=(AdvPropTask.name, FastAdvPropTask.name), adv_steps=(1, 5))),
}


@dataclass
class _Row:
    # What came of a case; None where it was not measured.
    case: str
    images_per_second: Optional[float] = None
    times_vanilla: Optional[float] = None
    floor: Optional[float] = None
    times_floor: Optional[float] = None
    peak_mib: Optional[float] = None
    error: str = ''

    def cells(self) -> List[str]:
        numbers = self.images_per_second, self.times_vanilla, self.floor, self.times_floor, self.peak_mib
        return [self.case, *('' if value is None else f'{value:.{digits}f}' for value, digits in zip(numbers, '12220')),
                self.error]


_HEAD = ('model', 'mode', 'case', 'images/s', '× vanilla', 'floor', '× floor', 'peak MiB', 'error')


def run_preset(
        variants: Sequence[Any],
        placement: Placement,
        cases_of: Callable[[Any, Placement], Mapping[str, Case]],
        output: Optional[str] = None,
) -> None:
    """Measure, and print a Markdown table as it grows.

    The peak of memory is that of a step and of what is there between steps. A case that fails, as for want of memory,
    is a row that says so.

    Args:
        variants: Settings of each measurement, those of `benchmark.main`.
        placement: Where, and in which precision.
        cases_of: Makes the cases of a measurement, vanilla first; each runs a `TrainingStep`.
        output: CSV file that rows are added to as they are measured.

    Raises:
        InputError: The file cannot be written.
    """
    place = dict(device=device_name(placement.device), torch=torch.__version__)
    start = time.monotonic()
    with _rows_of(output) as write:
        print(f'{place["device"]}, torch {place["torch"]}, {_about(variants[0])}\n')
        print(f'| {" | ".join(_HEAD)} |\n{"|---" * len(_HEAD)}|', flush=True)
        for done, settings in enumerate(variants):
            mode = 'compiled' if settings.torchcompile else 'eager'
            eta = f'  ETA {duration((time.monotonic() - start) / done * (len(variants) - done))}' if done else ''
            print(f'[{done + 1}/{len(variants)}] {settings.model}, {mode}{eta}', file=sys.stderr)
            for row in _measure(settings, placement, cases_of):
                print(f'| {" | ".join((settings.model, mode, *row.cells()))} |', flush=True)
                write({**place, **_of_csv(settings), 'mode': mode, **vars(row)})


def _measure(settings: Any, placement: Placement, cases_of: Callable) -> List[_Row]:
    try:
        cases = dict(cases_of(settings, placement))
        rows = {name: _memory_of(name.strip(), case, placement.device) for name, case in cases.items()}
        cases = {name: case for name, case in cases.items() if not rows[name].error}
        seconds = time_in_turn({name: case.run for name, case in cases.items()}, settings.rounds, placement.device)
        for name, times in seconds.items():
            _add_times(rows[name], settings.batch_size, times, seconds.get(next(iter(rows))), cases[name].floor)
        return list(rows.values())
    finally:
        cases = None
        _forget(placement.device)


def _memory_of(name: str, case: Case, device: torch.device) -> _Row:
    # The first steps of a case, too: it compiles, and shows whether it fits.
    assert isinstance(case.run, TrainingStep)
    try:
        return _Row(name, peak_mib=step_memory(case.run, device).peak / _MIB)
    except (AssertionError, InputError, RuntimeError) as error:  # the size of images, want of memory, a compiler's
        case.run.optimizer.zero_grad()
        return _Row(name, error=one_line(error, limit=80))


def _add_times(row: _Row, images: int, times: List[float], first: Optional[List[float]], floor: float) -> None:
    row.images_per_second = images / statistics.median(times)
    if first is not None:
        row.floor, row.times_vanilla = floor, statistics.median(a / b for a, b in zip(times, first))
        row.times_floor = row.times_vanilla / floor


def _forget(device: torch.device) -> None:
    # Else the graphs of earlier models would count against torch's limit of graphs, and their memory is not free.
    torch.compiler.reset()
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()


@contextmanager
def _rows_of(path: Optional[str]) -> Iterator[Callable[[Dict[str, Any]], None]]:
    # A function that adds a row to a CSV file, which is whole after each: a run may be cut off.
    if path is None:
        yield lambda row: None
        return
    try:
        file = open(path, 'w', newline='', encoding='utf-8')
    except OSError as error:
        raise InputError(f'Cannot write {path}: {error.strerror}.') from error
    with file:
        writer = csv.writer(file)

        def write(row: Dict[str, Any]) -> None:
            if not file.tell():
                writer.writerow(row)
            writer.writerow(row.values())
            file.flush()
        yield write


def _of_csv(settings: Any) -> Dict[str, Any]:
    names = ('amp_dtype', 'channels_last', 'img_size', 'batch_size', 'rounds', 'model')
    return {name: getattr(settings, name) for name in names}


def _about(settings: Any) -> str:
    return (f'{settings.amp_dtype or "float32"}{", channels-last" if settings.channels_last else ""}, '
            f'{settings.img_size} px, batches of {settings.batch_size}, median of {settings.rounds} rounds')
