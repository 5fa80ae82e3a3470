"""What the tasks of all regimes share."""
import logging
from typing import Any, Callable, Dict, Optional, Union

import torch
import torch.nn as nn
from timm.task import ClassificationTask
from torch.nn.parallel import DistributedDataParallel

from ..norms import has_split_norm, set_norm_route, train_aux

__all__ = ['RegimeTask', 'check_weight', 'top1', 'use_main_norms']

_logger = logging.getLogger(__name__)


class RegimeTask(ClassificationTask):
    """A `timm.task.ClassificationTask` that knows what a step costs.

    Args:
        model: The model to train.
        criterion: Maps (logits, target) to a scalar. Cross-entropy by default.
        device: Device of the task.
        dtype: Type of the task.
        verbose: Log what the task does and costs.
        criterion_kwargs: Arguments of timm's `create_classification_loss` where `criterion` is None (timm ≥ 1.0.31).
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            *,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
            criterion_kwargs: Optional[Dict[str, Any]] = None,
    ):
        if criterion is None and criterion_kwargs is None:
            criterion = nn.CrossEntropyLoss()
        loss_kwargs = dict(criterion_kwargs=criterion_kwargs) if criterion_kwargs is not None else {}
        super().__init__(model, criterion, device=device, dtype=dtype, verbose=verbose, **loss_kwargs)

    @property
    def unwrapped_module(self) -> nn.Module:
        """The model without DDP: an attack's passes are no training passes, there is nothing to synchronise."""
        module = self.trainable_module
        return module.module if isinstance(module, DistributedDataParallel) else module

    def describe(self) -> str:
        """The regime and its attack."""
        raise NotImplementedError

    def relative_cost(self) -> float:
        """Arithmetic of a step relative to a vanilla step on the same number of images."""
        raise NotImplementedError

    def announce(self) -> None:
        """Log what the task does and costs."""
        if self.verbose:
            _logger.info(f'{self.describe()}: {self.relative_cost():.1f} × the arithmetic of vanilla')


def use_main_norms(model: nn.Module) -> None:
    """Let a model train as the plain one: images pass its main norms, auxiliary norms require no gradients.

    Args:
        model: Any model.
    """
    if has_split_norm(model):
        set_norm_route(model, 'clean')
        train_aux(model, False)


def check_weight(weight: float) -> float:
    """The weight of an adversarial loss, if it is one.

    Args:
        weight: The weight, at least 0.

    Raises:
        ValueError: It is not.
    """
    if not weight >= 0:
        raise ValueError(f'weight of the adversarial loss must be at least 0, got {weight}.')
    return float(weight)


def top1(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Top-1 accuracy in percent, a scalar.

    Args:
        output: Logits [N, classes].
        target: Labels [N], or class weights [N, classes], of which the largest counts.
    """
    labels = target.argmax(dim=1) if target.ndim == 2 else target
    return 100 * (output.argmax(dim=1) == labels).float().mean()
