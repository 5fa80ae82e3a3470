"""Adversarial attacks as pure functions of a forward callable, images and labels.

Every function draws from torch's global generators and asks autograd for the gradient of the images alone: no
parameter's `.grad` is written.
"""
from .objective import LOSS_SCALE, Forward, Gradient, Loss, cross_entropy, input_gradient, random_target
from .pgd import ATTACKS, NORMS, gd, ifgsm, pgd
from .pyramid import pyramid
from .values import limits, per_channel, widened

__all__ = [
    'ATTACKS', 'Forward', 'Gradient', 'LOSS_SCALE', 'Loss', 'NORMS', 'cross_entropy', 'gd', 'ifgsm', 'input_gradient',
    'limits', 'per_channel', 'pgd', 'pyramid', 'random_target', 'widened',
]
