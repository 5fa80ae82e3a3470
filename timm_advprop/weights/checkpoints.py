"""Reads checkpoints, of this package and of other AdvProp code, without running anything that is in them.

The reference PyTorch code (github.com/tingxueronghua/pytorch-classification-advprop) and Fast AdvProp
(github.com/meijieru/fast_advprop) call the one auxiliary norm `….aux_bn.weight`, without an index, put `module.` before
every key, and use torchvision's names for ResNets, which are timm's.
"""
import hashlib
import logging
import os
from argparse import Namespace
from dataclasses import dataclass
from typing import Any, ContextManager, Dict, List, Mapping, Optional

import numpy as np
import torch
import torch.nn as nn
from safetensors.torch import load_file
from timm.models import clean_state_dict

from ..errors import InputError
from ..norms import (
    SHARES,
    aux_indices_in,
    convert_split_norm,
    has_split_norm,
    index_aux_key,
    main_key,
    num_aux_in,
    num_aux_norms,
    share_in,
    split_state_dict,
)
from .misfits import explain_misfit
from .model_arguments import MOST_AUX
from .other_names import Unwrapped, has_averaged_task, rename_efficientnet, unwrap

__all__ = ['Checkpoint', 'allow_numpy_scalars', 'load_checkpoint', 'load_read_checkpoint', 'open_checkpoint',
           'read_checkpoint', 'weights_digest']

_logger = logging.getLogger(__name__)

