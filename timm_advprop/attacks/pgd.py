"""Projected gradient descent and its kin.

The attackers that AdvProp compares (Xie et al., CVPR 2020, arXiv:1911.09665): PGD (Madry et al., ICLR 2018,
arXiv:1706.06083), I-FGSM (Kurakin et al., arXiv:1607.02533; PGD without the random start) and GD (PGD without the
projection onto the ball).
"""
from typing import Any, Optional, Tuple, Union

import torch

from .objective import Forward, Gradient, Loss, cross_entropy, input_gradient
from .values import Scale, cast_towards, check_arguments, limits, per_channel, widened

__all__ = ['ATTACKS', 'NORMS', 'gd', 'ifgsm', 'pgd']

NORMS = ('linf', 'l2')


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
    check_arguments(images, eps, alpha, steps)
    _check_kind(random_start, norm)
    loss, gradient = loss or cross_entropy, gradient or input_gradient
    with torch.inference_mode(False), torch.enable_grad():  # autograd takes no tensors made in inference mode
        images, target = (value.clone() if value.is_inference() else value.detach() for value in (images, target))
        center = widened(images)
        eps, alpha = per_channel(eps, center), per_channel(alpha, center)
        to_ball, to_bounds = _clamps(center, eps, bounds, norm)
        clamp = to_ball if project else to_bounds
        adv = to_ball(center + eps * _random_start(center, float(random_start), norm)) if random_start else center
        for _ in range(steps):
            grad = gradient(forward, adv.to(images.dtype), target, loss).to(center.dtype)
            direction = grad.sign() if norm == 'linf' else _l2_direction(grad, alpha)
            adv = clamp(torch.addcmul(adv, direction, alpha, value=-1. if targeted else 1.))
        return cast_towards(adv, images)


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


def _check_kind(random_start: Union[bool, float], norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f'Unknown norm {norm!r}: give one of {", ".join(NORMS)}.')
    if not 0 <= random_start <= 1:
        raise ValueError(f'random_start is a probability, got {random_start}.')


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
    low, high = limits(center, bounds)

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
