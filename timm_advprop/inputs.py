"""Opens what a user names on the command line: devices, models, data sets. Wrong ones are InputErrors."""
import logging
import os
import pickle
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import timm
import torch
import torch.nn as nn
from timm.data import create_dataset
from timm.data.loader import adapt_to_chs
from timm.models import is_model, parse_model_name
from torch.utils.data import Dataset

from .arguments import near_matches
from .checkpoints import allow_numpy_scalars, explain_misfit, read_checkpoint
from .downloads import NETWORK_ERRORS, explain_hub_error
from .errors import InputError
from .models import create_model, split_models
from .norms import num_aux_in
from .publication import open_publication

__all__ = [
    'as_input_error', 'available_device', 'channel_normalisation', 'check_class_count', 'check_dataset_root',
    'check_normalisation', 'dataset_name', 'open_dataset', 'open_model',
]

_logger = logging.getLogger(__name__)

_SPLIT_NAMES = (('train', 'training'), ('validation', 'val', 'valid', 'eval', 'evaluation'), ('test',))
# What timm, torch, safetensors and the readers raise for files and names that are not what they should be.
_OPEN_ERRORS = (
    AssertionError, AttributeError, EOFError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError,
    pickle.UnpicklingError,
)


def as_input_error(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function whose ValueErrors and assertions are about what a user gave, and report them as InputErrors."""
    try:
        return function(*args, **kwargs)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(_one_line(error)) from error


def available_device(device: str) -> str:
    """The device asked for, or the CPU, with a notice, where a CUDA device is asked for and there is none.

    Raises:
        InputError: The device is unknown.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f'Unknown device {device!r}: give cuda, cuda:N or cpu.') from error
    if kind == 'cuda' and not torch.cuda.is_available():
        _logger.info('No CUDA device is available, running on the CPU.')
        return 'cpu'
    return device


