"""Builds the `*_ap` models: a model of timm whose norms are split after construction, before weights are loaded."""
import dataclasses
import logging
import threading
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, Optional, Union

import timm.models._builder as timm_builder
import torch.nn as nn
from timm.models import get_arch_pretrained_cfgs, model_entrypoint, resolve_pretrained_cfg
from timm.models._pretrained import PretrainedCfg

from ..errors import InputError
from ..norms import (
    convert_split_norm,
    has_split_norm,
    index_aux_key,
    num_aux_in,
    share_in,
    share_of,
    split_state_dict,
)
from ..weights import Publication, check_kinds, refuse_misfits

__all__ = ['build_split_model', 'entry_point']

_logger = logging.getLogger(__name__)

_BUILDER_LOCK = threading.RLock()


def build_split_model(
        variant: str,
        base: str,
        pretrained: bool = False,
        num_aux: Optional[int] = None,
        share: Optional[str] = None,
        pretrained_cfg: Optional[Union[str, Dict[str, Any], PretrainedCfg]] = None,
        pretrained_cfg_overlay: Optional[Dict[str, Any]] = None,
        publication: Optional[Publication] = None,
        **kwargs: Any,
) -> nn.Module:
    """Build a timm model with split norms.

    Weights are loaded by timm itself into the split model, so plain weights and weights with auxiliary norms both
    load, for any `num_classes`, `in_chans` or `features_only`. Auxiliary norms that the weights lack start as copies
    of the main norms. A Hub repository or local folder that is not timm's own says in its `config.json` what it holds:
    classes, input, normalisation, number of auxiliary norms and what they share are taken from there. From the Hub only
    safetensors files are read.

    Args:
        variant: Registered name of the model, `*_ap`.
        base: Name of the timm architecture it is built on.
        pretrained: Load the weights that the pretrained cfg names.
        num_aux: Number of auxiliary norms for each norm that is split; by default that of the weights, else 1.
        share: What main and auxiliary norms share, see `convert_split_norm`; by default that of the weights, else
            `'none'`.
        pretrained_cfg: Tag or cfg, as for `timm.create_model`.
        pretrained_cfg_overlay: Entries that replace those of the cfg, as for `timm.create_model`.
        publication: What the cfg names, where that is open already.
        **kwargs: Arguments of the timm architecture.

    Raises:
        RuntimeError: `pretrained` is asked for and there are no AdvProp weights, or a file given for them does not fit.
        InputError: A repository or folder cannot be read, or holds another model.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)  # pyright: ignore[reportArgumentType]
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise RuntimeError(_no_weights_message(variant))
    publication = _publication_of(variant, cfg, publication, kwargs.get('cache_dir')) if pretrained else None
    if publication is not None and publication.config:
        if publication.architecture not in (base, variant):
            raise InputError(f'{publication.name} holds {publication.architecture}, not {base}, the base of {variant}.')
        cfg = resolve_pretrained_cfg(variant, publication.pretrained_cfg, pretrained_cfg_overlay)
        kwargs = {**publication.model_args, **kwargs}
        num_aux = publication.num_aux or 1 if num_aux is None else num_aux
        share = publication.share if share is None else share
    num_aux = 1 if num_aux is None else num_aux
    cfg = dataclasses.replace(cfg, architecture=variant)
    with _timm_loads_with(_SplitAndLoad(num_aux, share, cfg, publication, kwargs.get('features_only', False))):
        model = model_entrypoint(base)(pretrained=pretrained, pretrained_cfg=cfg, **kwargs)
    return model if has_split_norm(model) else convert_split_norm(model, num_aux, share)


def entry_point(module_name: str, variant: str, base: str) -> Callable[..., nn.Module]:
    """The function that timm's registry calls to create a split model.

    Args:
        module_name: Full name of the module that it is an attribute of.
        variant: Its name.
        base: Name of the timm architecture.
    """
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_split_model(variant, base, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = variant
    create.__module__ = module_name
    create.__doc__ = f'timm\'s `{base}` with split norms; takes its arguments, `num_aux` and `share`.'
    return create


def _no_weights_message(variant: str) -> str:
    plain = next((name for name, cfg in get_arch_pretrained_cfgs(variant).items() if cfg.has_weights), None)
    hint = f" from timm's plain weights with timm.create_model('{plain}', pretrained=True)," if plain else ''
    return (f"No AdvProp weights are published for '{variant}'. Start from scratch with pretrained=False,{hint} or "
            f"from a file with pretrained_cfg_overlay=dict(file='model.safetensors') (on the command line, "
            f"--pretrained-path).")


def _publication_of(
        variant: str,
        cfg: PretrainedCfg,
        known: Optional[Publication],
        cache_dir: Optional[str],
) -> Optional[Publication]:
    # None for weights that are not in a repository or a folder. An overlay may have named others than those known.
    if known is not None and all(getattr(cfg, name) == value for name, value in known.origin.items()):
        return known
    if cfg.source == 'local-dir':
        return Publication.in_folder(cfg.file)  # pyright: ignore[reportArgumentType]
    if cfg.state_dict or cfg.file or not cfg.hf_hub_id:
        return None
    # timm's own repositories have no auxiliary norms, and their cfgs are in the registry: only the weights are read
    if any(own.hf_hub_id == cfg.hf_hub_id for own in get_arch_pretrained_cfgs(variant).values()):
        return Publication.of_weights(cfg.hf_hub_id, cache_dir)
    return Publication.on_hub(cfg.hf_hub_id, cache_dir)


@contextmanager
def _timm_loads_with(split_and_load: Callable[..., None]) -> Iterator[None]:
    # timm builds a model, loads its weights and wraps it for features_only in one call. Norms must be split between the
    # first two. Before, there is no model. Afterwards it is too late: the wrapper has renamed and dropped modules, so
    # that keys of auxiliary norms no longer fit; and where the number of classes changes timm loads laxly, so that only
    # a check while it loads, behind the family's own filter of keys, sees a file of another model. Between the two timm
    # calls one function, which is replaced for this thread while this model is built.
    thread = threading.get_ident()

    def load(model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == thread:
            split_and_load(load_pretrained, model, *args, **kwargs)
        else:
            load_pretrained(model, *args, **kwargs)

    with _BUILDER_LOCK:
        load_pretrained = timm_builder.load_pretrained
        timm_builder.load_pretrained = load
        try:
            yield
        finally:
            timm_builder.load_pretrained = load_pretrained


@dataclasses.dataclass(frozen=True)
class _SplitAndLoad:
    # What happens in place of timm's load_pretrained.
    num_aux: int
    share: Optional[str]
    cfg: PretrainedCfg
    publication: Optional[Publication]
    features_only: bool

    def __call__(
            self,
            load_pretrained: Callable[..., None],
            model: nn.Module,
            pretrained_cfg: Dict[str, Any],
            filter_fn: Optional[Callable[..., Dict[str, Any]]] = None,
            **kwargs: Any,
    ) -> None:
        if self.publication is None and _is_npz(self.cfg):
            # copied in, past the state dict: auxiliary norms are made of these norms afterwards
            return load_pretrained(model, pretrained_cfg, filter_fn=filter_fn, **kwargs)
        convert_split_norm(model, self.num_aux, self.share)
        checked = bool(self.cfg.file or self.cfg.state_dict)  # timm's own weights fit
        if self.publication is not None:
            checked = bool(self.publication.config)
            weights = _published_weights(self.publication, model, self.features_only)
            pretrained_cfg = dict(pretrained_cfg, source=None, custom_load=False, state_dict=weights)
        check = refuse_misfits(model, self.cfg, kwargs['in_chans']) if checked and not self.features_only else None
        load_pretrained(model, pretrained_cfg, filter_fn=filter_fn and partial(_filter_plain, filter_fn), **kwargs)
        if check:
            check.remove()


def _is_npz(cfg: PretrainedCfg) -> bool:
    location = cfg.file or ('' if cfg.hf_hub_id else cfg.url)
    return not cfg.state_dict and str(location).endswith(('.npz', '.npy'))


def _published_weights(publication: Publication, model: nn.Module, features_only: bool) -> Dict[str, Any]:
    state_dict = publication.load_state_dict()
    num_aux, aux = num_aux_in(state_dict), split_state_dict(state_dict)[1]
    expected = {key for key in split_state_dict(model.state_dict())[1] if num_aux_in([key]) <= num_aux}
    if share_in(state_dict) != 'none':  # its norms have no statistics, those of a model that shares nothing get copies
        expected &= dict(model.named_parameters()).keys()
    elif aux and share_of(model) != 'none':
        raise InputError(f'The auxiliary norms of {publication.name} have statistics of their own: create the model '
                         'with share=\'none\' (--adv-share none).')
    # norms that are missing would start as copies without a word; a model of features may do without the last ones
    misfits = expected - aux.keys() if features_only else expected ^ aux.keys()
    if aux and misfits:
        raise InputError(f'The auxiliary norms of {publication.name} do not fit {publication.architecture}, such as '
                         f'{min(misfits)}.')
    check_kinds(state_dict, model.state_dict(), publication.name)
    if publication.config and not num_aux:
        _logger.warning(f'{publication.name} has no auxiliary norms: they start as copies of the main norms.')
    return state_dict


def _filter_plain(filter_fn: Callable[..., Dict[str, Any]], state_dict: Dict[str, Any], *model: nn.Module) -> Any:
    # A family's filter brings the keys of old weights up to date. It knows nothing of auxiliary norms: timm's for
    # GhostNet renames whatever contains `bn.`.
    plain, aux = split_state_dict({index_aux_key(key): value for key, value in state_dict.items()})
    return {**filter_fn(plain, *model), **aux}
