"""Adversarial attacks as pure functions of a forward callable, images and labels.

The attackers that AdvProp compares (Xie et al., CVPR 2020, arXiv:1911.09665): PGD (Madry et al., ICLR 2018,
arXiv:1706.06083), I-FGSM (Kurakin et al., arXiv:1607.02533; PGD without the random start) and GD (PGD without the
projection onto the ball). Every function draws from torch's global generators and asks autograd for the gradient of
the images alone: no parameter's `.grad` is written.
"""
from functools import lru_cache
from typing import Any, Callable, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F

from .errors import InputError

__all__ = [
    'pgd', 'ifgsm', 'gd', 'cross_entropy', 'input_gradient', 'per_channel', 'random_target', 'ATTACKS', 'LOSS_SCALE',
    'NORMS',
]

NORMS = ('linf', 'l2')
# Under fp16 the gradient of an input is often below the smallest number, and sign(0) would stall the attack. A
# perturbation depends on the gradient's direction alone, so a constant factor is free, and a power of two is exact.
LOSS_SCALE = 2. ** 8

Scale = Union[float, Sequence[float], torch.Tensor]
Forward = Callable[[torch.Tensor], torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Gradient = Callable[[Forward, torch.Tensor, torch.Tensor, Loss], torch.Tensor]


def pgd(
        forward: Forward,
        images: torch.Tensor,
        target: torch.Tensor,
        *,
        eps: Scale,
        alpha: Scale,
        steps: int,
        bounds: Tuple[Scale, Scale],
        random_start: Union[bool, float] = True,
        targeted: bool = False,
        loss: Optional[Loss] = None,
        norm: str = 'linf',
        gradient: Optional[Gradient] = None,
        project: bool = True,
) -> torch.Tensor:
    """Projected gradient descent.

    `eps`, `alpha` and `bounds` are in the units of `images`, each a number or one value for each channel. With
    per-channel `eps` the L2 ball is the ellipsoid ‖δ / eps‖₂ ≤ 1: the ball of radius eps in pixel space where `eps` is
    that radius divided by each channel's standard deviation.

    Args:
        forward: Maps images [N, C, …] to logits [N, classes]. It decides mode, route and precision of the model.
        images: Clean images [N, C, …] of a floating-point type, in the units the model takes.
        target: Labels [N], or class weights [N, classes]: the true ones, or those to reach where `targeted`.
        eps: Radius of the ball around each image, at least 0.
        alpha: Size of a step, at least 0: of each value for `linf`, of the whole step's norm for `l2`.
        steps: Number of steps, at least 1.
        bounds: Lowest and highest value of an image. One that leaves them already (random erasing) keeps its values.
        random_start: Probability that a sample starts from a random point of the ball. True is 1, False is 0.
        targeted: Minimise the loss instead of maximising it.
        loss: Maps (logits, target) to one loss a sample or to a scalar. Cross-entropy by default.
        norm: `'linf'` or `'l2'`.
        gradient: Maps (forward, images, target, loss) to the gradient of the images, `input_gradient` by default.
        project: Project onto the ball after each step. Without, `eps` is the radius of the random start only.

    Returns:
        Adversarial images [N, C, …], detached, of the type of `images`; rounding does not take them out of the ball.

    Raises:
        TypeError: Images are not of a floating-point type.
        ValueError: A number is out of range, or the norm is unknown.
    """
    _check_arguments(images, eps, alpha, steps, random_start, norm)
    loss, gradient = loss or cross_entropy, gradient or input_gradient
    with torch.inference_mode(False), torch.enable_grad():  # autograd takes no tensors made in inference mode
        images, target = (value.clone() if value.is_inference() else value.detach() for value in (images, target))
        # steps smaller than the spacing of 16-bit numbers would be lost
        center = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
        eps, alpha = per_channel(eps, center), per_channel(alpha, center)
        to_ball, to_bounds = _clamps(center, eps, bounds, norm)
        clamp = to_ball if project else to_bounds
        adv = to_ball(center + eps * _random_start(center, float(random_start), norm)) if random_start else center
        for _ in range(steps):
            grad = gradient(forward, adv.to(images.dtype), target, loss).to(center.dtype)
            direction = grad.sign() if norm == 'linf' else _l2_direction(grad, alpha)
            adv = clamp(torch.addcmul(adv, direction, alpha, value=-1. if targeted else 1.))
        return adv if center is images else _cast_towards(adv, images)


def ifgsm(
        forward: Forward,
        images: torch.Tensor,
        target: torch.Tensor,
        *,
        random_start: Union[bool, float] = False,
        **settings: Any,
) -> torch.Tensor:
    """Iterative fast gradient sign method: `pgd` that starts from the clean images.

    Takes the arguments of `pgd`, so that attackers can be exchanged; `random_start` is ignored.
    """
    return pgd(forward, images, target, random_start=False, **settings)


def gd(forward: Forward, images: torch.Tensor, target: torch.Tensor, **settings: Any) -> torch.Tensor:
    """Gradient descent: `pgd` without the projection onto the ball.

    Takes the arguments of `pgd`. `eps` is the radius of the random start only: a perturbation may reach
    eps + steps · alpha. The bounds still hold.
    """
    return pgd(forward, images, target, project=False, **settings)


ATTACKS = {'pgd': pgd, 'ifgsm': ifgsm, 'gd': gd}


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
    return torch.multinomial(wrong.float(), 1).squeeze(1)


def _is_distribution(weights: torch.Tensor) -> torch.Tensor:
    # Rows [N, 1] that are an answer over all classes. Labels make few different weights: a mixture of two classes has
    # three. Those of several labels may have more, mixed, but sum to more than 1.
    weights = weights.float()
    num_values = 1 + (weights.sort(dim=1).values.diff(dim=1) > 0).sum(dim=1, keepdim=True)
    return (num_values > 3) & ((weights.sum(dim=1, keepdim=True) - 1).abs() < 0.05)  # sums of 16-bit numbers are rough


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
    if output.dtype in (torch.float16, torch.bfloat16):
        output = output.float()
    objective = loss(output, target).sum() * LOSS_SCALE
    return torch.autograd.grad(objective, images)[0].nan_to_num()


def _check_arguments(images, eps, alpha, steps, random_start, norm):
    if not images.is_floating_point():
        raise TypeError(f'Images must be of a floating-point type, got {images.dtype}.')
    if norm not in NORMS:
        raise ValueError(f'Unknown norm {norm!r}: give one of {", ".join(NORMS)}.')
    if steps < 1:
        raise ValueError(f'An attack needs at least 1 step, got {steps}.')
    if not 0 <= random_start <= 1:
        raise ValueError(f'random_start is a probability, got {random_start}.')
    for name, value in (('eps', eps), ('alpha', alpha)):
        if isinstance(value, torch.Tensor) and value.device.type != 'cpu':
            continue  # reading it would wait for the device
        if not bool((torch.as_tensor(value) >= 0).all()):
            raise ValueError(f'{name} must be at least 0, got {value}.')


def per_channel(value: Scale, images: torch.Tensor) -> torch.Tensor:
    """A number, or one for each channel, as a tensor that broadcasts with images [N, C, …], of their type and device.

    Raises:
        ValueError: There are neither one value nor C; or they lie along another dimension than that of channels.
    """
    if isinstance(value, torch.Tensor):
        value = value.to(dtype=images.dtype, device=images.device)
    else:
        value = value.tolist() if hasattr(value, 'tolist') else value  # of numpy
        value = _on_device(_as_tuple(value), images.dtype, images.device)
    channels, rest = images.shape[1], (1,) * (images.ndim - 2)
    if value.numel() != 1 and value.shape not in ((channels,), (channels, *rest), (1, channels, *rest)):
        raise ValueError(f'Got {value.numel()} values of shape {list(value.shape)} for images of {channels} channels: '
                         'eps, alpha and bounds (mean and std) are numbers or have one value for each channel, which '
                         'holds for all images.')
    return value.reshape(-1, *rest)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, Sequence) else value


