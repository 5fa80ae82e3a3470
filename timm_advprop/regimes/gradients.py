"""A loss whose backward pass rescales some gradients and adds others that are known already."""
from typing import Any, Callable, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch.autograd.graph import get_gradient_edge

__all__ = ['add_gradients', 'scale_gradients']


def scale_gradients(loss: torch.Tensor, factors: Mapping[nn.Parameter, float]) -> None:
    """Let the backward passes of a loss find the gradients of some parameters times a factor.

    Hooks on parameters would see the gradients of other losses, too. These hooks are on the nodes of the loss's own
    graph that lead to a parameter, and go with it.

    Args:
        loss: The loss. Reentrant checkpointing would hide a part of its graph.
        factors: Factor of the gradients of each parameter; those that require none are passed over.
    """
    leaves = {get_gradient_edge(parameter).node: factor for parameter, factor in factors.items()
              if parameter.requires_grad}
    root: Any = loss.grad_fn
    nodes, seen = [root], {root}
    while nodes:
        node = nodes.pop()
        following = [edge for edge, _ in node.next_functions]
        found = {i: leaves[edge] for i, edge in enumerate(following) if edge in leaves}
        if found:
            node.register_hook(_scaling(found))
        new = {edge for edge in following if edge is not None} - seen
        seen |= new
        nodes.extend(new)


def add_gradients(
        loss: torch.Tensor,
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Optional[torch.Tensor]],
        weights: Sequence[float],
) -> torch.Tensor:
    """A loss whose backward pass adds gradients that are known already to those of parameters.

    Args:
        loss: The loss.
        parameters: Parameters that require gradients.
        gradients: A gradient for each parameter, or None. They are kept until the backward pass.
        weights: Factor of each gradient.
    """
    return _AddGradients.apply(loss, weights, *gradients, *parameters)


class _AddGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, weights, *tensors):
        ctx.weights = weights
        ctx.save_for_backward(*tensors[:len(weights)])
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        known = [None if value is None else value * (grad * weight)
                 for value, weight in zip(ctx.saved_tensors, ctx.weights)]
        return grad, None, *(None for _ in known), *known


def _scaling(factors: Mapping[int, float]) -> Callable[..., Tuple[Optional[torch.Tensor], ...]]:
    def scale(gradients, _):
        return tuple(value * factors[i] if i in factors and value is not None else value
                     for i, value in enumerate(gradients))
    return scale
