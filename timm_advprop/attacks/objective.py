"""What an attack raises or lowers: a loss of a forward callable's logits, its gradient in the images, wrong labels."""
from typing import Callable

import torch
import torch.nn.functional as F

from ..errors import InputError
from .values import widened

__all__ = ['Forward', 'Gradient', 'LOSS_SCALE', 'Loss', 'cross_entropy', 'input_gradient', 'random_target']

# Under fp16 the gradient of an input is often below the smallest number, and sign(0) would stall the attack. A
# perturbation depends on the gradient's direction alone, so a constant factor is free, and a power of two is exact.
LOSS_SCALE = 2. ** 8

Forward = Callable[[torch.Tensor], torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Gradient = Callable[[Forward, torch.Tensor, torch.Tensor, Loss], torch.Tensor]


def input_gradient(forward: Forward, images: torch.Tensor, target: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The gradient of a loss in the images, times a constant.

    Args:
        forward: Maps images [N, C, …] to logits [N, classes].
        images: Images [N, C, …].
        target: Labels [N], or class weights [N, classes].
        loss: Maps (logits, target) to one loss a sample or to a scalar.

    Returns:
        The gradient [N, C, …], without NaN: an overflow must not become a NaN image.
    """
    images = images.detach().requires_grad_()
    output = forward(images)
    objective = loss(widened(output), target).sum() * LOSS_SCALE
    return torch.autograd.grad(objective, images)[0].nan_to_num()


def cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy, summed over samples: the loss of the attacks where no other is given.

    Args:
        output: Logits [N, classes], of at least 2 classes.
        target: Labels [N], or class weights [N, classes].

    Raises:
        ValueError: There is a single logit, whose softmax is 1 for every image.
    """
    if output.shape[1] < 2:
        raise InputError('The cross-entropy of a single logit is the same for every image: give the attack another '
                         'loss, such as binary cross-entropy.')
    target = target.to(output.dtype) if target.ndim == 2 else target
    return F.cross_entropy(output, target, reduction='sum')


def random_target(target: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Draw a wrong label for each sample, uniformly.

    Args:
        target: True labels [N], or class weights [N, classes]. Of weights that were made from labels (mixup, smoothing,
            multi-label), the classes of least weight are the wrong ones: those of no label. Of a distribution over all
            classes, such as a teacher's answer, every class is wrong but the most likely one. (With 3 classes it cannot
            be told from a mixture of two of them, and is taken for one.)
        num_classes: Number of classes, at least 2.

    Returns:
        Labels [N], never the true one.

    Raises:
        ValueError: There is no wrong label, or the weights are not of `num_classes` classes.
    """
    if num_classes < 2:
        raise InputError(f'A random wrong label needs at least 2 classes, got {num_classes}.')
    if target.ndim == 1:
        offset = torch.randint_like(target, 1, num_classes)
        return (target + offset) % num_classes
    if target.shape[1] != num_classes:
        raise ValueError(f'Targets of {target.shape[1]} classes, but the model has {num_classes}.')
    wrong = torch.where(_is_distribution(target), target < target.amax(1, True), target <= target.amin(1, True))
    wrong = wrong.float()
    # as torch.multinomial draws, whose check of its weights lets a device wait in older torch
    return (wrong / torch.empty_like(wrong).exponential_()).argmax(dim=1)


def _is_distribution(weights: torch.Tensor) -> torch.Tensor:
    # Rows [N, 1] that are an answer over all classes. Labels make few different weights: a mixture of two classes has
    # three. Those of several labels may have more, mixed, but sum to more than 1.
    weights = weights.float()
    num_values = 1 + (weights.sort(dim=1).values.diff(dim=1) > 0).sum(dim=1, keepdim=True)
    return (num_values > 3) & ((weights.sum(dim=1, keepdim=True) - 1).abs() < 0.05)  # sums of 16-bit numbers are rough
