"""Blended routes: one plain model between the routes of a split one (Rebuffi et al., ICLR 2023)."""
from itertools import chain
from math import isclose, isfinite
from numbers import Real
from typing import Any, Dict, Sequence, Tuple, Union

import torch
import torch.nn as nn

from .conversion import strip_aux
from .split_norm import SplitNorm, num_aux_norms

__all__ = ['blend_routes']


def blend_routes(model: nn.Module, weights: Union[float, Sequence[float]]) -> nn.Module:
    """Copy a model with split norms as a plain one whose norms are a weighted mix of main and auxiliary norms.

    Parameters and running statistics are mixed linearly, as Rebuffi et al. (*Revisiting adapters with adversarial
    training*, ICLR 2023, arXiv:2210.04886) interpolate between the adapters of clean and of adversarial images. A
    weight of 1 gives that norm bit for bit: with 0 the result is `strip_aux(model)`. Where an auxiliary norm has no
    tensor of its own, it takes part with the main norm's. Numbers of batches are never mixed.

    Args:
        model: A model with split norms. It is left as it is.
        weights: Share of the first auxiliary norm, in 0–1, the rest is the main norm's; or one share for each norm,
            main norm first, in 0–1 and 1 in sum.

    Returns:
        The plain model, which stock timm loads strictly.

    Raises:
        ValueError: The model has no split norms, or the weights are none.
    """
    num_aux = num_aux_norms(model)
    if not num_aux:
        raise ValueError(f'{type(model).__name__} has no split norms to blend: create a *_ap model, or load a '
                         'checkpoint with auxiliary norms.')
    weights = _resolve_weights(weights, 1 + num_aux)
    plain = strip_aux(model)
    for name, norm in model.named_modules():
        if isinstance(norm, SplitNorm):
            _write_blend(plain.get_submodule(name), norm, weights)
    return plain


def _resolve_weights(weights: Any, num_norms: int) -> Tuple[float, ...]:
    if isinstance(weights, Real):
        weights = (1 - weights, weights, *[0.] * (num_norms - 2))
    weights = tuple(map(float, weights))
    if not all(isfinite(weight) and 0 <= weight <= 1 for weight in weights):
        raise ValueError(f'Weights of a blend must be from 0 to 1, got {list(weights)}: beyond its routes a model was '
                         'never trained.')
    if len(weights) != num_norms:
        raise ValueError(f'A blend needs {num_norms} weights, one for each norm, main norm first; got {list(weights)}.')
    if not isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError(f'Weights of a blend must be 1 in sum, got {list(weights)}.')
    return weights


@torch.no_grad()
def _write_blend(plain: nn.Module, norm: SplitNorm, weights: Sequence[float]) -> None:
    sources = [_tensors(aux) for aux in norm.aux_bn]
    for name, main in _tensors(plain).items():  # those of the main norm, until they are written
        main.copy_(_mix(main, [source.get(name, main) for source in sources], weights))


def _tensors(norm: nn.Module) -> Dict[str, torch.Tensor]:
    return dict(chain(norm.named_parameters(), norm.named_buffers()))


def _mix(main: torch.Tensor, aux: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    if 1. in weights:
        return (main, *aux)[weights.index(1.)]
    if not main.is_floating_point():
        return main
    # Differences to the main norm: where there is none, the mix is the main norm itself, whatever the weights. A sum
    # of weighted norms would round.
    wide = main.to(torch.promote_types(main.dtype, torch.float32))
    mixed = wide.clone()
    for weight, value in zip(weights[1:], aux):
        mixed += weight * (value.to(wide.dtype) - wide)
    return mixed.to(main.dtype)
