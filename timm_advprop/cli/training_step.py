"""A training step as the training loop makes it, on one batch again and again, to be measured."""
from typing import Iterator, Tuple

import torch
from timm.task import TrainingTask

from ..engine.placement import Placement

__all__ = ['TrainingStep']


class TrainingStep:
    """A step of a task, by SGD with momentum; gradients are gone after it.

    Args:
        task: The task.
        batch: Images [N, C, H, W] and target, on the task's device.
        placement: Precision of the forward pass.
        compiled: Compile the task.
    """

    def __init__(
            self,
            task: TrainingTask,
            batch: Tuple[torch.Tensor, torch.Tensor],
            placement: Placement,
            compiled: bool = False,
    ):
        if compiled:
            task.compile()
        self.task, self.batch, self.placement = task, batch, placement
        self.module = task.get_trainable_module().train()  # pyright: ignore[reportOptionalMemberAccess]
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.01, momentum=0.9)

    def __call__(self) -> None:
        """Make the step."""
        self.add_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def add_gradients(self) -> None:
        """Make the part of a step that a batch is for where the gradients of several accumulate."""
        with self.placement.autocast():
            loss = self.task(*self.batch)['loss']
        loss.backward()

    def kept_tensors(self) -> Iterator[torch.Tensor]:
        """What is there between steps: parameters, buffers, state of the optimizer, the batch."""
        yield from self.module.state_dict().values()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
        yield from self.batch
