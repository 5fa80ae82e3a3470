"""Opens the model that settings name, for every program the same way. Failures are one line."""
import logging
import pickle
import tarfile
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple, Union

import timm
import torch
import torch.nn as nn
from timm.layers import set_fast_norm
from timm.models import get_arch_pretrained_cfgs, is_model, parse_model_name

from ..errors import InputError, near_matches, one_line
from ..models import base_of, create_model, split_models
from ..norms import num_aux_in
from ..weights import (
    Checkpoint,
    Publication,
    allow_numpy_scalars,
    explain_misfit,
    load_read_checkpoint,
    open_publication,
    read_checkpoint,
)
from ..weights.downloads import NETWORK_ERRORS, explain_hub_error
from .placement import Placement
from .run_settings import ImageSettings, ModelSettings

__all__ = ['OPEN_ERRORS', 'base_name', 'is_ours', 'open_architecture', 'open_model', 'size_arguments',
           'told_of_another_model', 'try_images']

_logger = logging.getLogger(__name__)

# What timm, torch, safetensors and the readers raise for files and names that are not what they should be.
OPEN_ERRORS = (
    AssertionError, EOFError, ImportError, OSError, RuntimeError, ValueError, pickle.UnpicklingError, tarfile.TarError)
_ARGUMENT_ERRORS = (AttributeError, KeyError, TypeError)  # and for arguments that a user named


def open_model(
        model: ModelSettings,
        image: ImageSettings,
        checkpoint: Optional[Checkpoint] = None,
        num_aux: int = 0,
        convert: bool = True,
        share: Optional[str] = None,
        **kwargs: Any,
) -> nn.Module:
    """Create the model that settings name, and load a checkpoint into it.

    Args:
        model: Which model.
        image: Its input channels.
        checkpoint: Weights for it.
        num_aux: Auxiliary norms that it shall have for each norm where it has split norms; 0 for its own number.
        convert: Split the norms of a plain model where the checkpoint has auxiliary norms.
        share: What main and auxiliary norms shall share, see `convert_split_norm`; by default what those of the
            checkpoint do, else those of the model.
        **kwargs: Further arguments of `timm.create_model`; `--model-kwargs` override them.

    Raises:
        InputError: The model is unknown, has no weights, does not take an argument, or the checkpoint does not fit.
    """
    _check_compilation(model)
    if model.fast_norm:
        set_fast_norm()
    settings: Dict[str, Any] = dict(
        pretrained=model.pretrained, num_classes=model.num_classes, in_chans=image.channels, global_pool=model.gp)
    share = checkpoint.share if share is None and checkpoint is not None else share
    if ':' in model.model or base_name(model.model) in split_models():
        settings.update(num_aux=num_aux or None, share=share)
    created = open_architecture(model.model, model.model_kwargs, **{**settings, **kwargs})
    if checkpoint is not None:
        with told_of_another_model(checkpoint, model.model):
            load_read_checkpoint(created, checkpoint.state_dict, checkpoint.path, convert=convert, share=share)
    return created


@contextmanager
def told_of_another_model(checkpoint: Checkpoint, name: str) -> Iterator[None]:
    """Let a checkpoint that does not fit, and says itself that it is of another architecture, be told as that.

    Args:
        checkpoint: The checkpoint that the block loads.
        name: Name of the model.
    """
    try:
        yield
    except InputError as error:
        own = checkpoint.args.get('model') or checkpoint.raw.get('arch')
        if not own or ':' in f'{own}{name}' or base_of(base_name(own)) == base_of(base_name(name)):
            raise
        raise InputError(f'{checkpoint.path} is of {own}, --model says {name}: it does not fit.') from error


def open_architecture(
        name: Union[str, Publication],
        model_kwargs: Optional[Mapping[str, Any]] = None,
        **kwargs: Any,
) -> nn.Module:
    """`timm.create_model` whose failures are one line.

    Args:
        name: Model name, or `hf-hub:` or `local-dir:` source, as timm takes it; or an open publication.
        model_kwargs: Further arguments, which a user named.
        **kwargs: Arguments of `timm.create_model`.

    Raises:
        InputError: The model is unknown, has no weights, or does not take an argument.
    """
    published = isinstance(name, Publication) or ':' in name
    called = name.name if isinstance(name, Publication) else name
    if not published:
        _check_name(called)
        kwargs.update(_with_read_weights(called, kwargs.get('pretrained_cfg_overlay') or {}))
    kwargs.update(model_kwargs or {})
    try:
        with allow_numpy_scalars():
            return _create_published(name, **kwargs) if published else _create_by_name(called, **kwargs)
    except InputError:
        raise
    except NETWORK_ERRORS as error:
        repo_id = '' if published else timm.models.get_pretrained_cfg(called).hf_hub_id  # pyright: ignore[reportOptionalMemberAccess]
        problem = explain_hub_error(error.__cause__ or error, repo_id or called, of_weights=True)
        raise InputError(f'Cannot create {called}: {problem}') from error
    except (*OPEN_ERRORS, *_ARGUMENT_ERRORS) as error:
        if not published and not model_kwargs and is_ours(error):
            raise
        misfit = 'loading state_dict' in str(error)
        raise InputError(f'Cannot create {called}: {explain_misfit(error) if misfit else one_line(error)}') from error


