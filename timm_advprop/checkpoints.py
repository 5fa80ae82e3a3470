"""Reads checkpoints, of this package and of other AdvProp code, without running anything that is in them.

The reference PyTorch code (github.com/tingxueronghua/pytorch-classification-advprop) and Fast AdvProp
(github.com/meijieru/fast_advprop) call the one auxiliary norm `….aux_bn.weight`, without an index, put `module.` before
every key, and use torchvision's names for ResNets, which are timm's.
"""
import hashlib
import logging
import os
import re
import zipfile
from argparse import Namespace
from typing import Any, ContextManager, Dict, Mapping

import numpy as np
import torch
import torch.nn as nn
from timm.models import load_state_dict

from .errors import InputError
from .models import split_models
from .norms import (
    convert_split_norm,
    has_split_norm,
    index_aux_key,
    main_key,
    num_aux_in,
    num_aux_norms,
    split_state_dict,
)

__all__ = ['allow_numpy_scalars', 'explain_misfit', 'load_checkpoint', 'load_read_checkpoint',
           'read_checkpoint', 'read_run', 'weights_digest']

_logger = logging.getLogger(__name__)

_NAMES_SHOWN = 4


def load_checkpoint(model: nn.Module, path: str, use_ema: bool = True) -> None:
    """Load a checkpoint into a model, and log what was recognised in it.

    Args:
        model: A model with or without split norms. Where it has split norms and the checkpoint is a plain one, the
            auxiliary norms become copies of the main ones.
        path: A timm training checkpoint, a PyTorch state dict, a safetensors file, or a checkpoint of the reference
            AdvProp code or of Fast AdvProp.
        use_ema: Prefer the averaged weights where there are any.

    Raises:
        InputError: There is no such file, it is not a checkpoint, or it does not fit; the message names the keys.
    """
    load_read_checkpoint(model, read_checkpoint(path, use_ema), path)


def load_read_checkpoint(
        model: nn.Module,
        state_dict: Dict[str, torch.Tensor],
        path: str,
        convert: bool = False,
) -> None:
    """Load what `read_checkpoint` returned, see `load_checkpoint`.

    Args:
        model: A model with or without split norms.
        state_dict: The state dict.
        path: The file it came from.
        convert: Split the norms of a plain model where the checkpoint has auxiliary norms.
    """
    name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
    num_aux = num_aux_in(state_dict)
    if num_aux and convert and not has_split_norm(model):
        _logger.info(f'{path} has auxiliary norms: {name} gets them too.')
        convert_split_norm(model, num_aux)
    model_aux = num_aux_norms(model)
    if num_aux > model_aux:
        raise InputError(f'{path} has {num_aux} auxiliary norm(s) for each norm, {name} has {model_aux}: '
                         f'{_advice(name, num_aux, has_split_norm(model))}.')
    filled = [key for key in split_state_dict(model.state_dict())[1] if key not in state_dict]
    try:
        model.load_state_dict(_with_main_for_untrained_aux(state_dict, path))
    except RuntimeError as error:
        raise InputError(f'{path} does not fit {name}: {explain_misfit(error)}') from error
    if model_aux and not num_aux:
        _logger.info(f'{path} is a plain checkpoint: auxiliary norms start as copies of the main norms.')
    elif filled:
        norms = {key.rpartition('.')[0] for key in filled}
        _logger.warning(f'{path} lacks {len(norms)} auxiliary norms, which start as copies of the main norms: '
                        f'{", ".join(sorted(norms)[:_NAMES_SHOWN])}{" …" if len(norms) > _NAMES_SHOWN else ""}.')


def _advice(name: str, num_aux: int, is_split: bool) -> str:
    if is_split:
        return f'create it with num_aux={num_aux}'
    variant = next((variant for variant, base in split_models().items() if base == name), None)
    return f'take the model {variant}' if variant else f'call convert_split_norm(model, num_aux={num_aux}) first'


