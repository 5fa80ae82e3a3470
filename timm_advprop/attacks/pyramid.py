"""The pyramid attack: perturbations of patches of several sizes, added up.

Herrmann et al., *Pyramid Adversarial Training Improves ViT Performance*, CVPR 2022, arXiv:2111.15121. In the authors'
code (google-research/scenic, projects/adversarialtraining) each scale's perturbation is clamped to the range of pixels
before the next one is added; here their sum is, as in the paper's formula.
"""
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F

from .objective import Forward, Gradient, Loss, cross_entropy, input_gradient
from .values import Scale, cast_towards, check_arguments, limits, per_channel, widened

__all__ = ['pyramid']


def pyramid(
        forward: Forward,
        images: torch.Tensor,
        target: torch.Tensor,
        *,
        eps: Scale,
        alpha: Scale,
        steps: int,
        bounds: Tuple[Scale, Scale],
        scales: Sequence[int] = (32, 16, 1),
        weights: Sequence[float] = (20, 10, 1),
        targeted: bool = False,
        loss: Optional[Loss] = None,
        gradient: Optional[Gradient] = None,
) -> torch.Tensor:
    """Attack images by x' = clamp(x + Σ w_s · δ_s), where δ_s has one value for each s × s patch and channel.

    The perturbation starts from zero. A step moves each value of each δ_s by `alpha` along the sign of the loss's
    gradient, which is that of the image, summed over the patch; pixels that are beyond their bounds before the clamp
    have none. Then |δ_s| ≤ `eps`. The grid of patches begins at the upper left; its last ones may be cut off.

    Args:
        forward: Maps images [N, C, H, W] to logits [N, classes]. It decides mode, route and precision of the model.
        images: Clean images [N, C, H, W] of a floating-point type, in the units the model takes.
        target: Labels [N], or class weights [N, classes]: the true ones, or those to reach where `targeted`.
        eps: Largest value of each δ_s, at least 0: a number or one for each channel, in the units of `images`.
        alpha: Size of a step, at least 0: a number or one for each channel.
        steps: Number of steps, at least 1.
        bounds: Lowest and highest value of an image. One that leaves them already (random erasing) keeps its values.
        scales: Sides of the patches in pixels, each at least 1.
        weights: Weight of each scale, at least 0.
        targeted: Minimise the loss instead of maximising it.
        loss: Maps (logits, target) to one loss a sample or to a scalar. Cross-entropy by default.
        gradient: Maps (forward, images, target, loss) to the gradient of the images, `input_gradient` by default.

    Returns:
        Adversarial images [N, C, H, W], detached, of the type of `images`.

    Raises:
        TypeError: Images are not of a floating-point type.
        ValueError: A number is out of range, there are not as many weights as scales, or images are not [N, C, H, W].
    """
    check_arguments(images, eps, alpha, steps)
    _check_levels(images, scales, weights)
    loss, gradient = loss or cross_entropy, gradient or input_gradient
    with torch.inference_mode(False), torch.enable_grad():  # autograd takes no tensors made in inference mode
        images, target = (value.clone() if value.is_inference() else value.detach() for value in (images, target))
        center = widened(images)
        eps, alpha = per_channel(eps, center), per_channel(alpha, center)
        low, high = limits(center, bounds)
        levels = [_patch_sums(torch.zeros_like(center), scale) for scale in scales]
        moved = center
        for _ in range(steps):
            grad = gradient(forward, moved.clamp(low, high).to(images.dtype), target, loss).to(center.dtype)
            grad = torch.where((moved >= low) & (moved <= high), grad, 0.)
            directions = [_patch_sums(grad, scale).sign() for scale in scales]
            levels = [torch.addcmul(level, direction, alpha, value=-1. if targeted else 1.).clamp(-eps, eps)
                      for level, direction in zip(levels, directions)]
            moved = center + _sum_of(levels, scales, weights, center.shape[2:])
        return cast_towards(moved.clamp(low, high), images)


def _check_levels(images: torch.Tensor, scales: Sequence[int], weights: Sequence[float]) -> None:
    if images.ndim != 4:
        raise ValueError(f'A pyramid is of images [N, C, H, W], got {list(images.shape)}.')
    if not scales or len(scales) != len(weights):
        raise ValueError(f'A pyramid needs a weight for each of its scales, got scales {list(scales)} and weights '
                         f'{list(weights)}.')
    if any(scale < 1 or scale != int(scale) for scale in scales):
        raise ValueError(f'scales are sides of patches in pixels, whole numbers of at least 1, got {list(scales)}.')
    if not all(weight >= 0 for weight in weights):
        raise ValueError(f'weights must be at least 0, got {list(weights)}.')


def _patch_sums(values: torch.Tensor, scale: int) -> torch.Tensor:
    # [N, C, ceil(H / scale), ceil(W / scale)]
    return F.avg_pool2d(values, scale, ceil_mode=True, divisor_override=1)


def _sum_of(
        levels: List[torch.Tensor],
        scales: Sequence[int],
        weights: Sequence[float],
        size: Sequence[int],
) -> torch.Tensor:
    height, width = size
    return sum(  # pyright: ignore[reportReturnType]
        weight * level.repeat_interleave(scale, 2)[:, :, :height].repeat_interleave(scale, 3)[..., :width]
        for level, scale, weight in zip(levels, scales, weights))
