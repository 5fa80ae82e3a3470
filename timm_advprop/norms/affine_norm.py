"""Split norms without running statistics: layer norms, group norms and their kin.

They normalise each image by itself, so clean and adversarial images never share statistics; what a route keeps apart
are the affine parameters. The paper's networks have batch norms only: this is its idea carried over. The global
response normalisation of ConvNeXt-V2 is a gate between channels rather than a norm, and stays shared.
"""
from copy import deepcopy
from functools import lru_cache
from types import FunctionType
from typing import Any, Callable, Optional, Type

import torch
import torch.nn as nn
from timm import layers
from timm.layers import LayerNorm2d, register_notrace_module

from .split_norm import SplitNorm

__all__ = ['SplitGroupNorm', 'SplitLayerNorm', 'SplitLayerNorm2d', 'split_affine_norm_type']


class _SplitAffineNorm(SplitNorm):
    def __init__(self, *args: Any, num_aux: int = 1, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_aux_norms(num_aux)

    def _copy_main_norm(self) -> nn.Module:
        copy = super()._copy_main_norm()
        for name, child in self.named_children():  # an activation
            copy.add_module(name, deepcopy(child))
        return copy

    def __reduce__(self):  # pickle cannot find classes that were made for a norm by name
        return _new_split_norm, (self.plain_type,), vars(self)


def _forward_of(plain: Type[nn.Module]) -> Callable[..., torch.Tensor]:
    # The plain norm's own forward pass, under another name: TorchScript cannot reach it through super(), and compiles a
    # method under the name of its function, which must not be forward.
    source = plain.forward
    function = FunctionType(
        source.__code__, source.__globals__, '_normalize', source.__defaults__, source.__closure__)
    function.__annotations__, function.__kwdefaults__ = source.__annotations__, source.__kwdefaults__
    return function


class SplitLayerNorm(_SplitAffineNorm, nn.LayerNorm):
    """`nn.LayerNorm` with auxiliary norms, for inputs [N, …, C].

    Args:
        *args: Arguments of `nn.LayerNorm`.
        num_aux: Number of auxiliary norms, at least 1.
        **kwargs: Arguments of `nn.LayerNorm`.
    """
    plain_type = aux_type = nn.LayerNorm
    _normalize = _forward_of(nn.LayerNorm)


class SplitLayerNorm2d(_SplitAffineNorm, LayerNorm2d):
    """timm's `LayerNorm2d` with auxiliary norms, for inputs [N, C, H, W].

    Args:
        *args: Arguments of timm's `LayerNorm2d`.
        num_aux: Number of auxiliary norms, at least 1.
        **kwargs: Arguments of timm's `LayerNorm2d`.
    """
    plain_type = aux_type = LayerNorm2d
    _normalize = _forward_of(LayerNorm2d)


class SplitGroupNorm(_SplitAffineNorm, nn.GroupNorm):
    """`nn.GroupNorm` with auxiliary norms, for inputs [N, C, …].

    Args:
        *args: Arguments of `nn.GroupNorm`.
        num_aux: Number of auxiliary norms, at least 1.
        **kwargs: Arguments of `nn.GroupNorm`.
    """
    plain_type = aux_type = nn.GroupNorm
    _normalize = _forward_of(nn.GroupNorm)


def split_affine_norm_type(module: nn.Module) -> Optional[Type[SplitNorm]]:
    """The split norm that takes the place of a norm without running statistics, None for any other module.

    Args:
        module: A layer, group, instance, RMS, evolved or filter-response norm of torch or timm, or of a class derived
            from one. A norm without parameters has nothing to split.
    """
    if not isinstance(module, _PLAIN_TYPES) or not any(True for _ in module.parameters(recurse=False)):
        return None
    return _split_type(type(module))


@lru_cache(maxsize=None)
def _split_type(plain: Type[nn.Module]) -> Type[SplitNorm]:
    # A class for each kind of norm, made where there is none: the split norm stays an instance of the plain one, since
    # models and timm's layers ask for it.
    base = next((split for split in _SPLIT_TYPES if issubclass(plain, split.plain_type)), _SplitAffineNorm)
    if base in _SPLIT_TYPES and base.plain_type is plain:
        return base
    split: Any = type(f'Split{plain.__name__}', (base, plain), dict(
        plain_type=plain, aux_type=plain, _normalize=_forward_of(plain), __module__=__name__, __doc__=base.__doc__))
    register_notrace_module(split)
    return split


def _new_split_norm(plain: Type[nn.Module]) -> SplitNorm:
    split = _split_type(plain)
    return split.__new__(split)


_SPLIT_TYPES = (SplitLayerNorm2d, SplitLayerNorm, SplitGroupNorm)  # a LayerNorm2d is a LayerNorm, too: it comes first
for _split in _SPLIT_TYPES:
    register_notrace_module(_split)
# EvoNorms of the B series keep running statistics: they are batch norms, of a kind that cannot be split.
_PLAIN_TYPES = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    layers.RmsNorm, layers.RmsNormFp32, layers.RmsNorm2d, layers.RmsNorm2dFp32,
    layers.SimpleNorm, layers.SimpleNormFp32, layers.SimpleNorm2d, layers.SimpleNorm2dFp32,
    layers.EvoNorm2dS0, layers.EvoNorm2dS1, layers.EvoNorm2dS2,
    layers.FilterResponseNormTlu2d, layers.FilterResponseNormAct2d,
)