def size_arguments(name: str, img_size: int) -> Dict[str, Any]:
    """What `timm.create_model` must be told of the size of images: most models take any, some are built for one.

    Args:
        name: Model name; nothing is known of a published model, or of an unknown name.
        img_size: Height and width of images.
    """
    cfg = timm.models.get_pretrained_cfg(name)
    return dict(img_size=img_size) if cfg is not None and cfg.fixed_input_size else {}


def is_ours(error: Exception) -> bool:
    """Whether an error can only be a mistake in a program: not one of `OPEN_ERRORS`, nor of an argument that a model or
    a data set does not take."""
    return not isinstance(error, OPEN_ERRORS) and 'unexpected keyword argument' not in str(error)


def try_images(
        model: nn.Module,
        input_size: Tuple[int, int, int],
        placement: Placement,
        batch_size: Optional[int] = None,
) -> None:
    """Try a model on a black image, and in train mode where it shall train on one at a time. It stays as it is.

    Args:
        model: The model, on its device.
        input_size: Channels, height and width.
        placement: Where it is.
        batch_size: Images of a batch in training, None for an evaluation.

    Raises:
        InputError: It does not take them.
    """
    size, was_training = 'x'.join(map(str, input_size)), model.training
    try:
        images = placement.in_memory_format(placement.images(torch.zeros(1, *input_size)))
        with torch.no_grad(), placement.autocast(), torch.random.fork_rng():
            model.eval()(images)
            if batch_size == 1 and not placement.distributed:
                deepcopy(model).train()(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f'The model does not take images of {size} (--img-size, --input-size, --in-chans) in batches '
                         f'of {batch_size or 1}: {one_line(error, 300).rstrip(".")}.') from error
    finally:
        model.train(was_training)


def base_name(name: str) -> str:
    """A model's name without the tag of its weights."""
    return name.split('.')[0]


def _check_compilation(model: ModelSettings) -> None:
    if model.torchcompile:
        try:
            torch.compile(nn.Identity(), backend=model.torchcompile, mode=model.torchcompile_mode)
        except (RuntimeError, ValueError) as error:
            raise InputError(f'--torchcompile {model.torchcompile}, --torchcompile-mode {model.torchcompile_mode}: '
                             f'{one_line(error)}') from error


def _check_name(name: str) -> None:
    if '/' in name:
        raise InputError(f'Unknown model {name!r}: give hf-hub:{name} for a repository of the Hub, local-dir:{name} '
                         'for a folder.')
    if not is_model(name):
        raise InputError(f'Unknown model {name!r}{near_matches(base_name(name), timm.list_models())}.')
    base, _, tag = name.partition('.')
    if name not in (published := get_arch_pretrained_cfgs(base)) and (plain := f'{base}.plain_{tag}') in published:
        raise InputError(f'Invalid pretrained tag ({tag}) for {base}: timm\'s plain weights are {plain}.')


def _with_read_weights(name: str, overlay: Mapping[str, Any]) -> Dict[str, Any]:
    # Of a file, timm would read what it wrote itself.
    file = overlay.get('file')
    if not file:
        return {}
    state_dict = read_checkpoint(file)
    if num_aux_in(state_dict) and base_name(name) not in split_models():
        raise InputError(f'{file} has auxiliary norms, which {name} would drop: take its *_ap model, or '
                         f'--initial-checkpoint with --regime advprop.')
    return dict(pretrained_cfg_overlay={**overlay, 'file': None, 'state_dict': state_dict})


def _create_by_name(name: str, **kwargs: Any) -> nn.Module:
    model: Any = timm.create_model(name, **kwargs)
    model.pretrained_cfg.pop('state_dict', None)  # each copy of the model would have one of its own
    return model


def _create_published(source: Union[str, Publication], num_aux: Optional[int] = None, **kwargs: Any) -> nn.Module:
    # A model that was published without auxiliary norms stays plain.
    if isinstance(source, str):
        source = open_publication(*parse_model_name(source), kwargs.get('cache_dir'))  # pyright: ignore[reportArgumentType]
    if not source.num_aux and source.architecture not in split_models():
        num_aux = num_aux or 0
    return create_model(source, num_aux=num_aux, **kwargs)
