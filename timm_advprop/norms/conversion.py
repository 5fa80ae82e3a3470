"""From plain norms to split norms and back."""
from copy import deepcopy
from typing import Any, Dict, Optional, Tuple, Type

import torch.nn as nn
from timm.layers import convert_sync_batchnorm as convert_plain_sync_batchnorm

from .affine_norm import split_affine_norm_type
from .batch_norm import is_batch_norm, split_batch_norm_type, synchronise
from .split_norm import AuxNorms, SplitNorm, has_split_norm, split_norms

__all__ = ['convert_split_norm', 'convert_sync_batchnorm', 'strip_aux']


def convert_split_norm(model: nn.Module, num_aux: int = 1) -> nn.Module:
    """Give every batch norm of a model auxiliary norms, in place; in a model without any, every layer norm or its kin.

    Each auxiliary norm starts as a copy of the main norm, whose parameters, buffers, hooks and state-dict keys stay as
    they are: the model's output on the default route is unchanged bit for bit. Where there are batch norms, layer and
    group norms stay shared by all routes: they keep no statistics that adversarial images could disturb. Without any,
    layer, group, instance, RMS, evolved and filter-response norms that have parameters are split.

    Args:
        model: Any model with norms, or a norm.
        num_aux: Number of auxiliary norms for each norm, at least 1.

    Returns:
        The same model.

    Raises:
        ValueError: The model has no norms, has split norms already, or has norms with running statistics of a kind
            that cannot be split (they are named). The model is then left untouched.
    """
    if num_aux < 1:
        raise ValueError(f'num_aux must be at least 1, got {num_aux}.')
    if has_split_norm(model):
        raise ValueError('The model has split norms already.')
    norms = _norms_to_split(model)
    unknown = [f'{name or "model"} ({type(norm).__name__})' for name, (norm, split) in norms.items() if split is None]
    if unknown:
        raise ValueError(f'Cannot split these norms: {", ".join(unknown)}.')
    if not norms:
        raise ValueError(f'{type(model).__name__} has no batch norms to split, nor layer norms or their kin with '
                         'parameters.')
    for norm, split in norms.values():
        # The norm becomes another kind instead of making room for a new module: parameters, buffers, hooks, state-dict
        # keys and every reference to the module (a norm used twice, the model itself) stay what they are, and nothing
        # is copied that could be forgotten.
        norm.__class__ = split
        norm.add_aux_norms(num_aux)
    return model


def convert_sync_batchnorm(model: nn.Module, process_group: Optional[Any] = None) -> nn.Module:
    """Synchronise the batch norms of a model over processes, split norms included.

    Takes the place of torch's and timm's functions of this name, which refuse split norms.

    Args:
        model: A model with split or plain batch norms.
        process_group: Processes to synchronise over, all by default.

    Returns:
        The model; split norms are converted in place, plain ones as timm does.
    """
    if not has_split_norm(model):
        return convert_plain_sync_batchnorm(model, process_group)
    for module in list(model.modules()):
        if isinstance(module, SplitNorm):
            synchronise(module, process_group)
        elif not isinstance(module, AuxNorms):
            _synchronise_plain_children(module, process_group)
    return model


def strip_aux(model: nn.Module) -> nn.Module:
    """Copy a model without its auxiliary norms: plain norms again, the model that stock timm knows.

    Args:
        model: A model with or without split norms. It is left as it is.

    Returns:
        The plain model.
    """
    plain = deepcopy(model)
    for norm in list(split_norms(plain)):
        del norm.aux_bn
        norm.__dict__.pop('route', None)
        norm.__dict__.pop('split_sizes', None)
        norm.__class__ = norm.plain_type
    return plain


def _norms_to_split(model: nn.Module) -> Dict[str, Tuple[nn.Module, Optional[Type[SplitNorm]]]]:
    # By name: a norm and the kind it becomes, None for a batch norm that no split norm stands for.
    modules = dict(model.named_modules())
    batch_norms = {name: (norm, split_batch_norm_type(norm)) for name, norm in modules.items() if is_batch_norm(norm)}
    affine_norms = ((name, (norm, split_affine_norm_type(norm))) for name, norm in modules.items())
    return batch_norms or {name: (norm, split) for name, (norm, split) in affine_norms if split}


def _synchronise_plain_children(module: nn.Module, process_group: Optional[Any]) -> None:
    for name, child in module.named_children():
        if is_batch_norm(child) and not isinstance(child, SplitNorm):
            setattr(module, name, convert_plain_sync_batchnorm(child, process_group))
