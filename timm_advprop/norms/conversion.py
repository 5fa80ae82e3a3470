"""From plain norms to split norms and back."""
from copy import deepcopy
from typing import Any, Dict, Mapping, Optional, Tuple, Type

import torch.nn as nn
from timm.layers import convert_sync_batchnorm as convert_plain_sync_batchnorm

from .affine_norm import split_affine_norm_type
from .batch_norm import is_batch_norm, split_batch_norm_type, synchronise
from .parameters import freeze_norms
from .reparameterization import allow_reparameterization, refuse_reparameterization
from .shared_statistics import SharingNorm, check_share, share_of
from .split_norm import AuxNorms, SplitNorm, has_split_norm, num_aux_norms, split_norms

__all__ = ['convert_split_norm', 'convert_sync_batchnorm', 'strip_aux', 'unsplit_batch_norms']


def convert_split_norm(model: nn.Module, num_aux: Optional[int] = None, share: Optional[str] = None) -> nn.Module:
    """Give every batch norm of a model auxiliary norms, in place; in a model without any, every layer norm or its kin.

    Each auxiliary norm starts as a copy of the main norm, whose parameters, buffers, hooks and state-dict keys stay as
    they are: the model's output on the default route is unchanged bit for bit. Where there are batch norms, layer and
    group norms stay shared by all routes: they keep no statistics that adversarial images could disturb. Without any,
    layer, group, instance, RMS, evolved and filter-response norms that have parameters are split.

    A model that has split norms and others beside them, such as those of a new head (`reset_classifier` of some
    families makes one), is completed.

    Args:
        model: Any model with norms, or a norm.
        num_aux: Number of auxiliary norms for each norm, at least 1; by default that of split norms in the
            model, else 1.
        share: What the routes share: `'none'`, as AdvProp does; `'statistics'`, so that all images of a step are
            normalised together and update the same running statistics, and each route has its own weight and bias; or
            `'statistics-of-main'`, where the clean images alone update these. By default what split norms in the model
            share, else `'none'`. Norms without running statistics, such as layer norms, have none to share.

    Returns:
        The same model.

    Raises:
        ValueError: The model has no norms, has split norms alone, or split norms with another number of auxiliary
            ones or another `share`, or `share` is unknown; or it has norms with running statistics of a kind that
            cannot be split, norms whose forward something replaces, or layers of torch that go past their norms (they
            are named). The model is then left untouched.
    """
    present = num_aux_norms(model)
    num_aux = (present or 1) if num_aux is None else num_aux
    if num_aux < 1:
        raise ValueError(f'num_aux must be at least 1, got {num_aux}.')
    share = share_of(model) if share is None else check_share(share)
    norms = _norms_to_split(model)
    _refuse_unlike(model, norms, num_aux, share)
    _refuse_unknown(model, norms)
    for norm, split in norms.values():
        # The norm becomes another kind instead of making room for a new module: parameters, buffers, hooks, state-dict
        # keys and every reference to the module (a norm used twice, the model itself) stay what they are, and nothing
        # is copied that could be forgotten.
        norm.__class__ = split
        norm.add_aux_norms(num_aux, share)
    refuse_reparameterization(model)
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

    Whatever else changed its class in place for the training, as matched masks do, is plain again, too. Norms that
    `freeze_norms` froze train again.

    Args:
        model: A model with or without split norms. It is left as it is.

    Returns:
        The plain model.
    """
    plain = deepcopy(model)
    for norm in list(split_norms(plain)):
        if norm.frozen[0]:  # a plain norm could not keep its statistics
            freeze_norms(norm, main=False)
            norm.train(plain.training)
        del norm.aux_bn
    for module in plain.modules():
        for name in getattr(module, 'own_state', ()):
            module.__dict__.pop(name, None)
        module.__class__ = getattr(module, 'plain_type', type(module))
        allow_reparameterization(module)
    return plain


def unsplit_batch_norms(model: nn.Module) -> Dict[str, nn.Module]:
    """The batch norms of a model, by name, that are neither split nor auxiliary: all routes share their statistics."""
    return {name: module for name, module in _plain_modules(model).items() if is_batch_norm(module)}


def _plain_modules(model: nn.Module) -> Dict[str, nn.Module]:
    aux = {id(norm) for split in split_norms(model) for norm in split.aux_bn.modules()}
    return {name: module for name, module in model.named_modules()
            if id(module) not in aux and not isinstance(module, SplitNorm)}


def _norms_to_split(model: nn.Module) -> Dict[str, Tuple[Any, Optional[Type[SplitNorm]]]]:
    # By name: a norm and the kind it becomes, None for a batch norm that no split norm stands for.
    batch_norms = {name: (norm, split_batch_norm_type(norm)) for name, norm in unsplit_batch_norms(model).items()}
    if batch_norms or any(map(is_batch_norm, model.modules())):
        return batch_norms
    affine_norms = ((name, (norm, split_affine_norm_type(norm))) for name, norm in _plain_modules(model).items())
    return {name: (norm, split) for name, (norm, split) in affine_norms if split}


def _refuse_unlike(model: nn.Module, norms: Mapping[str, Any], num_aux: int, share: str) -> None:
    # Norms of a model that is split in part are all of a kind.
    present, sharing = num_aux_norms(model), [norm for norm in split_norms(model) if isinstance(norm, SharingNorm)]
    if present and not norms:
        raise ValueError('The model has split norms already.')
    if present not in (0, num_aux):
        raise ValueError(f'The model has split norms with {present} auxiliary norms each, the others cannot have '
                         f'{num_aux}.')
    if sharing and share != sharing[0].share:
        raise ValueError(f'The model has split norms of share={sharing[0].share!r}, the others cannot be of '
                         f'share={share!r}.')


def _refuse_unknown(model: nn.Module, norms: Dict[str, Tuple[nn.Module, Optional[Type[SplitNorm]]]]) -> None:
    if not norms:
        raise ValueError(f'{type(model).__name__} has no batch norms to split, nor layer norms or their kin with '
                         'parameters.')
    unknown = [f'{name or "model"} ({type(norm).__name__})' for name, (norm, split) in norms.items() if split is None]
    if unknown:
        raise ValueError(f'Cannot split these norms: {", ".join(unknown)}.')
    # whoever called it would go on with the plain norm, whatever the route
    replaced = [name or 'model' for name, (norm, _) in norms.items() if 'forward' in vars(norm)]
    if replaced:
        raise ValueError(f'Something stands in place of the forward of these norms, such as a hook of Accelerate: '
                         f'{", ".join(replaced[:3])}. Split them before it is set.')
    # In inference an encoder layer hands the weights of its main norms to one fused function. And where tokens come
    # before images, [L, N, C], a part of dimension 0 is no part of the images.
    blind = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.TransformerEncoderLayer)
             or isinstance(layer, nn.TransformerDecoderLayer) and not layer.self_attn.batch_first}
    inside = [f'{name or "model"} ({type(layer).__name__})' for name, layer in blind.items()
              if any(norm is child for norm, _ in norms.values() for child in layer.modules())]
    if inside:
        raise ValueError(f'Cannot split the norms of these layers, which go past them or take tokens for images: '
                         f'{", ".join(inside)}. Use layers that call their norms on [N, L, C], such as timm\'s Block.')


def _synchronise_plain_children(module: nn.Module, process_group: Optional[Any]) -> None:
    for name, child in module.named_children():
        if is_batch_norm(child) and not isinstance(child, SplitNorm):
            setattr(module, name, convert_plain_sync_batchnorm(child, process_group))
