"""The loss that an attack raises or, towards a wrong label, lowers: the task's where that is not cross-entropy."""
from typing import Callable, Optional, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.loss import JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from ..attacks import Loss, cross_entropy, random_target

__all__ = ['RandomTargetLoss', 'attack_loss_of']

# What these add to the cross-entropy regularises training; the paper's code attacks without.
_SOFTMAX_LOSSES = (nn.CrossEntropyLoss, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy, JsdCrossEntropy)


def attack_loss_of(criterion: Union[nn.Module, Callable]) -> Optional[Loss]:
    """The loss by which to attack a model that is trained by a criterion.

    Labels [N] name one class of several, whatever the criterion (timm's `BinaryCrossEntropy` makes one-hot targets of
    them): cross-entropy, as in the paper, without smoothing. So it is for class weights [N, classes] and a criterion of
    softmax. Otherwise, for several labels or a single logit, only the criterion says what is right.

    Args:
        criterion: Maps (logits, target) to a scalar.

    Returns:
        Maps (logits, target) to a loss; None for cross-entropy in all cases.
    """
    if isinstance(criterion, _SOFTMAX_LOSSES) or criterion is F.cross_entropy:
        return None
    return _CriterionLoss(criterion)


class _CriterionLoss:
    def __init__(self, criterion: Callable):
        self.criterion = criterion

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if target.ndim == 1 and output.shape[1] > 1:
            return cross_entropy(output, target)
        if target.shape == output.shape and not target.is_floating_point():  # which torch's binary losses do not take
            target = target.to(output.dtype)
        return self.criterion(output, target) * len(output)  # of about the size of a sum, which fp16 needs


class RandomTargetLoss:
    """The loss of random wrong labels, drawn when the first logits tell the number of classes.

    Args:
        loss: See `attack_loss_of`; None for cross-entropy.
    """

    def __init__(self, loss: Optional[Loss] = None):
        self.loss = loss
        self._target: Optional[torch.Tensor] = None

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self._target is None:
            self._target = self._draw(target, output.shape[1])
        return (self.loss or cross_entropy)(output, self._target)

    def _draw(self, target: torch.Tensor, num_classes: int) -> torch.Tensor:
        if self.loss is not None and num_classes == 1:  # yes or no
            return 1 - target
        wrong = random_target(target, num_classes)
        if self.loss is None or target.ndim == 1:
            return wrong
        return F.one_hot(wrong, num_classes).to(target.dtype)
