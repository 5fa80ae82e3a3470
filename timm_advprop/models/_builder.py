"""Builds and registers every `*_ap` model: a timm model whose batch norms are split after construction."""
import dataclasses
import logging
import sys
import threading
from collections import deque
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Union

import timm.models._builder as timm_builder
import torch.nn as nn
from timm.models import (
    get_arch_pretrained_cfgs,
    get_pretrained_cfg,
    list_models,
    list_modules,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._pretrained import DefaultCfg, PretrainedCfg
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from ..norms import convert_split_norm, has_split_norm, index_aux_key, num_aux_in, split_state_dict
from ..publication import Publication

__all__ = ['base_of', 'build_split_model', 'left_out_models', 'register_split_models', 'split_models']

_logger = logging.getLogger(__name__)

Filter = Callable[..., Dict[str, Any]]


def build_split_model(
        variant: str,
        base: str,
        pretrained: bool = False,
        num_aux: Optional[int] = None,
        pretrained_cfg: Optional[Union[str, Dict[str, Any], PretrainedCfg]] = None,
        pretrained_cfg_overlay: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
) -> nn.Module:
    """Build a timm model with split norms.

    Weights are loaded by timm itself into the split model, so plain weights and weights with auxiliary norms both
    load, for any `num_classes`, `in_chans` or `features_only`. Auxiliary norms that the weights lack start as copies
    of the main norms. A Hub repository or local folder that is not timm's own says in its `config.json` what it holds:
    classes, input, normalisation and number of auxiliary norms are taken from there. From the Hub only safetensors
    files are read.

    Args:
        variant: Registered name of the model, `*_ap`.
        base: Name of the timm architecture it is built on.
        pretrained: Load the weights that the pretrained cfg names.
        num_aux: Number of auxiliary norms for each norm that is split; by default that of the weights, else 1.
        pretrained_cfg: Tag or cfg, as for `timm.create_model`.
        pretrained_cfg_overlay: Entries that replace those of the cfg, as for `timm.create_model`.
        **kwargs: Arguments of the timm architecture.

    Raises:
        RuntimeError: `pretrained` is asked for and there are no AdvProp weights, or a file given for them does not fit.
        InputError: A repository or folder cannot be read, or holds another model.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise RuntimeError(_no_weights_message(variant, base))
    publication = _find_publication(variant, cfg, kwargs.get('cache_dir')) if pretrained else None
    if publication is not None and publication.config:
        _check_architecture(publication, variant, base)
        cfg = resolve_pretrained_cfg(variant, publication.pretrained_cfg, pretrained_cfg_overlay)
        kwargs = {**publication.model_args, **kwargs}
        num_aux = publication.num_aux or 1 if num_aux is None else num_aux
    num_aux = 1 if num_aux is None else num_aux
    cfg = dataclasses.replace(cfg, architecture=variant)
    with _splitting_before_weights_load(num_aux, cfg, publication, kwargs.get('features_only', False)):
        model = model_entrypoint(base)(pretrained=pretrained, pretrained_cfg=cfg, **kwargs)
    return model if has_split_norm(model) else convert_split_norm(model, num_aux)


def register_split_models(
        module_name: str,
        names: Union[str, Sequence[str]] = '*',
        renamed: Optional[Mapping[str, str]] = None,
        left_out: Optional[Mapping[str, str]] = None,
) -> None:
    """Register the `*_ap` models of a family file: those of timm's file of the same name.

    The table is timm's registry, so that a model of a newer timm has its variant without a new release of this package,
    and one that an older timm lacks is not there. The weights are timm's, too: AdvProp weights keep their tag and are
    the default, any others have the tag `plain_<tag of timm>` and are never loaded unasked.

    Args:
        module_name: `__name__` of the family file.
        names: Wildcards of the timm architectures that are registered.
        renamed: For a timm architecture whose variant is not called `<architecture>_ap`, the variant.
        left_out: For wildcards of architectures that are not registered, the reason.
    """
    module = sys.modules[module_name]
    family = module_name.rpartition('.')[2]
    renamed, left_out = renamed or {}, left_out or {}
    _LEFT_OUT[family] = left_out
    module.default_cfgs = {}
    for base in list_models(names, module=family, exclude_filters=list(left_out)):
        if model_entrypoint(base).__module__ != f'timm.models.{family}':
            continue
        variant = renamed.get(base, f'{base}_ap')
        module.default_cfgs[variant] = _default_cfg(base)
        setattr(module, variant, register_model(_entry_point(module_name, variant, base)))
        _BASES[variant] = base


def split_models() -> Dict[str, str]:
    """The zoo: for each registered `*_ap` model, the timm architecture it is built on."""
    return dict(_BASES)


def base_of(name: str) -> str:
    """The timm architecture that a registered `*_ap` model is built on. Any other name is returned as it is."""
    return _BASES.get(name, name)


def left_out_models() -> Dict[str, str]:
    """For each architecture of timm that has no `*_ap` model, the reason."""
    taken = {*_BASES, *_BASES.values()}
    return {
        name: next((reason for pattern, reason in _LEFT_OUT.get(family, {}).items() if fnmatch(name, pattern)),
                   'no batch norms; convert_split_norm(model) splits layer norms and their kin')
        for family in list_modules() for name in list_models(module=family)
        if name not in taken and model_entrypoint(name).__module__ == f'timm.models.{family}'
    }


def _no_weights_message(variant: str, base: str) -> str:
    plain = ''
    default = get_pretrained_cfg(base)
    if default.has_weights:
        plain = (f" from timm's plain weights with timm.create_model('{variant}.{_plain_tag(default.tag)}', "
                 f"pretrained=True),")
    return (f"No AdvProp weights are published for '{variant}'. Start from scratch with pretrained=False,{plain} or "
            f"from a file with pretrained_cfg_overlay=dict(file='model.safetensors') (on the command line, "
            f"--pretrained-path).")


def _default_cfg(base: str) -> DefaultCfg:
    sources = [cfg for cfg in get_arch_pretrained_cfgs(base).values() if cfg.has_weights]
    advprop = {cfg.tag: cfg for cfg in sources if cfg.tag == _ADVPROP_TAG}
    plain = {_plain_tag(cfg.tag): cfg for cfg in sources if cfg.tag != _ADVPROP_TAG}
    cfgs = {**(advprop or {'': _untrained_cfg(base)}), **plain}
    return DefaultCfg(tags=deque(cfgs), cfgs=cfgs, is_pretrained=bool(advprop))


def _plain_tag(tag: Optional[str]) -> str:
    return f'plain_{tag}' if tag else 'plain'


def _untrained_cfg(base: str) -> PretrainedCfg:
    return dataclasses.replace(get_pretrained_cfg(base), url='', file=None, hf_hub_id=None, tag=None, custom_load=False)


def _entry_point(module_name: str, variant: str, base: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_split_model(variant, base, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = variant
    create.__module__ = module_name
    create.__doc__ = f'timm\'s `{base}` with split norms; takes its arguments, and `num_aux`.'
    return create


def _find_publication(variant: str, cfg: PretrainedCfg, cache_dir: Optional[str]) -> Optional[Publication]:
    # None for weights that are not in a repository or a folder. timm's own repositories have no auxiliary norms, and
    # their cfgs are in the registry: only the weights are read.
    if cfg.source == 'local-dir':
        return Publication.in_folder(cfg.file)
    if cfg.state_dict or cfg.file or not cfg.hf_hub_id:
        return None
    if any(known.hf_hub_id == cfg.hf_hub_id for known in get_arch_pretrained_cfgs(variant).values()):
        return Publication.of_weights(cfg.hf_hub_id, cache_dir)
    return Publication.on_hub(cfg.hf_hub_id, cache_dir)


def _check_architecture(publication: Publication, variant: str, base: str) -> None:
    if publication.architecture not in (base, variant):
        raise InputError(f'{publication.name} holds {publication.architecture}, not {base}, the base of {variant}.')


def _published_weights(publication: Publication, model: nn.Module) -> Dict[str, Any]:
    # Entries of a pretrained cfg that make timm load what was read here.
    state_dict = publication.load_state_dict()
    num_aux, aux = num_aux_in(state_dict), split_state_dict(state_dict)[1]
    expected = split_state_dict(model.state_dict())[1]
    misfits = {key for key in expected if num_aux_in([key]) <= num_aux} ^ aux.keys()
    if aux and misfits:  # norms that are missing would start as copies without a word
        raise InputError(f'The auxiliary norms of {publication.name} do not fit {publication.architecture}, such as '
                         f'{min(misfits)}.')
    if publication.config and not num_aux:
        _logger.warning(f'{publication.name} has no auxiliary norms: they start as copies of the main norms.')
    return dict(source=None, custom_load=False, state_dict=state_dict)


@contextmanager
def _splitting_before_weights_load(
        num_aux: int,
        cfg: PretrainedCfg,
        publication: Optional[Publication],
        features_only: bool,
) -> Iterator[None]:
    # timm builds, loads and (for features_only) re-wraps a model in one call. The norms must be split between the first
    # two, or weights with auxiliary norms would not load; the call to load_pretrained is where that can be done.
    thread = threading.get_ident()

    def split_and_load(
            model: nn.Module,
            pretrained_cfg: Dict[str, Any],
            *args: Any,
            filter_fn: Optional[Filter] = None,
            **kwargs: Any,
    ) -> None:
        if threading.get_ident() != thread or _is_npz(cfg):  # such files are copied in, past the state dict
            return load_pretrained(model, pretrained_cfg, *args, filter_fn=filter_fn, **kwargs)
        convert_split_norm(model, num_aux)
        checked = bool(cfg.file or cfg.state_dict)
        if publication is not None:
            pretrained_cfg = {**pretrained_cfg, **_published_weights(publication, model)}
            checked = bool(publication.config)
        handle = None
        if checked and not features_only:
            handle = _refuse_misfits_on_load(model, cfg, kwargs['in_chans'])
        load_pretrained(model, pretrained_cfg, *args, filter_fn=filter_fn and _sparing_aux(filter_fn), **kwargs)
        if handle:
            handle.remove()

    with _BUILDER_LOCK:
        load_pretrained = timm_builder.load_pretrained
        timm_builder.load_pretrained = split_and_load
        try:
            yield
        finally:
            timm_builder.load_pretrained = load_pretrained


def _sparing_aux(filter_fn: Filter) -> Filter:
    # A family's filter brings the keys of old weights up to date. It knows nothing of auxiliary norms: timm's for
    # GhostNet renames whatever contains `bn.`.
    def filter_plain(state_dict: Dict[str, Any], *model: nn.Module) -> Dict[str, Any]:
        plain, aux = split_state_dict({index_aux_key(key): value for key, value in state_dict.items()})
        return {**filter_fn(plain, *model), **aux}

    return filter_plain


def _is_npz(cfg: PretrainedCfg) -> bool:
    location = cfg.file or ('' if cfg.hf_hub_id else cfg.url)
    return not cfg.state_dict and str(location).endswith(('.npz', '.npy'))


def _layer_names(names: Union[None, str, Sequence[str]]) -> Tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _refuse_misfits_on_load(model: nn.Module, cfg: PretrainedCfg, in_chans: int) -> RemovableHandle:
    adapted = _layer_names(cfg.classifier)
    if in_chans != cfg.input_size[0]:
        adapted += _layer_names(cfg.first_conv)
    return model.register_load_state_dict_post_hook(partial(_refuse_misfits, cfg.architecture, adapted))


def _refuse_misfits(architecture: str, adapted: Sequence[str], model: nn.Module, incompatible: Any) -> None:
    # Where the number of classes changes, timm loads a file of the user without complaint, whatever is in it. Only the
    # layers that it adapts may be missing.
    adapted = tuple(f'{name}.' for name in adapted)
    misfits = []
    unexpected = split_state_dict(dict.fromkeys(incompatible.unexpected_keys))[0]  # surplus norms name themselves
    for kind, keys in (('Missing', incompatible.missing_keys), ('Unexpected', unexpected)):
        keys = [key for key in keys if not key.startswith(adapted)]
        if keys:
            misfits.append(f'{kind} keys: {", ".join(keys[:_NAMES_SHOWN])} ({len(keys)} in all)')
    if misfits:
        raise RuntimeError(f'The weights do not fit {architecture}. {". ".join(misfits)}.')


_NAMES_SHOWN = 4
_ADVPROP_TAG = 'ap_in1k'
_BASES: Dict[str, str] = {}
_LEFT_OUT: Dict[str, Mapping[str, str]] = {}
_BUILDER_LOCK = threading.RLock()
