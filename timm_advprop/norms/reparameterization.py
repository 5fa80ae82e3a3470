"""Keeps `timm.utils.reparameterize_model` off split norms: it folds main norms and knows nothing of the others."""
from inspect import signature
from typing import Any, NoReturn

import torch.nn as nn

from .split_norm import has_split_norm

__all__ = ['allow_reparameterization', 'refuse_reparameterization']

_METHODS = ('fuse', 'reparameterize', 'switch_to_deploy')  # which timm calls, without arguments


def refuse_reparameterization(model: nn.Module) -> None:
    """Let the methods of a model that fold norms into convolutions raise an error.

    Args:
        model: A model. Parts of it without split norms keep their methods.
    """
    for module in model.modules():
        for name in filter(lambda name: _folds(module, name), _METHODS):
            setattr(module, name, _refuse)


def allow_reparameterization(module: nn.Module) -> None:
    """Give a module, but not those in it, its own methods back."""
    for name in _METHODS:
        if vars(module).get(name) is _refuse:
            delattr(module, name)


def _folds(module: nn.Module, name: str) -> bool:
    # A method of this name that takes something is another, such as one that fuses two feature maps.
    method: Any = getattr(module, name, None) if callable(getattr(type(module), name, None)) else None
    return method is not None and not signature(method).parameters and has_split_norm(module)


def _refuse() -> NoReturn:  # a function of a module, which copies and pickles name
    raise TypeError('Reparameterising a model with split norms would drop the auxiliary ones: do it to '
                    'timm_advprop.strip_aux(model), or to timm_advprop.blend_routes(model, …).')