def read_checkpoint(path: str, use_ema: bool = True) -> Dict[str, torch.Tensor]:
    """The state dict in a checkpoint file, under this package's names. No code in the file is run.

    Args:
        path: See `load_checkpoint`.
        use_ema: Prefer the averaged weights where there are any.

    Raises:
        InputError: There is no such file, or it is not a checkpoint.
    """
    if not os.path.isfile(path):
        raise InputError(f'No checkpoint file {path}.')
    try:
        with allow_numpy_scalars():
            state_dict = load_state_dict(path, use_ema=use_ema)
    except Exception as error:  # every reader has errors of its own for a file that is not its kind
        raise InputError(f'{path} cannot be loaded: it is neither safetensors nor a PyTorch checkpoint that holds '
                         f'weights alone, without code ({type(error).__name__}).') from error
    if not state_dict or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise InputError(f'{path} is not a checkpoint: it holds no state dict.')
    indexed = {index_aux_key(key): value for key, value in state_dict.items()}
    if indexed.keys() == state_dict.keys():
        return indexed
    if len(indexed) < len(state_dict):
        raise InputError(f'{path} names auxiliary norms both with and without an index.')
    norms = {key.rpartition('aux_bn.')[0] for key in split_state_dict(indexed)[1]}
    _logger.info(f'{path} names auxiliary norms as the reference AdvProp code and Fast AdvProp do: {len(norms)} norms, '
                 f'one auxiliary norm each. Both codes normalise images by mean 0.5 and std 0.5.')
    return indexed


def _with_main_for_untrained_aux(state_dict: Dict[str, torch.Tensor], path: str) -> Dict[str, torch.Tensor]:
    # Auxiliary norms that a regime without them left at their first values, beside main norms that were trained.
    clean, aux = split_state_dict(state_dict)
    trained = [any(value.any() for key, value in part.items() if key.endswith('num_batches_tracked'))
               for part in (clean, aux)]
    if not any(key.endswith('num_batches_tracked') for key in aux) or trained != [True, False]:
        return state_dict
    _logger.info(f'The auxiliary norms in {path} were not trained: they are taken for copies of the main ones.')
    return {key: clean[main_key(key)].clone() if key in aux else value for key, value in state_dict.items()}


def read_run(path: str) -> Dict[str, Any]:
    """What a training checkpoint says of its run: `args` (a dict), `epoch`, `metric`, and `averaged`, whether there are
    averaged weights. Empty for a file that holds weights alone.

    Args:
        path: A file that `read_checkpoint` reads.
    """
    if path.endswith('.safetensors'):
        return {}
    with allow_numpy_scalars(), torch.serialization.safe_globals([Namespace]):
        mmap = zipfile.is_zipfile(path)  # the tensors are not read
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get('args'), Namespace):
        return {}
    run = {name: checkpoint[name] for name in ('epoch', 'metric') if name in checkpoint}
    return dict(run, args=dict(vars(checkpoint['args'])), averaged='state_dict_ema' in checkpoint)


def weights_digest(state_dict: Mapping[str, torch.Tensor], route: str = 'clean') -> str:
    """A name for weights, the same wherever they are kept: 16 digits of a SHA-256.

    Args:
        state_dict: State dict of a model, split or plain.
        route: With `'clean'`, of the plain model's part; else of all.
    """
    entries = split_state_dict(state_dict)[0] if route == 'clean' else state_dict
    digest = hashlib.sha256()
    for name in sorted(entries):
        value = entries[name].detach().cpu().contiguous()
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def explain_misfit(error: RuntimeError) -> str:
    """What torch says of a state dict that does not fit, in one line that names the first keys of each kind."""
    heading, *lines = (line.strip() for line in str(error).splitlines())
    if not lines:
        return heading
    surplus = [line for line in lines if 'more auxiliary norms' in line]
    if surplus:
        return surplus[0]
    sizes = [line for line in lines if line.startswith('size mismatch')]
    parts = [_shorten(line) for line in lines if line not in sizes]
    parts += [re.sub(r'copying a param with shape (.*) from checkpoint, the shape in current model is (.*)\.',
                     r'\1 in the checkpoint, \2 in the model', line) for line in sizes[:_NAMES_SHOWN]]
    if len(sizes) > _NAMES_SHOWN:
        parts.append(f'and {len(sizes) - _NAMES_SHOWN} more of another size')
    return '; '.join(part.rstrip('. ') for part in parts) + '.'


def allow_numpy_scalars() -> ContextManager[Any]:
    """Let torch read checkpoints that hold an accuracy or a learning rate as a numpy number."""
    scalar, _ = np.float64(0).__reduce__()  # the function that makes such numbers again
    return torch.serialization.safe_globals([
        (scalar, 'numpy.core.multiarray.scalar'),  # numpy 1
        (scalar, 'numpy._core.multiarray.scalar'),
        np.dtype,
        *(type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32', 'bool')),
    ])


def _shorten(line: str) -> str:
    names = re.findall('"([^"]+)"', line)
    if not names:
        return line
    more = f' and {len(names) - _NAMES_SHOWN} more' if len(names) > _NAMES_SHOWN else ''
    kind = line.partition(' key')[0].lower()
    return f'{kind} keys {", ".join(names[:_NAMES_SHOWN])}{more}'
