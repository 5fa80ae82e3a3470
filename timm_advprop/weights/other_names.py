"""State dicts of other programs under timm's names: of models that are wrapped, and of EfficientNet-PyTorch."""
import re
from typing import Dict, List, Mapping, NamedTuple

import torch
from timm.models import clean_state_dict

__all__ = ['Unwrapped', 'has_averaged_task', 'rename_efficientnet', 'unwrap']

StateDict = Mapping[str, torch.Tensor]

# A task of timm's or of this package, which may be an attribute of another module, and its averaged weights.
_TASK = re.compile(r'(?:\w+\.)*?trainable_module\.')
_AVERAGED_TASK = re.compile(r'(?:\w+\.)*?trainable_module_ema\.module\.')
_MODEL = re.compile(r'model\.')  # the usual attribute of a LightningModule

# Layers of EfficientNet-PyTorch (github.com/lukemelas/EfficientNet-PyTorch), and what timm calls them.
_AROUND_BLOCKS = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2',
                  '_fc': 'classifier'}
_SQUEEZE = {'_se_reduce': 'se.conv_reduce', '_se_expand': 'se.conv_expand'}
_IN_BLOCK = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', **_SQUEEZE, '_project_conv': 'conv_pw', '_bn2': 'bn2'}
_IN_EXPANDING_BLOCK = {
    '_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2', **_SQUEEZE,
    '_project_conv': 'conv_pwl', '_bn2': 'bn3'}


class Unwrapped(NamedTuple):
    """The state dict of a model that was wrapped.

    Args:
        state_dict: The model's.
        prefix: What stood before its keys, '' where it was not wrapped.
        left_out: Keys that are not the model's.
        averaged: It is an exponential moving average.
    """
    state_dict: Dict[str, torch.Tensor]
    prefix: str = ''
    left_out: List[str] = []
    averaged: bool = False


def unwrap(state_dict: StateDict, use_ema: bool = True, of_lightning: bool = False) -> Unwrapped:
    """Take the model out of the state dict of a task, or of a module that holds a task or a `model`.

    Args:
        state_dict: State dict of anything.
        use_ema: Prefer a task's averaged weights where there are any.
        of_lightning: It is of a LightningModule, whose `model` may have other modules beside it. Elsewhere everything
            must lie under `model`.
    """
    for wrapper in ((_AVERAGED_TASK,) if use_ema else ()) + (_TASK, _MODEL):
        prefix = next((match[0] for match in map(wrapper.match, state_dict) if match), '')
        inside = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        left_out = [key for key in state_dict if not key.startswith(prefix)]
        if prefix and (wrapper is not _MODEL or of_lightning or not left_out):
            return Unwrapped(clean_state_dict(inside), prefix, left_out, wrapper is _AVERAGED_TASK)
    return Unwrapped(dict(state_dict))


def has_averaged_task(state_dict: StateDict) -> bool:
    """Whether a state dict is that of a task with averaged weights, or of a module that holds one."""
    return any(map(_AVERAGED_TASK.match, state_dict))


def rename_efficientnet(state_dict: StateDict) -> Dict[str, torch.Tensor]:
    """The state dict of timm's `tf_efficientnet_*` for that of EfficientNet-PyTorch; any other as it is.

    That code numbers its blocks throughout, timm within stages: a stage begins where the number of channels changes.
    """
    if '_conv_stem.weight' not in state_dict or '_blocks.0._project_conv.weight' not in state_dict:
        return dict(state_dict)
    stage, index, channels = -1, 0, None
    blocks: Dict[str, str] = {}
    while (last := state_dict.get(f'_blocks.{len(blocks)}._project_conv.weight')) is not None:
        stage, index = (stage, index + 1) if last.shape[:1] == channels else (stage + 1, 0)
        channels = last.shape[:1]
        blocks[str(len(blocks))] = f'blocks.{stage}.{index}'
    return {_timm_name(key, blocks, state_dict): value for key, value in state_dict.items()}


def _timm_name(key: str, blocks: Mapping[str, str], state_dict: StateDict) -> str:
    layer, _, rest = key.partition('.')
    if layer != '_blocks':
        return f'{_AROUND_BLOCKS.get(layer, layer)}.{rest}'
    number, layer, rest = (rest.split('.', 2) + ['', ''])[:3]
    names = _IN_EXPANDING_BLOCK if f'_blocks.{number}._expand_conv.weight' in state_dict else _IN_BLOCK
    return f'{blocks.get(number, f"_blocks.{number}")}.{names.get(layer, layer)}.{rest}'
