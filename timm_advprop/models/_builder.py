"""Builds and registers every `*_ap` model: a timm model whose batch norms are split after construction."""
import dataclasses
import sys
import threading
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Union

import timm.models._builder as timm_builder
import torch.nn as nn
from timm.models import (
    generate_default_cfgs,
    get_pretrained_cfg,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._pretrained import PretrainedCfg

from ..norms import convert_split_norm, has_split_norm

__all__ = ['build_split_model', 'register_split_models']


def build_split_model(
        variant: str,
        base: str,
        pretrained: bool = False,
        num_aux: int = 1,
        pretrained_cfg: Optional[Union[str, Dict[str, Any], PretrainedCfg]] = None,
        pretrained_cfg_overlay: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
) -> nn.Module:
    """Build a timm model with split norms.

    Weights are loaded by timm itself into the split model, so plain weights and weights with auxiliary norms both
    load, for any `num_classes`, `in_chans` or `features_only`. Auxiliary norms that the weights lack start as copies
    of the main norms.

    Args:
        variant: Registered name of the model, `*_ap`.
        base: Name of the timm architecture it is built on.
        pretrained: Load the weights that the pretrained cfg names.
        num_aux: Number of auxiliary norms for each batch norm.
        pretrained_cfg: Tag or cfg, as for `timm.create_model`.
        pretrained_cfg_overlay: Entries that replace those of the cfg, as for `timm.create_model`.
        **kwargs: Arguments of the timm architecture.

    Raises:
        RuntimeError: `pretrained` is asked for and there are no AdvProp weights.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    cfg = dataclasses.replace(cfg, architecture=variant)
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise RuntimeError(_no_weights_message(variant, base))
    with _splitting_before_weights_load(num_aux):
        model = model_entrypoint(base)(pretrained=pretrained, pretrained_cfg=cfg, **kwargs)
    return model if has_split_norm(model) else convert_split_norm(model, num_aux)


def register_split_models(module_name: str, bases: Mapping[str, str], weights: Mapping[str, str]) -> None:
    """Register the `*_ap` models of a family file.

    Args:
        module_name: `__name__` of the family file, whose last part is the timm file the models belong to.
        bases: For each variant, the timm architecture it is built on.
        weights: For a variant with published AdvProp weights, the `architecture.tag` in timm that names them.
    """
    module = sys.modules[module_name]
    module.default_cfgs = generate_default_cfgs(dict(
        _published_cfg(variant, weights[variant]) if variant in weights else (variant, _untrained_cfg(base))
        for variant, base in bases.items()
    ))
    for variant, base in bases.items():
        setattr(module, variant, register_model(_entry_point(module_name, variant, base)))


def _no_weights_message(variant: str, base: str) -> str:
    plain = ''
    if get_pretrained_cfg(base).has_weights:
        plain = (f" from timm's plain weights with timm.create_model('{variant}', pretrained=True, "
                 f"pretrained_cfg=timm.get_pretrained_cfg('{base}')),")
    return (f"No AdvProp weights are published for '{variant}'. Start from scratch with pretrained=False,{plain} or "
            f"from a file with pretrained_cfg_overlay=dict(file='model.safetensors') (on the command line, "
            f"--pretrained-path).")


def _published_cfg(variant: str, source: str):
    return f'{variant}.{source.split(".", 1)[1]}', get_pretrained_cfg(source)


def _untrained_cfg(base: str) -> PretrainedCfg:
    return dataclasses.replace(get_pretrained_cfg(base), url='', file=None, hf_hub_id=None, tag=None)


def _entry_point(module_name: str, variant: str, base: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_split_model(variant, base, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = variant
    create.__module__ = module_name
    create.__doc__ = f'timm\'s `{base}` with split batch norms; takes its arguments, and `num_aux`.'
    return create


@contextmanager
def _splitting_before_weights_load(num_aux: int) -> Iterator[None]:
    # timm builds, loads and (for features_only) re-wraps a model in one call. The norms must be split between the first
    # two, or weights with auxiliary norms would not load; the call to load_pretrained is where that can be done.
    thread = threading.get_ident()

    def split_and_load(model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == thread:
            convert_split_norm(model, num_aux)
        load_pretrained(model, *args, **kwargs)

    with _BUILDER_LOCK:
        load_pretrained = timm_builder.load_pretrained
        timm_builder.load_pretrained = split_and_load
        try:
            yield
        finally:
            timm_builder.load_pretrained = load_pretrained


_BUILDER_LOCK = threading.RLock()
