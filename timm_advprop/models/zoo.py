"""The zoo: which of timm's models have a `*_ap` variant. A family is a row of one table.

timm's registry is the source of what a family holds, so that a model of a newer timm has its variant without a new
release of this package, and one that an older timm lacks is not there. The weights are timm's, too: AdvProp weights
keep their tag and are the default, any others have the tag `plain_<tag of timm>` and are never loaded unasked.
"""
import dataclasses
import sys
from collections import deque
from fnmatch import fnmatch
from types import ModuleType
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Union

from timm.models import (
    get_arch_pretrained_cfgs,
    get_pretrained_cfg,
    list_models,
    list_modules,
    model_entrypoint,
    register_model,
)
from timm.models._pretrained import DefaultCfg, PretrainedCfg

from .builder import entry_point

__all__ = ['FAMILIES', 'base_of', 'left_out_models', 'split_models', 'variant_of']


class Family(NamedTuple):
    """What is special about a family of timm, the models of one file.

    `names` are wildcards of the architectures that have a variant. `renamed` has, for an architecture whose variant is
    not called `<architecture>_ap`, the variant; `left_out` for wildcards of architectures without one, the reason.
    """
    names: Union[str, Sequence[str]] = '*'
    renamed: Mapping[str, str] = {}
    left_out: Mapping[str, str] = {}


FAMILIES: Dict[str, Family] = {
    **dict.fromkeys('''
        byoanet byobnet convmixer convnext cpubone cspnet cspnext deit densenet dla dpn efficientformer
        efficientformer_v2 efficientvim efficientvit_mit efficientvit_msra fasternet fastvit ghostnet hardcorenas hgnet
        hrnet iformer inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 levit lowformer maxxvit
        mobilenetv3 mobilevit nasnet nextvit pnasnet regnet repghost repvit res2net resnest resnet resnetv2 rexnet
        selecsls senet shvit sknet starnet swiftformer swin_transformer tiny_vit tresnet visformer
        vision_transformer_hybrid volo vovnet xception xception_aligned xcit
    '''.split(), Family()),
    # The published AdvProp weights are of TensorFlow's EfficientNets (its padding, batch-norm epsilon 1e-3, inputs
    # normalised by 0.5): these get the short names. timm itself has taken tf_efficientnet_b*_ap, for plain models.
    'efficientnet': Family(
        renamed={f'tf_efficientnet_b{i}': f'efficientnet_b{i}_ap' for i in range(9)},
        left_out={
            'efficientnet_b[0-8]': 'its name belongs to the architecture of the AdvProp weights, tf_efficientnet_b*'},
    ),
    'vgg': Family(left_out={'vgg??': 'no norms; vgg??_bn has batch norms'}),
    # of timm's largest family, those people train: 16-pixel patches, tiny to base
    'vision_transformer': Family(
        names=('vit_tiny_patch16_*', 'vit_small_patch16_*', 'vit_base_patch16_*', 'test_vit*')),
}

_ADVPROP_TAG = 'ap_in1k'
_BASES: Dict[str, str] = {}


def split_models() -> Dict[str, str]:
    """The zoo: for each registered `*_ap` model, the timm architecture it is built on."""
    return dict(_BASES)


def base_of(name: str) -> str:
    """The timm architecture that a registered `*_ap` model is built on. Any other name is returned as it is."""
    return _BASES.get(name, name)


def variant_of(base: str) -> Optional[str]:
    """The `*_ap` model that is built on a timm architecture, None where there is none."""
    return next((variant for variant, other in _BASES.items() if other == base), None)


def left_out_models() -> Dict[str, str]:
    """For each architecture of timm that has no `*_ap` model, the reason."""
    taken = {*_BASES, *_BASES.values()}
    return {
        name: _why_left_out(name, FAMILIES.get(family, Family()))
        for family in list_modules() for name in _models_of_timm(family) if name not in taken
    }


def _why_left_out(name: str, family: Family) -> str:
    reasons = (reason for pattern, reason in family.left_out.items() if fnmatch(name, pattern))
    return next(reasons, 'no batch norms; convert_split_norm(model) splits layer norms and their kin')


def _models_of_timm(family: str, names: Union[str, Sequence[str]] = '*', but: Sequence[str] = ()) -> List[str]:
    # the registry goes by the last part of a module's name, which the variants and other packages share with timm
    models = list_models(names, module=family, exclude_filters=but)
    return [name for name in models if model_entrypoint(name).__module__ == f'timm.models.{family}']


def _register_family(name: str, family: Family) -> None:
    # timm's registry and pickle find an entry point through its module, timm_advprop.models.<family>: there is one,
    # without a file.
    module: Any = ModuleType(f'{__package__}.{name}', f"Models of timm's `{name}` with split norms.")
    module.__all__, module.default_cfgs = [], {}
    sys.modules[module.__name__] = module
    setattr(sys.modules[__package__], name, module)  # pyright: ignore[reportArgumentType]
    for base in _models_of_timm(name, family.names, list(family.left_out)):
        variant = family.renamed.get(base, f'{base}_ap')
        module.default_cfgs[variant] = _default_cfg(base)  # first, as registering reads it
        setattr(module, variant, register_model(entry_point(module.__name__, variant, base)))
        _BASES[variant] = base


def _default_cfg(base: str) -> DefaultCfg:
    sources = [cfg for cfg in get_arch_pretrained_cfgs(base).values() if cfg.has_weights]
    advprop = {cfg.tag: cfg for cfg in sources if cfg.tag == _ADVPROP_TAG}
    plain = {f'plain_{cfg.tag}' if cfg.tag else 'plain': cfg for cfg in sources if cfg.tag != _ADVPROP_TAG}
    cfgs = {**(advprop or {'': _untrained_cfg(base)}), **plain}
    return DefaultCfg(tags=deque(cfgs), cfgs=cfgs, is_pretrained=bool(advprop))


def _untrained_cfg(base: str) -> PretrainedCfg:
    cfg = get_pretrained_cfg(base)
    assert cfg is not None  # of a model that timm registers
    return dataclasses.replace(cfg, url='', file=None, hf_hub_id=None, tag=None, custom_load=False)


for _name in sorted(FAMILIES):
    _register_family(_name, FAMILIES[_name])