@lru_cache(maxsize=256)
def _on_device(value: Union[float, Tuple[float, ...]], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # Kept: a copy from the host in every step would make the device wait.
    return torch.tensor(value, dtype=dtype, device=device)


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


def _random_start(images: torch.Tensor, probability: float, norm: str) -> torch.Tensor:
    # A point of the unit ball for each sample, its centre with 1 - probability.
    if norm == 'linf':
        point = torch.empty_like(images).uniform_(-1, 1)
    else:
        direction = _l2_direction(torch.randn_like(images), weight=1.)
        radius = torch.rand(images.shape[0], device=images.device, dtype=images.dtype)
        point = direction * _per_sample(radius ** (1 / images[0].numel()), images)
    if probability < 1:
        start = torch.rand(images.shape[0], device=images.device) < probability
        point = point * _per_sample(start, images)
    return point


def _clamps(center, eps, bounds, norm):
    # Functions that bring images back to the ball and the bounds, and to the bounds alone.
    low, high = (per_channel(value, center) for value in bounds)
    low, high = torch.minimum(low, center), torch.maximum(high, center)

    def to_bounds(adv):
        return adv.clamp(low, high)

    if norm == 'linf':
        lowest = torch.maximum(low, _within(center - eps, center, eps))
        highest = torch.minimum(high, _within(center + eps, center, eps))
        return lambda adv: adv.clamp(lowest, highest), to_bounds
    radius = eps.clamp_min(torch.finfo(center.dtype).tiny)

    def to_l2_ball(adv):
        perturbation = adv - center
        length = (perturbation / radius).flatten(1).norm(dim=1)
        perturbation = perturbation / _per_sample(length.clamp_min(1), adv)
        return to_bounds(center + perturbation)  # towards the center: the length only shrinks
    return to_l2_ball, to_bounds


def _l2_direction(vectors: torch.Tensor, weight: Union[float, torch.Tensor]) -> torch.Tensor:
    # Unit vectors along weight * vectors [N, …]; zero stays zero. Dividing by the largest entry first keeps squares in
    # the range of numbers.
    tiny = torch.finfo(vectors.dtype).tiny
    vectors = weight * (vectors / _per_sample(vectors.abs().flatten(1).amax(dim=1).clamp_min(tiny), vectors))
    return vectors / _per_sample(vectors.flatten(1).norm(dim=1).clamp_min(tiny), vectors)


def _per_sample(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *(1,) * (images.ndim - 1))


def _within(edge: torch.Tensor, center: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    # Rounding may put center ± eps a little outside of the ball: take the next number inside.
    return torch.where((edge - center).abs() > eps, torch.nextafter(edge, center), edge)


def _cast_towards(adv: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    # adv in the 16-bit type of images, rounded towards them: rounding to nearest could leave the ball.
    cast = adv.to(images.dtype)
    farther = (cast.float() - images.float()).abs() > (adv - images.float()).abs()
    # torch.nextafter lacks 16-bit types on some devices: count numbers by their bits, from 0 up and down
    bits = cast.view(torch.int16)
    rank = torch.where(bits < 0, -(bits & 0x7fff), bits) + torch.sign(images.float() - cast.float()).to(torch.int16)
    nearer = torch.where(rank < 0, -32768 - rank, rank).to(torch.int16).view(images.dtype)
    return torch.where(farther, nearer, cast)
