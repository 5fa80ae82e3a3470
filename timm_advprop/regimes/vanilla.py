"""Vanilla training: clean images, one norm."""
from typing import Any, Callable, Dict, Optional, Sequence, Union

import torch
import torch.nn as nn

from .regime_settings import RegimeSettings
from .task import NO_AUX_NORMS, RegimeTask, top1, use_main_norms

__all__ = ['VanillaTask']


class VanillaTask(RegimeTask):
    """Train on clean images, as `timm.task.ClassificationTask` does.

    Args:
        model: The model to train. Of a model with split norms, the main norms are used and the auxiliary ones frozen.
        criterion: Maps (logits, target) to a scalar. Cross-entropy by default.
        mean: Of no use; taken as by the other regimes.
        std: The same.
        **kwargs: Arguments of `RegimeTask`.
    """
    name = 'vanilla'
    takes_scripted = True
    no_use_for = NO_AUX_NORMS  # settings of an attack may stand in a recipe that is shared

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            *,
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        use_main_norms(model)
        self.announce()

    @classmethod
    def arguments(cls, settings: RegimeSettings) -> Dict[str, Any]:
        return {}

    def describe(self) -> str:
        return self.name

    def relative_cost(self) -> float:
        return 1.

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Compute the loss of a batch.

        Args:
            input: Images [N, C, H, W].
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'`, `'output'` (logits [N, classes]), `'clean_loss'` (detached, the same as by the names of the other
            regimes) and `'clean_top1'` (percent, of this batch).
        """
        result = super().forward(input, target)
        # a copy: timm's script divides the loss in place
        return dict(result, clean_loss=result['loss'].detach().clone(), clean_top1=top1(result['output'], target))
