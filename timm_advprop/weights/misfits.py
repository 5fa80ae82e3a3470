"""Weights that do not fit a model: refused where timm would load them, and explained in one line."""
import re
from functools import partial
from typing import Any, Iterable, Optional, Sequence, Tuple

import torch.nn as nn
from timm.models._pretrained import PretrainedCfg
from torch.utils.hooks import RemovableHandle

from ..norms import split_state_dict

__all__ = ['explain_misfit', 'refuse_misfits']

_NAMES_SHOWN = 4


def explain_misfit(error: Exception) -> str:
    """What torch says of a state dict that does not fit, in one line that names the first keys of each kind."""
    heading, *lines = (line.strip() for line in str(error).splitlines())
    refused = [line for line in lines if 'aux_bn: ' in line]  # what a split norm says itself
    if refused or not lines:
        return refused[0] if refused else heading
    sizes = [line for line in lines if line.startswith('size mismatch')]
    parts = [_shorten_keys(line) for line in lines if line not in sizes]
    parts += [_shorten_sizes(line) for line in sizes[:_NAMES_SHOWN]]
    if len(sizes) > _NAMES_SHOWN:
        parts.append(f'and {len(sizes) - _NAMES_SHOWN} more of another size')
    return '; '.join(part.rstrip('. ') for part in parts) + '.'


def refuse_misfits(model: nn.Module, cfg: PretrainedCfg, in_chans: int) -> RemovableHandle:
    """Let a model's `load_state_dict` raise a RuntimeError on keys that miss or are too many, also where it is lax.

    timm loads without complaint, whatever is in the file, where the number of classes changes. Only the layers that it
    adapts may be missing.

    Args:
        model: The model.
        cfg: Pretrained cfg of the weights, which names these layers.
        in_chans: Input channels of the model.

    Returns:
        A handle, to remove the check.
    """
    adapted = _layer_names(cfg.classifier)
    if in_chans != cfg.input_size[0]:
        adapted += _layer_names(cfg.first_conv)
    return model.register_load_state_dict_post_hook(partial(_refuse, cfg.architecture, adapted))


def _layer_names(names: Any) -> Tuple[str, ...]:
    return tuple(f'{name}.' for name in ([names] if isinstance(names, str) else names or []))


def _refuse(architecture: Optional[str], adapted: Tuple[str, ...], model: nn.Module, incompatible: Any) -> None:
    unexpected = split_state_dict(dict.fromkeys(incompatible.unexpected_keys))[0]  # surplus norms name themselves
    misfits = [
        f'{kind} keys: {", ".join(keys[:_NAMES_SHOWN])} ({len(keys)} in all)'
        for kind, keys in (('Missing', _not_of(adapted, incompatible.missing_keys)),
                           ('Unexpected', _not_of(adapted, unexpected)))
        if keys
    ]
    if misfits:
        raise RuntimeError(f'The weights do not fit {architecture}. {". ".join(misfits)}.')


def _not_of(layers: Tuple[str, ...], keys: Iterable[str]) -> Sequence[str]:
    return [key for key in keys if not key.startswith(layers)]


def _shorten_keys(line: str) -> str:
    names = re.findall('"([^"]+)"', line)
    if not names:
        return line
    more = f' and {len(names) - _NAMES_SHOWN} more' if len(names) > _NAMES_SHOWN else ''
    kind = line.partition(' key')[0].lower()
    return f'{kind} keys {", ".join(names[:_NAMES_SHOWN])}{more}'


def _shorten_sizes(line: str) -> str:
    return re.sub(r'copying a param with shape (.*) from checkpoint, the shape in current model is (.*)\.',
                  r'\1 in the checkpoint, \2 in the model', line)
