"""What memory a training step needs, and what of it are activations."""
from typing import Mapping, NamedTuple

import torch

from .peak_memory import bytes_of, peak_memory
from .training_step import TrainingStep

__all__ = ['StepMemory', 'print_memory', 'step_memory']

_MIB = 2 ** 20


class StepMemory(NamedTuple):
    """Memory of a training step in bytes.

    Attributes:
        kept: What is there between steps: parameters, buffers, state of the optimizer, the batch.
        activations: The peak of forward and backward passes beyond what is kept and the gradients: what is saved for
            the backward pass, an attack, and what operations need for a while.
        peak: The peak of a step of one batch. Gradients come as activations go.
        accumulating: The peak where the gradients of an earlier batch are there already.
    """
    kept: int
    activations: int
    peak: int
    accumulating: int


def step_memory(step: TrainingStep, device: torch.device) -> StepMemory:
    """Measure the memory of a step.

    Args:
        step: The step. It is made twice, and its gradients are added up.
        device: Its device, CUDA or the CPU.

    Raises:
        ValueError: The device is of another kind.
    """
    step()  # so that there is what it keeps
    kept = bytes_of(step.kept_tensors())
    peak = kept + peak_memory(step, device)
    step.add_gradients()
    gradients = bytes_of(value.grad for value in step.module.parameters() if value.grad is not None)
    activations = peak_memory(step.add_gradients, device)
    step.optimizer.zero_grad()
    return StepMemory(kept, activations, peak, kept + gradients + activations)


def print_memory(measured: Mapping[str, StepMemory]) -> None:
    """Print a table, in MiB and relative to the first row.

    Args:
        measured: Memory by name.
    """
    first = next(iter(measured.values()))
    print(f'{"MiB":20}{"kept":>10}{"activations":>14}{"× first":>10}{"peak":>10}{"× first":>10}{"accumulating":>14}')
    for name, memory in measured.items():
        kept, activations, peak, accumulating = (value / _MIB for value in memory)
        print(f'{name:20}{kept:>10.1f}{activations:>14.1f}{memory.activations / first.activations:>10.3f}{peak:>10.1f}'
              f'{memory.peak / first.peak:>10.3f}{accumulating:>14.1f}')
