"""Opens data sets and makes timm's loaders for them, for every program the same way. Failures are one line."""
import copy
import os
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn as nn
from PIL import Image
from timm.data import ImageDataset, create_dataset, create_loader, create_transform, resolve_data_config
from timm.data.loader import adapt_to_chs
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.data.transforms import MaybePILToTensor, MaybeToTensor, ToNumpy
from torch.utils.data import Dataset
from torchvision import transforms

from ..errors import InputError, as_input_error, one_line
from ..output import without_folders
from .bad_images import CheckedImages
from .open_model import OPEN_ERRORS, is_ours
from .placement import Placement
from .run_settings import DataSettings, ImageSettings, LoaderSettings
from .splits import check_split, has_split, keep_split, root_of_split
from .stopping import leave_signals_to_parent

__all__ = [
    'READERS_WITHOUT_FOLDER', 'DataConfig', 'channel_normalisation', 'check_class_count', 'check_dataset_root',
    'class_count', 'class_indices', 'dataset_name', 'has_split_folder', 'image_transform', 'insert_before_tensor',
    'label_names', 'make_loader', 'open_split', 'resolve_image_config', 'torch_loader',
]

DataConfig = Dict[str, Any]
_TO_TENSOR = (MaybePILToTensor, MaybeToTensor, ToNumpy, transforms.PILToTensor, transforms.ToTensor)
READERS_WITHOUT_FOLDER = ('hfds', 'hfids', 'tfds')  # timm's readers of data sets that need no --data-dir
_TORCH_FOLDERS = ('torch/image_folder', 'torch/folder')


def resolve_image_config(image: ImageSettings, model: nn.Module, verbose: bool = False, **kwargs: Any) -> DataConfig:
    """How images are sized and normalised: as set, else as the model's own configuration says.

    `kwargs` go to `timm.data.resolve_data_config`.

    Raises:
        InputError: Mean or std have neither one value nor one for each channel.
    """
    channels = image.channels or 3
    for flag, values in (('--mean', image.mean), ('--std', image.std)):
        if values is not None and len(values) not in (1, channels):
            raise InputError(f'{flag} takes 1 or {channels} values, got {len(values)}.')
    return resolve_data_config(image.values(), model=model, verbose=verbose, **kwargs)


def channel_normalisation(config: DataConfig) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
    """Mean and std for each channel of a resolved configuration, as timm's loaders apply them."""
    channels = config['input_size'][0]
    return adapt_to_chs(config['mean'], channels), adapt_to_chs(config['std'], channels)  # pyright: ignore[reportReturnType]


