"""The data loaders of a training run."""
from typing import Any, Callable, Dict, NamedTuple, Optional

from timm.data import AugMixDataset, FastCollateMixup, Mixup
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torchvision.datasets import ImageFolder

from ..errors import InputError, as_input_error
from .datasets import DataConfig, check_class_count, make_loader, open_split
from .placement import Placement
from .run_settings import AugmentationSettings, TrainSettings

__all__ = ['Loaders', 'build_loaders']

# Settings that timm's create_loader takes under another name.
_AUGMENTATION_NAMES = dict(
    no_aug='no_aug', train_crop_mode='train_crop_mode', scale='scale', ratio='ratio', hflip='hflip', vflip='vflip',
    color_jitter='color_jitter', color_jitter_prob='color_jitter_prob', grayscale_prob='grayscale_prob',
    gaussian_blur_prob='gaussian_blur_prob', aa='auto_augment', aug_repeats='num_aug_repeats',
    aug_splits='num_aug_splits', reprob='re_prob', remode='re_mode', recount='re_count', resplit='re_split')


class Loaders(NamedTuple):
    """The loaders of a run; `mixup_fn` mixes batches where the training loader does not."""
    train: Any
    eval: Optional[Any]
    mixup_fn: Optional[Callable]

    def start_epoch(self, epoch: int, mixup_off_epoch: int) -> None:
        """Tell the loaders which epoch begins, and end mixup at its epoch, 0 for never."""
        for part in (self.train.dataset, self.train.sampler):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)
        if mixup_off_epoch and epoch >= mixup_off_epoch:
            mixing = self.train if self.mixup_fn is None else self.mixup_fn
            mixing.mixup_enabled = False


def build_loaders(settings: TrainSettings, config: DataConfig, num_classes: int, placement: Placement) -> Loaders:
    """Open the data sets and make timm's loaders for them.

    Raises:
        InputError: A split is missing, cannot be read, or does not fit the model or the batch.
    """
    loader, augmentation = settings.loader, settings.augmentation
    train_set, eval_set = _open_splits(settings, config, num_classes, loader.batch_size * placement.world_size)
    if augmentation.aug_splits:
        train_set = AugMixDataset(train_set, num_splits=augmentation.aug_splits)
    mixup = _mixup_arguments(augmentation, num_classes)
    fast_collate = as_input_error(FastCollateMixup, **mixup) if mixup and not loader.no_prefetcher else None
    train = make_loader(
        train_set, config, placement, loader, loader.batch_size, is_training=True,
        interpolation=config['interpolation'] if augmentation.no_aug else augmentation.train_interpolation,
        collate_fn=fast_collate, use_multi_epochs_loader=loader.use_multi_epochs_loader,
        worker_seeding=loader.worker_seeding,
        **{name: getattr(augmentation, ours) for ours, name in _AUGMENTATION_NAMES.items()})
    evaluation = None
    if eval_set is not None:
        evaluation = make_loader(
            eval_set, config, placement, loader, loader.validation_batch_size or loader.batch_size, is_training=False,
            interpolation=config['interpolation'], crop_pct=config['crop_pct'], crop_mode=config['crop_mode'])
    return Loaders(train, evaluation, as_input_error(Mixup, **mixup) if mixup and loader.no_prefetcher else None)


def _open_splits(settings: TrainSettings, config: DataConfig, num_classes: int, batch_size: int):
    data = settings.data
    train_set = _open_split(
        settings, data.train_split, config, num_classes, is_training=True, num_samples=data.train_num_samples,
        seed=settings.loader.seed, repeats=settings.loader.epoch_repeats)
    eval_set = None
    if data.val_split:
        eval_set = _open_split(
            settings, data.val_split, config, num_classes, is_training=False, num_samples=data.val_num_samples)
        folder = _folder(train_set)
        if folder is not None and folder == _folder(eval_set):
            raise InputError(f'Both splits are the folder {folder}: give its parent as --data-dir, with sub-folders '
                             f'{data.train_split} and {data.val_split}, or --val-split "".')
    if hasattr(train_set, '__len__') and len(train_set) < batch_size:
        raise InputError(f'The training split has {len(train_set)} images, fewer than one batch of {batch_size}: give '
                         'a smaller --batch-size.')
    return train_set, eval_set


def _open_split(settings: TrainSettings, split: str, config: DataConfig, num_classes: int, **kwargs: Any) -> Any:
    dataset = open_split(settings.data, split, config, batch_size=settings.loader.batch_size, **kwargs)
    check_class_count(dataset, num_classes, f'split {split!r}')
    return dataset


def _folder(dataset: Any) -> Optional[str]:
    # of data sets that are nothing but a folder, or a tar file, of images: others keep both splits in one
    reader = getattr(dataset, 'reader', dataset)
    return reader.root if isinstance(reader, (ReaderImageFolder, ReaderImageInTar, ImageFolder)) else None


def _mixup_arguments(settings: AugmentationSettings, num_classes: int) -> Optional[Dict[str, Any]]:
    if not settings.is_mixing:
        return None
    return dict(
        mixup_alpha=settings.mixup, cutmix_alpha=settings.cutmix, cutmix_minmax=settings.cutmix_minmax,
        prob=settings.mixup_prob, switch_prob=settings.mixup_switch_prob, mode=settings.mixup_mode,
        label_smoothing=settings.smoothing, num_classes=num_classes)