def open_model(name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model` whose failures are one line.

    Args:
        name: Model name, or `hf-hub:` or `local-dir:` source, as timm takes it.
        **kwargs: Arguments of `timm.create_model`.

    Raises:
        InputError: The model is unknown, has no weights, or does not take an argument.
    """
    if ':' in name:
        return _open_published(name, **kwargs)
    if '/' in name:
        raise InputError(f'Unknown model {name!r}: give hf-hub:{name} for a repository of the Hub, local-dir:{name} '
                         'for a folder.')
    if not is_model(name):
        raise InputError(f'Unknown model {name!r}{near_matches(name.split(".")[0], timm.list_models())}.')
    file = (kwargs.get('pretrained_cfg_overlay') or {}).get('file')
    if file and num_aux_in(read_checkpoint(file)) and name.split('.')[0] not in split_models():
        raise InputError(f'{file} has auxiliary norms, which {name} would drop: take its *_ap model, or '
                         f'--initial-checkpoint with --regime advprop.')
    try:
        with allow_numpy_scalars():
            return timm.create_model(name, **kwargs)
    except InputError:
        raise
    except NETWORK_ERRORS as error:
        repo_id = timm.models.get_pretrained_cfg(name).hf_hub_id
        cause = error.__cause__ or error
        raise InputError(f'Cannot create {name}: {explain_hub_error(cause, repo_id or name)}') from error
    except _OPEN_ERRORS as error:
        misfit = 'loading state_dict' in str(error)
        message = explain_misfit(error) if misfit else _one_line(error)
        raise InputError(f'Cannot create {name}: {message}') from error


def _open_published(name: str, num_aux: Optional[int] = None, **kwargs: Any) -> nn.Module:
    # A model that was published without auxiliary norms stays plain.
    try:
        source, location = parse_model_name(name)
        publication = open_publication(source, location, kwargs.get('cache_dir'))
        if not publication.num_aux and publication.architecture not in split_models():
            num_aux = num_aux or 0
        return create_model(f'{source}:{publication.name}', num_aux=num_aux, **kwargs)  # of the same commit
    except InputError:
        raise
    except _OPEN_ERRORS as error:
        raise InputError(f'Cannot create {name}: {_one_line(error)}') from error


def open_dataset(name: str, root: Optional[str], split: str, **kwargs: Any) -> Dataset:
    """`timm.data.create_dataset` whose failures are one line.

    Args:
        name: `<type>/<name>` of the data set, '' for image folders.
        root: Root folder.
        split: Split of the data set.
        **kwargs: Further arguments of `timm.data.create_dataset`.

    Raises:
        InputError: The data set is missing, empty or cannot be read.
    """
    check_dataset_root(name, root, split)
    try:
        dataset = create_dataset(name, root=root, split=split, **kwargs)
        empty = hasattr(dataset, '__len__') and len(dataset) == 0
    except _OPEN_ERRORS as error:
        raise InputError(f'Cannot read split {split!r} of {name or root}: {_one_line(error)}') from error
    if empty:
        raise InputError(f'Split {split!r} of {name or root} has no images.')
    return dataset


def dataset_name(dataset: Optional[str], folder: Optional[str]) -> str:
    """What people call a data set: `cifar10` for `torch/cifar10`, and the name of an image folder."""
    if dataset:
        return dataset.partition('/')[2] or dataset
    return os.path.basename(os.path.normpath(folder)) if folder else ''


def check_dataset_root(name: str, root: Optional[str], split: str) -> None:
    """Check what can be said of a data set before a model is downloaded for it.

    Args:
        name: `<type>/<name>` of the data set, '' for image folders.
        root: Root folder.
        split: Split of the data set.

    Raises:
        InputError: The folder is not given or not there, or it has no such split.
    """
    reader = name.split('/')[0].lower() if '/' in name else ''
    if not root and reader not in ('hfds', 'hfids', 'wds', 'tfds'):
        raise InputError('No data set: give its folder with --data-dir.')
    if not reader:
        _check_split_folder(root, split)


def check_class_count(dataset: Dataset, num_classes: int, what: str) -> None:
    """Compare the classes of a data set with those of a model, where the data set says how many it has.

    Args:
        dataset: The data set.
        num_classes: Classes of the model.
        what: Name of the data set in the message.

    Raises:
        InputError: They differ.
    """
    classes = _class_names(dataset)
    if classes is not None and len(classes) != num_classes:
        raise InputError(f'The {what} has {len(classes)} classes, the model {num_classes}: '
                         f'give --num-classes {len(classes)}, or another data set.')


def check_normalisation(mean: Optional[Sequence[float]], std: Optional[Sequence[float]], channels: int) -> None:
    """Check that `--mean` and `--std`, where given, fit the channels of the images.

    Raises:
        InputError: They have neither one value nor one for each channel.
    """
    for flag, values in (('--mean', mean), ('--std', std)):
        if values is not None and len(values) not in (1, channels):
            raise InputError(f'{flag} takes 1 or {channels} values, got {len(values)}.')


def channel_normalisation(
        data_config: Dict[str, Any],
) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
    """Mean and std for each channel of a resolved data config, as timm's loaders apply them.

    Args:
        data_config: Result of `timm.data.resolve_data_config`.
    """
    channels = data_config['input_size'][0]
    return adapt_to_chs(data_config['mean'], channels), adapt_to_chs(data_config['std'], channels)


def _check_split_folder(root: str, split: str) -> None:
    # timm takes the whole folder for a split it does not find, so training images would count as validation
    if not os.path.exists(root):
        raise InputError(f'No data folder {root}.')
    splits = {synonym: names for names in _SPLIT_NAMES for synonym in names}
    present = [name for name in splits if os.path.isdir(os.path.join(root, name))]
    wanted = splits.get(split.split('[')[0], (split,))
    if present and not any(os.path.isdir(os.path.join(root, name)) for name in wanted):
        raise InputError(f'No split {split!r} in {root}, it has {", ".join(present)}.')


def _class_names(dataset: Dataset) -> Optional[Any]:
    for owner in (getattr(dataset, 'reader', None), dataset):
        classes = getattr(owner, 'class_to_idx', None) or getattr(owner, 'classes', None)
        if classes:
            return classes
    return None


def _one_line(error: BaseException) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 600 else text[:600] + ' …'