def image_transform(config: DataConfig, normalise: bool = True) -> Any:
    """timm's transform of validation images; without `normalise` it leaves pixels in 0–1."""
    channels = config['input_size'][0]
    mean, std = channel_normalisation(config) if normalise else ((0.,) * channels, (1.,) * channels)
    return create_transform(
        config['input_size'], interpolation=config['interpolation'], crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'], mean=mean, std=std)


def insert_before_tensor(
        transform: transforms.Compose,
        stage: Callable[[Image.Image], Image.Image],
) -> transforms.Compose:
    """Put a stage into an evaluation transform of timm, after resizing and cropping.

    Args:
        transform: What `timm.data.create_transform` returns, with or without the prefetcher; it stays as it is.
        stage: Maps images to images.

    Returns:
        The new transform.

    Raises:
        InputError: The transform has no stage that makes a tensor or an array of an image.
    """
    stages = list(getattr(transform, 'transforms', ()))
    place = next((i for i, each in enumerate(stages) if isinstance(each, _TO_TENSOR)), None)
    if place is None:
        raise InputError(f'No stage of {" ".join(str(transform).split())} makes a tensor of an image: nothing can be '
                         'done before it.')
    longer = copy.copy(transform)
    longer.transforms = [*stages[:place], stage, *stages[place:]]
    return longer


def open_split(data: DataSettings, split: str, config: DataConfig, **kwargs: Any) -> Dataset:
    """Open a split of a data set; `kwargs` go to `timm.data.create_dataset`.

    Raises:
        InputError: The data set is missing, empty or cannot be read.
    """
    check_dataset_root(data, split)
    mode = _image_mode(data, config['input_size'][0])
    name = data.dataset or data.data_dir
    root = data.data_dir if _reader(data) else root_of_split(data.data_dir, split)  # pyright: ignore[reportArgumentType]
    try:
        dataset: Any = create_dataset(
            data.dataset, root=root, split=split, download=data.dataset_download,
            class_map=data.class_map,  # pyright: ignore[reportArgumentType]
            input_img_mode=mode, input_key=data.input_key, target_key=data.target_key,
            trust_remote_code=data.dataset_trust_remote_code, **kwargs)
        empty = hasattr(dataset, '__len__') and len(dataset) == 0
    except (*OPEN_ERRORS, AttributeError, KeyError, TypeError) as error:
        if is_ours(error) and not (data.input_key or data.target_key or data.class_map):
            raise
        raise InputError(f'Cannot read split {split!r} of {name}: {one_line(error)}') from error
    if empty:
        raise InputError(f'Split {split!r} of {name} has no images.')
    if isinstance(getattr(dataset, 'reader', None), ReaderImageInTar):
        keep_split(dataset.reader, split)
    if type(dataset) is ImageDataset:
        return CheckedImages(dataset, data.skip_bad_images)
    if data.skip_bad_images:
        raise InputError(f'--skip-bad-images is for folders, tar files and hfds/, not for {data.dataset}.')
    return dataset


def make_loader(
        dataset: Dataset,
        config: DataConfig,
        placement: Placement,
        loader: LoaderSettings,
        batch_size: int,
        **kwargs: Any,
) -> Any:
    """timm's loader of a data set, whose processes outlive what stops a run; `kwargs` go to `timm.data.create_loader`.

    Raises:
        InputError: An argument is out of its range.
    """
    mean, std = channel_normalisation(config)
    made: Any = as_input_error(
        create_loader,
        dataset,  # pyright: ignore[reportArgumentType]
        input_size=config['input_size'],
        batch_size=batch_size,
        mean=mean,
        std=std,
        pin_memory=loader.pin_mem,
        img_dtype=placement.dtype or torch.float32,
        device=placement.device,
        distributed=placement.distributed,
        use_prefetcher=not loader.no_prefetcher,
        num_workers=loader.workers,
        persistent_workers=loader.workers > 0,  # timm before 1.0.31 does not look
        **kwargs,
    )
    plain = torch_loader(made)
    plain.worker_init_fn = partial(_start_worker, plain.worker_init_fn)
    return made


def torch_loader(loader: Any) -> Any:
    """torch's loader in one that timm made, with its prefetcher or without."""
    return getattr(loader, 'loader', loader)


def _start_worker(timms: Callable[[int], None], worker: int) -> None:
    leave_signals_to_parent()
    timms(worker)


def dataset_name(data: DataSettings) -> str:
    """What people call a data set: `cifar10` for `torch/cifar10`, and the name of a folder, never where it lies."""
    if data.dataset and data.dataset.lower() not in _TORCH_FOLDERS:
        name = without_folders(data.dataset)
        return name.partition('/')[2] or name
    return os.path.basename(os.path.normpath(data.data_dir)) if data.data_dir else ''


def check_dataset_root(data: DataSettings, split: str) -> None:
    """Check what can be said of a data set before a model is downloaded for it.

    Raises:
        InputError: The folder is not given or not there, or it has no such split.
    """
    reader = _reader(data)
    if not data.data_dir and reader not in READERS_WITHOUT_FOLDER:
        raise InputError('No data set: give its folder with --data-dir.')
    if not reader or data.dataset.lower() in _TORCH_FOLDERS:
        check_split(data.data_dir, split)  # pyright: ignore[reportArgumentType]


def has_split_folder(data: DataSettings, split: str) -> bool:
    """Whether a split has a place of its own; True for data sets that are no folders."""
    if _reader(data) and data.dataset.lower() not in _TORCH_FOLDERS:
        return True
    return has_split(data.data_dir or '', split)


def check_class_count(dataset: Dataset, num_classes: int, what: str) -> None:
    """Compare the classes of a data set with those of a model, where the data set says how many it has.

    Raises:
        InputError: They differ.
    """
    count = class_count(dataset)
    if count not in (None, num_classes):
        raise InputError(f'The {what} has {count} classes, the model {num_classes}: give --num-classes {count}, or '
                         'another data set.')


def _image_mode(data: DataSettings, channels: int) -> str:
    mode = data.input_img_mode or ('RGB' if channels == 3 else 'L')
    if Image.getmodebands(mode) != channels and _reader(data) != 'torch':  # whose images are as they are
        raise InputError(f'Images of mode {mode} (--input-img-mode) have {Image.getmodebands(mode)} channels, the '
                         f'model takes {channels} (--in-chans): give another mode.')
    return mode


def _reader(data: DataSettings) -> str:
    # timm's name of it, '' for folders and tar files
    return data.dataset.split('/')[0].lower() if '/' in data.dataset else ''


def label_names(dataset: Dataset, num_classes: int) -> Optional[List[str]]:
    """The name of each label of a data set, in their order; None where it has not one for each of `num_classes`."""
    indices = class_indices(dataset) or {}
    names = {index: str(name) for name, index in indices.items()}
    complete = names.keys() == set(range(num_classes)) and len(names) == len(indices)
    return [names[index] for index in range(num_classes)] if complete else None


def class_count(dataset: Dataset) -> Optional[int]:
    """How many classes a model of the labels of a data set has, None where it does not say.

    Several names may have one label, and labels may have gaps: a class map says so, or a data set with synonyms.
    """
    indices = class_indices(dataset)
    return None if indices is None else max(indices.values()) + 1


def class_indices(dataset: Dataset) -> Optional[Dict[str, int]]:
    """The label of each name of a class of a data set, None where it does not say."""
    for owner in (getattr(dataset, 'reader', None), dataset):
        # the first is torchvision's for ImageNet, whose class_to_idx has an entry for each synonym
        for attribute in ('wnid_to_idx', 'class_to_idx', 'class_name_to_idx', 'classes'):
            found = getattr(owner, attribute, None)
            if found:
                return dict(found) if hasattr(found, 'items') else {name: label for label, name in enumerate(found)}
    return None