# Where a training checkpoint keeps its weights, the first that is there.
_AVERAGED = ('state_dict_ema', 'model_ema')
_TRAINED = ('state_dict', 'model')
_OF_LIGHTNING = 'pytorch-lightning_version'
_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds. The file is read once.

    Args:
        path: The file.
        state_dict: The weights, under this package's names.
        averaged: The weights are an exponential moving average.
        args: Arguments of the timm run that wrote it; empty for any other file.
        epoch: Epoch of that run, from 0.
        raw: All of a training checkpoint, with the optimizer and both kinds of weights; empty for weights alone.
        has_average: The file has averaged weights, be they those in `state_dict` or not.
    """
    path: str
    state_dict: Dict[str, torch.Tensor]
    averaged: bool
    args: Dict[str, Any]
    epoch: Optional[int]
    raw: Mapping[str, Any]
    has_average: bool = False

    @property
    def share(self) -> Optional[str]:
        """What main and auxiliary norms share, see `convert_split_norm`; None where there are no auxiliary norms."""
        if not num_aux_in(self.state_dict):
            return None
        found, model_kwargs = share_in(self.state_dict), self.args.get('model_kwargs')
        said = self.args.get('adv_share') or (model_kwargs if isinstance(model_kwargs, dict) else {}).get('share')
        return said if found != 'none' and said in SHARES[1:] else found  # the keys do not tell which of both kinds


def load_checkpoint(model: nn.Module, path: str, use_ema: bool = True) -> None:
    """Load a checkpoint into a model, and log what was recognised in it.

    Args:
        model: A model with or without split norms. Where it has split norms and the checkpoint is a plain one, the
            auxiliary norms become copies of the main ones.
        path: A timm training checkpoint, a PyTorch state dict of the model or of a task, a safetensors file, or a
            checkpoint of Lightning, of the reference AdvProp code, of Fast AdvProp or of EfficientNet-PyTorch.
        use_ema: Prefer the averaged weights where there are any.

    Raises:
        InputError: There is no such file, it is not a checkpoint, or it does not fit; the message names the keys.
    """
    load_read_checkpoint(model, read_checkpoint(path, use_ema), path)


def read_checkpoint(path: str, use_ema: bool = True) -> Dict[str, torch.Tensor]:
    """The state dict in a checkpoint file, see `open_checkpoint`."""
    return open_checkpoint(path, use_ema).state_dict


def open_checkpoint(path: str, use_ema: bool = True) -> Checkpoint:
    """Read a checkpoint file. No code in it is run.

    Args:
        path: See `load_checkpoint`.
        use_ema: Prefer the averaged weights where there are any.

    Raises:
        InputError: There is no such file, it is not a checkpoint, or it has too many auxiliary norms, or a gap in them.
    """
    if not os.path.isfile(path):
        raise InputError(f'No checkpoint file {path}.')
    is_safe = path.endswith('.safetensors')
    try:
        with allow_numpy_scalars(), torch.serialization.safe_globals([Namespace]):  # timm keeps a run's arguments so
            content: Any = load_file(path) if is_safe else torch.load(path, map_location='cpu', weights_only=True)
        keys = (*_AVERAGED, *_TRAINED) if use_ema else _TRAINED
        key = next((key for key in keys if content.get(key) is not None), None)
        state_dict = clean_state_dict(content[key] if key else content)
    except Exception as error:  # every reader has errors of its own for a file that is not its kind
        raise InputError(f'{path} cannot be loaded: it is neither safetensors nor a PyTorch checkpoint that holds '
                         f'weights alone, without code ({type(error).__name__}{_code_in(path)}).') from error
    if not state_dict or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise InputError(f'{path} is not a checkpoint: it holds no state dict.')
    run = content if isinstance(content.get('args'), Namespace) else {}
    model = unwrap(state_dict, use_ema, of_lightning=_OF_LIGHTNING in content)
    return Checkpoint(
        path=path, state_dict=_under_our_names(model, path), averaged=key in _AVERAGED or model.averaged,
        args=dict(vars(run['args'])) if run else {}, epoch=run.get('epoch'), raw=content if key else {},
        has_average=any(content.get(name) is not None for name in _AVERAGED) or has_averaged_task(state_dict))


def load_read_checkpoint(
        model: nn.Module,
        state_dict: Dict[str, torch.Tensor],
        path: str,
        convert: bool = False,
        share: Optional[str] = None,
) -> None:
    """Load what `read_checkpoint` returned, see `load_checkpoint`.

    Args:
        model: A model with or without split norms.
        state_dict: The state dict.
        path: The file it came from.
        convert: Split the norms of a plain model where the checkpoint has auxiliary norms.
        share: What these share, see `convert_split_norm`; by default what the keys say.
    """
    name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
    num_aux = num_aux_in(state_dict)
    if num_aux and convert and not has_split_norm(model):
        _logger.info(f'{path} has auxiliary norms: {name} gets them too.')
        convert_split_norm(model, num_aux, share or share_in(state_dict))
    if num_aux > num_aux_norms(model):  # told here, as a plain model would name each of them an unexpected key
        advice = f'create it with num_aux={num_aux}' if has_split_norm(model) else (
            f'take its *_ap model, or call convert_split_norm(model, num_aux={num_aux}) first')
        raise InputError(f'{path} has {num_aux} auxiliary norm(s) for each norm, {name} has {num_aux_norms(model)}: '
                         f'{advice}.')
    try:
        model.load_state_dict(_with_main_for_untrained_aux(state_dict, path))
    except RuntimeError as error:
        raise InputError(f'{path} does not fit {name}: {explain_misfit(error)}') from error
    _tell_copied_norms(split_state_dict(model.state_dict())[1], state_dict, path)


def weights_digest(state_dict: Mapping[str, torch.Tensor], route: str = 'main') -> str:
    """A name for weights, the same wherever they are kept: 16 digits of a SHA-256.

    Args:
        state_dict: State dict of a model, split or plain.
        route: With `'main'`, of the plain model's part; else of all.
    """
    entries = split_state_dict(state_dict)[0] if route in ('main', 'clean') else state_dict
    digest = hashlib.sha256()
    for name in sorted(entries):
        value = entries[name].detach().cpu().contiguous()
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()[:16]


def allow_numpy_scalars() -> ContextManager[Any]:
    """Let torch read checkpoints that hold an accuracy or a learning rate as a numpy number."""
    scalar, _ = np.float64(0).__reduce__()  # the function that makes such numbers again
    return torch.serialization.safe_globals([  # pyright: ignore[reportArgumentType]
        (scalar, 'numpy.core.multiarray.scalar'),  # numpy 1
        (scalar, 'numpy._core.multiarray.scalar'),
        np.dtype,
        *(type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32', 'bool')),
    ])


def _code_in(path: str) -> str:
    # What a pickle would import; it is not unpickled to find that out.
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no such file, or an older torch
        return ''
    return f': it names {", ".join(sorted(names)[:_NAMES_SHOWN])}' if names else ''


def _under_our_names(model: Unwrapped, path: str) -> Dict[str, torch.Tensor]:
    if model.prefix:
        _logger.info(f'{path} holds a model under {model.prefix.rstrip(".")}{_left_out(model.left_out)}.')
    renamed = rename_efficientnet(model.state_dict)
    if renamed.keys() != model.state_dict.keys():
        _logger.info(f'{path} names layers as EfficientNet-PyTorch does: these are weights for tf_efficientnet_* and '
                     'efficientnet_b*_ap. Those of AdvProp normalise images by mean 0.5 and std 0.5.')
    indexed = _index_aux_keys(renamed, path)
    _check_indices(indexed, path)
    return indexed


def _left_out(keys: List[str]) -> str:
    more = ' …' if len(keys) > _NAMES_SHOWN else ''
    return f'; {len(keys)} other entries are left out: {", ".join(keys[:_NAMES_SHOWN])}{more}' if keys else ''


def _index_aux_keys(state_dict: Dict[str, torch.Tensor], path: str) -> Dict[str, torch.Tensor]:
    indexed = {index_aux_key(key): value for key, value in state_dict.items()}
    if indexed.keys() == state_dict.keys():
        return indexed
    if len(indexed) < len(state_dict):
        raise InputError(f'{path} names auxiliary norms both with and without an index.')
    norms = {key.rpartition('aux_bn.')[0] for key in split_state_dict(indexed)[1]}
    _logger.info(f'{path} names auxiliary norms as the reference AdvProp code and Fast AdvProp do: {len(norms)} norms, '
                 f'one auxiliary norm each. Both codes normalise images by mean 0.5 and std 0.5.')
    return indexed


def _check_indices(state_dict: Dict[str, torch.Tensor], path: str) -> None:
    # One key with a large index would make a model of as many norms.
    indices = aux_indices_in(state_dict)
    if indices and max(indices) >= MOST_AUX:
        raise InputError(f'{path} names an auxiliary norm aux_bn.{max(indices)}: there may be {MOST_AUX} for each '
                         'norm.')
    missing = set(range(num_aux_in(state_dict))) - indices
    if missing:
        raise InputError(f'{path} is not complete: it has auxiliary norms up to aux_bn.{max(indices)}, and none is '
                         f'aux_bn.{min(missing)}.')


def _with_main_for_untrained_aux(state_dict: Dict[str, torch.Tensor], path: str) -> Dict[str, torch.Tensor]:
    # Auxiliary norms at their first values, beside main norms that were trained, do not fit the layers between them.
    main, aux = split_state_dict(state_dict)
    of_main = {key: main[main_key(key)] for key in aux if main_key(key) in main}
    if not aux or _look_trained(of_main, aux):
        return state_dict
    _logger.info(f'The auxiliary norms in {path} were not trained: they are taken for copies of the main ones.')
    return {**state_dict, **{key: value.clone() for key, value in of_main.items()}}


def _look_trained(main: Dict[str, torch.Tensor], aux: Dict[str, torch.Tensor]) -> bool:
    # Batch norms count what they saw. Norms without statistics of their own begin with the same value in all channels.
    if _batch_counts(aux):
        return any(_batch_counts(aux)) or not any(_batch_counts(main))
    return not _are_constant(aux) or _are_constant(main)


def _are_constant(state_dict: Dict[str, torch.Tensor]) -> bool:
    return all((value == value.flatten()[:1]).all() for value in state_dict.values())


def _batch_counts(state_dict: Dict[str, torch.Tensor]) -> List[int]:
    return [int(value) for key, value in state_dict.items() if key.endswith('num_batches_tracked')]


def _tell_copied_norms(expected: Mapping[str, Any], state_dict: Mapping[str, Any], path: str) -> None:
    copied = sorted({key.rpartition('.')[0] for key in expected if key not in state_dict})
    if share_in(state_dict) != 'none' and share_in({**state_dict, **expected}) == 'none':
        _logger.info(f'Main and auxiliary norms of {path} share statistics: each starts with a copy of its own.')
        copied = [norm for norm in copied if not any(key.startswith(f'{norm}.') for key in state_dict)]
    if expected and not num_aux_in(state_dict):
        _logger.info(f'{path} is a plain checkpoint: auxiliary norms start as copies of the main norms.')
    elif copied:
        _logger.warning(f'{path} lacks {len(copied)} auxiliary norms, which start as copies of the main norms: '
                        f'{", ".join(copied[:_NAMES_SHOWN])}{" …" if len(copied) > _NAMES_SHOWN else ""}.')
