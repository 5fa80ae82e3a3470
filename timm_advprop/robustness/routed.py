"""`routed`: one route of a model as a plain module of pixels, which attacks of any library take."""
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence

import torch
import torch.nn as nn
from timm.utils import unwrap_model

from ..attacks import per_channel
from ..errors import as_input_error
from ..norms import Route, has_split_norm, norm_route, one_route
from ..regimes import normalisation_of

__all__ = ['routed']


def routed(
        model: nn.Module,
        route: Route = 'main',
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        *,
        output_indices: Optional[torch.Tensor] = None,
) -> nn.Module:
    """A module of images in 0–1 that passes them through one route of a model, for attacks that know neither.

    It shares the model, and leaves it as it is: on the route it was on, after each forward, also after an exception; in
    the mode it is in (call `eval()` on either of them before an attack). While it differentiates, the model does not
    checkpoint: a backward pass would run the forward again, on another route. That is known of timm's own checkpoints
    (`set_grad_checkpointing`); a model with others must stay on the route for the whole attack, inside of `norm_route`.

    Args:
        model: Maps normalised images [N, C, H, W] to logits [N, classes], or to several outputs, logits first.
        route: `'main'` (or 0, `'clean'`), `'aux'`, or i for the i-th auxiliary norm. A plain model has `'main'` alone.
        mean: Mean of each channel that the model's images are normalised by, in 0–1. Its `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        output_indices: Logits to keep, for labels of a part of the model's classes; an attack sees these alone.

    Returns:
        A module that maps images [N, C, H, W] in 0–1 to logits [N, classes], float32 or wider.

    Raises:
        InputError: The model has no such route, or does not say how its images are normalised.
    """
    as_input_error(_check_route, model, route)
    mean, std = as_input_error(normalisation_of, unwrap_model(model), mean, std)
    return _Routed(model, route, mean, std, output_indices)


class _Routed(nn.Module):
    def __init__(
            self,
            model: nn.Module,
            route: Route,
            mean: Sequence[float],
            std: Sequence[float],
            output_indices: Optional[torch.Tensor],
    ):
        super().__init__()
        self.model, self.route, self.output_indices = model, route, output_indices
        self.mean, self.std = mean, std  # no buffers, which would stay behind where the model alone moves

    @property
    def training(self) -> bool:
        """That of the model, whoever set it: libraries restore what they read here."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        pass  # train() goes on to the model itself

    @torch.compiler.disable(recursive=False)  # routes are set on modules, which is not for a graph
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with _on_route(self.model, self.route):
            output = self.model(_normalised(images, self.mean, self.std))  # pyright: ignore[reportCallIssue]
        output = output[0] if isinstance(output, (tuple, list)) else output
        if self.output_indices is not None:
            output = output[:, self.output_indices]
        return output.to(torch.promote_types(output.dtype, torch.float32))

    def extra_repr(self) -> str:
        return f'route={self.route!r}, mean={self.mean}, std={self.std}'


@torch.compiler.disable
def _normalised(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    return (images - per_channel(mean, images)) / per_channel(std, images)


def _check_route(model: nn.Module, route: Route) -> None:
    with one_route(model, route):
        pass


@contextmanager
def _on_route(model: nn.Module, route: Route) -> Iterator[None]:
    if not has_split_norm(model):
        yield
        return
    checkpointed: List[Any] = [module for module in model.modules() if getattr(module, 'grad_checkpointing', False)]
    try:
        for module in checkpointed:
            module.grad_checkpointing = False
        with norm_route(model, route):
            yield
    finally:
        for module in checkpointed:
            module.grad_checkpointing = True
