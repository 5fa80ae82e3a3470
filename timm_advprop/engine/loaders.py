"""The data loaders of a training run."""
from itertools import islice
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from timm.data import AugMixDataset, FastCollateMixup, Mixup
from timm.data.readers.shared_count import SharedCount
from torch.utils.data import IterableDataset

from ..errors import InputError, as_input_error
from .datasets import (
    DataConfig,
    check_class_count,
    class_indices,
    label_names,
    make_loader,
    open_split,
    torch_loader,
)
from .placement import Placement
from .run_settings import AugmentationSettings, TrainDataSettings, TrainSettings
from .seeding import SeededErasing, SeededImages, SeededOrder, SeededReader
from .splits import place_of

__all__ = ['Loaders', 'TrainLoader', 'build_loaders']

# Settings that timm's create_loader takes, and its names for them.
_AUGMENTATION_NAMES = dict(
    no_aug='no_aug', train_crop_mode='train_crop_mode', scale='scale', ratio='ratio', hflip='hflip', vflip='vflip',
    color_jitter='color_jitter', color_jitter_prob='color_jitter_prob', grayscale_prob='grayscale_prob',
    gaussian_blur_prob='gaussian_blur_prob', aa='auto_augment', aug_repeats='num_aug_repeats',
    aug_splits='num_aug_splits', reprob='re_prob', remode='re_mode', recount='re_count', resplit='re_split')


