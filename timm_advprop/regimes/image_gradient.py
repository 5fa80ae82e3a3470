"""A cheaper gradient of images.

Training never asks for the gradient of a first convolution's input, so libraries have no fast kernel for one of few
channels. Where its stride is s, each s × s block of pixels is what the convolution's output makes of it by s × s small
kernels: the gradient is an ordinary convolution with s² times the channels, whose pixels are put in their places.
"""
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..norms import is_compiled

__all__ = ['cheap_image_gradient']

_MOST_CHANNELS = 4  # with more, torch's own kernels are good
_MOST_WASTE = 1.5  # of arithmetic, where the kernel is no multiple of the stride


@contextmanager
def cheap_image_gradient(model: nn.Module) -> Iterator[None]:
    """Inside of a `with` block, let strided convolutions of images compute their gradients in the cheaper way.

    It pays on a CPU, where a kernel is larger than its stride or equal to it, as those of ResNets and of patches.

    Args:
        model: A model, not wrapped in DDP; one that is compiled is left as it is.
    """
    modules = list(model.modules())
    chosen = [] if is_compiled(modules) else [
        module for module in modules if type(module) is nn.Conv2d and 'forward' not in vars(module) and _pays(module)]
    try:
        for conv in chosen:
            conv.forward = _forward_of(conv)  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for conv in chosen:
            vars(conv).pop('forward', None)


def _pays(conv: nn.Conv2d) -> bool:
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    padding: Any = conv.padding[0]  # a letter where it is named
    if conv.weight.device.type != 'cpu' or conv.in_channels > _MOST_CHANNELS or stride < 2:
        return False
    is_usual = conv.groups == 1 and conv.padding_mode == 'zeros' and conv.dilation == (1, 1) and all(
        values == (value, value) for values, value in (
            (conv.kernel_size, kernel), (conv.stride, stride), (conv.padding, padding)))
    return is_usual and padding < kernel and (_extent(kernel, stride, padding)[1] * stride / kernel) ** 2 <= _MOST_WASTE


def _forward_of(conv: nn.Conv2d) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(images: torch.Tensor) -> torch.Tensor:
        if not images.requires_grad or torch.is_autocast_enabled('cpu'):
            return conv._conv_forward(images, conv.weight, conv.bias)
        return _StridedConvolution.apply(images, conv.weight, conv.bias, conv.stride[0], conv.padding[0])
    return forward


class _StridedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
            ctx: Any,
            images: torch.Tensor,
            weight: torch.Tensor,
            bias: Optional[torch.Tensor],
            stride: int,
            padding: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry = stride, padding
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        (images, weight), (stride, padding) = ctx.saved_tensors, ctx.geometry
        of_images, of_weights = None, (None, None)
        if ctx.needs_input_grad[0]:
            of_images = _image_gradient(grad, weight, images.shape[2:], stride, padding)
        if any(ctx.needs_input_grad[1:3]):
            needed = [False, *ctx.needs_input_grad[1:3]]
            of_weights = torch.ops.aten.convolution_backward(
                grad, images, weight, [len(weight)], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, needed)[1:]
        return of_images, *of_weights, None, None


def _image_gradient(
        grad: torch.Tensor,
        weight: torch.Tensor,
        size: Tuple[int, int],
        stride: int,
        padding: int,
) -> torch.Tensor:
    # Pixel stride · q + r takes its gradient from outputs q - d by the weight at r + padding + stride · d, for r in
    # 0 … stride - 1: pixels q of all r are one convolution.
    kernel = weight.shape[2]
    lowest, extent = _extent(kernel, stride, padding)
    before = -padding - stride * lowest
    after = extent * stride - kernel - before
    blocks = F.pad(weight, (before, after) * 2).unflatten(3, (extent, stride)).unflatten(2, (extent, stride))
    kernels = blocks.permute(1, 3, 5, 0, 2, 4).flip(-1, -2).flatten(0, 2)  # [C · stride², outputs, extent, extent]

    highest = lowest + extent - 1
    num_blocks = [-(-length // stride) for length in size]
    margin = max(highest, *(blocks - 1 - lowest - (length - 1) for blocks, length in zip(num_blocks, grad.shape[2:])))
    found = F.conv2d(grad, kernels, padding=margin)
    start = margin - highest
    found = found[:, :, start:start + num_blocks[0], start:start + num_blocks[1]]
    return F.pixel_shuffle(found, stride)[:, :, :size[0], :size[1]]


def _extent(kernel: int, stride: int, padding: int) -> Tuple[int, int]:
    # The lowest d, and how many there are.
    lowest = -(padding // stride) - (padding % stride > 0)
    return lowest, (kernel - 1 - padding) // stride - lowest + 1
