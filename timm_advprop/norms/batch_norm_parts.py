"""Batch norms of the parts of a batch, written side by side into one tensor.

A norm for each part and `torch.cat` behind them copies every activation once more, a third to a half of what the norms
themselves cost on a CPU. The values are the same.
"""
from typing import Any, List, Sequence, Tuple

import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['normalise_parts', 'takes_parts']


def takes_parts(norms: Sequence[nn.Module], input: torch.Tensor, sizes: Sequence[int]) -> bool:
    """Whether `normalise_parts` can take the place of the norms: a training pass on a CPU of usual batch norms.

    Args:
        norms: The norm of each part.
        input: Activations [N, C, …].
        sizes: Rows of each part.
    """
    values = min(sizes) * input.shape[2:].numel()
    return (input.device.type == 'cpu' and values > 1 and not torch.compiler.is_compiling()  # which fuses the copy
            and _is_dense(input) and all(_is_usual(norm, input.dtype) for norm in norms))


def _is_dense(input: torch.Tensor) -> bool:
    # torch's kernel writes into an output of any other layout, such as that of a transposed input, as if it were dense
    return input.is_contiguous() or input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)


def _is_usual(norm: nn.Module, dtype: torch.dtype) -> bool:
    return (isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm) and norm.training and norm.affine
            and norm.track_running_stats and norm.momentum is not None and norm.weight.dtype == dtype)


def normalise_parts(norms: Sequence[nn.Module], input: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Normalise each part of a batch by its norm, which updates its running statistics.

    Args:
        norms: The norm of each part, see `takes_parts`.
        input: Activations [N, C, …].
        sizes: Rows of each part; they add up to N.
    """
    for norm in norms:
        norm.num_batches_tracked.add_(1)
    affine = [value for norm in norms for value in (norm.weight, norm.bias)]
    return _BatchNormParts.apply(input, sizes, norms, *affine)[0]


class _BatchNormParts(torch.autograd.Function):
    @staticmethod
    def forward(
            input: torch.Tensor,
            sizes: Sequence[int],
            norms: Sequence[nn.Module],
            *affine: torch.Tensor,
    ) -> Tuple[torch.Tensor, ...]:
        output = torch.empty_like(input)
        means, deviations = (input.new_empty(len(norms), input.shape[1]) for _ in range(2))
        parts = zip(norms, affine[::2], affine[1::2], *(x.split(sizes) for x in (input, output)), means, deviations)
        for norm, weight, bias, part, *out in parts:
            torch.native_batch_norm(
                part, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps, out=out)
        return output, means, deviations

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[torch.Tensor, ...]) -> None:
        input, ctx.sizes, norms, *affine = inputs
        ctx.eps = [norm.eps for norm in norms]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(input, *output[1:], *affine)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: None) -> Tuple[Any, ...]:
        input, means, deviations, *affine = ctx.saved_tensors
        grads: List[Any] = []
        parts = zip(grad.split(ctx.sizes), input.split(ctx.sizes), affine[::2], means, deviations, ctx.eps)
        for i, (grad_part, part, weight, mean, deviation, eps) in enumerate(parts):
            wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3 + 2 * i:5 + 2 * i]]
            grads.append(torch.ops.aten.native_batch_norm_backward(
                grad_part, part, weight, None, None, mean, deviation, True, eps, wanted))
        of_parts, *_ = of_input = list(zip(*grads))
        grad_input = torch.cat(of_parts) if ctx.needs_input_grad[0] else None
        return grad_input, None, None, *(value for pair in zip(*of_input[1:]) for value in pair)