class TrainLoader:
    """timm's loader of training images, whose epochs can be repeated, and begun in the middle.

    Args:
        loader: timm's loader.
        images: The data set that timm's readers opened, below those that wrap it.
        place: Seed of the run and number of the process.
    """
    batches: Any
    order: Any

    def __init__(self, loader: Any, images: Any, place: Tuple[int, ...]):
        self.loader = loader
        self.batches = self.order = self.reader = self.erasing = None
        self.first_batch = 0
        if isinstance(images, IterableDataset):
            self.reader = SeededReader(images, place)
        else:
            # that of torch's loader, which timm's prefetcher does not have before 1.0.31
            batches = self.batches = torch_loader(loader).batch_sampler
            self.order = batches.sampler = SeededOrder(batches.sampler, place)
        if getattr(loader, 'random_erasing', None) is not None:
            self.erasing = loader.random_erasing = SeededErasing(loader.random_erasing, place)

    @property
    def num_images(self) -> int:
        """Number of images in the data set."""
        return len(self.loader.dataset)

    def start_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch that the next iteration is, and the batch that it begins with."""
        for part in (self.loader.dataset, self.loader.sampler):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)
        self.first_batch = first_batch
        if self.reader is not None:
            self.reader.start(epoch)
        else:
            self.order.start(epoch, first_batch * self.batches.batch_size)
        if self.erasing is not None:
            self.erasing.start(epoch, 0 if self.reader is not None else first_batch)

    def __iter__(self) -> Iterator[Any]:
        # an iterable data set knows no places: what was seen is read once more and dropped
        return islice(self.loader, self.first_batch if self.reader is not None else 0, None)

    def __len__(self) -> int:
        return len(self.loader)


class Loaders(NamedTuple):
    """The loaders of a run; `mixup` mixes batches, on the device where the training loader does not. `label_names` are
    those of the training images, in the order of labels, None where the data set does not say them."""
    train: TrainLoader
    eval: Optional[Any]
    mixup: Optional[Mixup]
    label_names: Optional[List[str]] = None

    @property
    def mixup_fn(self) -> Optional[Callable]:
        """Mixes batches that the loader has not mixed."""
        return None if isinstance(self.mixup, FastCollateMixup) else self.mixup

    def start_epoch(self, epoch: int, mixup_off_epoch: int, first_batch: int = 0) -> None:
        """Tell the loaders which epoch begins and with which batch, and end mixup at its epoch, 0 for never."""
        self.train.start_epoch(epoch, first_batch)
        if self.mixup is not None:
            self.mixup.mixup_enabled = not mixup_off_epoch or epoch < mixup_off_epoch


class _CollateMixup(FastCollateMixup):
    # Workers that live on between epochs have copies of it: whether it mixes is known to all of them.
    def __init__(self, **kwargs: Any):
        self._enabled = SharedCount(1)
        super().__init__(**kwargs)

    @property
    def mixup_enabled(self) -> bool:
        return bool(self._enabled.value)

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._enabled.value = int(enabled)


def build_loaders(settings: TrainSettings, config: DataConfig, num_classes: int, placement: Placement) -> Loaders:
    """Open the data sets and make timm's loaders for them.

    Raises:
        InputError: A split is missing, cannot be read, or does not fit the model or the batch, or images are to be
            repeated in one process.
    """
    loader, augmentation = settings.loader, settings.augmentation
    if augmentation.aug_repeats and not placement.distributed:
        raise InputError('--aug-repeats needs several processes, among which timm divides repeated images: give '
                         '--aug-repeats 0.')
    images, eval_set = _open_splits(settings, config, num_classes, loader.batch_size * placement.world_size)
    if augmentation.aug_splits and isinstance(images, IterableDataset):
        raise InputError('--aug-splits needs a data set whose images have numbers, such as a folder; this one is a '
                         'stream.')
    train_set = AugMixDataset(images, num_splits=augmentation.aug_splits) if augmentation.aug_splits else images
    mixup = _mixup_arguments(augmentation, num_classes)
    if mixup is not None:
        mixup = as_input_error(Mixup if loader.no_prefetcher else _CollateMixup, **mixup)
    interpolation = '' if augmentation.no_aug else augmentation.train_interpolation
    train = make_loader(
        train_set if isinstance(images, IterableDataset) else SeededImages(train_set), config, placement, loader,
        loader.batch_size, is_training=True,
        interpolation=interpolation or config['interpolation'],
        collate_fn=None if loader.no_prefetcher else mixup, worker_seeding=loader.worker_seeding,
        **{name: getattr(augmentation, ours) for ours, name in _AUGMENTATION_NAMES.items()})
    evaluation = None
    if eval_set is not None:
        evaluation = make_loader(
            eval_set, config, placement, loader, loader.validation_batch_size or loader.batch_size, is_training=False,
            interpolation=config['interpolation'], crop_pct=config['crop_pct'], crop_mode=config['crop_mode'])
    train = TrainLoader(train, images, (loader.seed, placement.rank))
    return Loaders(train, evaluation, mixup, label_names(images, num_classes))


def _open_splits(settings: TrainSettings, config: DataConfig, num_classes: int, batch_size: int):
    data = settings.data
    train_set = _open_split(
        settings, data.train_split, config, is_training=True, num_samples=data.train_num_samples,
        seed=settings.loader.seed, repeats=settings.loader.epoch_repeats)
    check_class_count(train_set, num_classes, f'split {data.train_split!r}')
    eval_set = None
    if data.val_split:
        eval_set = _open_split(
            settings, data.val_split, config, is_training=False, num_samples=data.val_num_samples)
        place = place_of(train_set)
        if place is not None and place == place_of(eval_set):
            raise InputError(f'Both splits are {place}: give a folder with both as --data-dir, as sub-folders or tar '
                             f'files {data.train_split} and {data.val_split}, or --val-split "".')
        _check_same_classes(data, train_set, eval_set)
        check_class_count(eval_set, num_classes, f'split {data.val_split!r}')
    if hasattr(train_set, '__len__') and len(train_set) < batch_size:
        raise InputError(f'The training split has {len(train_set)} images, fewer than one batch of {batch_size}: give '
                         'a smaller --batch-size.')
    return train_set, eval_set


def _open_split(settings: TrainSettings, split: str, config: DataConfig, **kwargs: Any) -> Any:
    return open_split(settings.data, split, config, batch_size=settings.loader.batch_size, **kwargs)


def _check_same_classes(data: TrainDataSettings, train_set: Any, eval_set: Any) -> None:
    # where both know names
    train, evaluation = class_indices(train_set), class_indices(eval_set)
    if train is None or evaluation is None:
        return
    differing = next((name for name in (*train, *evaluation) if train.get(name) != evaluation.get(name)), None)
    if differing is not None:
        labels = [f'label {indices[differing]}' if differing in indices else 'none' for indices in (train, evaluation)]
        raise InputError(
            f'Class {differing!r} is {labels[0]} of split {data.train_split!r}, {labels[1]} of {data.val_split!r}: '
            'give both splits the same class folders, or the label of each with --class-map.')


def _mixup_arguments(settings: AugmentationSettings, num_classes: int) -> Optional[Dict[str, Any]]:
    if not settings.is_mixing:
        return None
    return dict(
        mixup_alpha=settings.mixup, cutmix_alpha=settings.cutmix, cutmix_minmax=settings.cutmix_minmax,
        prob=settings.mixup_prob, switch_prob=settings.mixup_switch_prob, mode=settings.mixup_mode,
        label_smoothing=settings.smoothing, num_classes=num_classes)
