"""Suites of other images than those of the validation split: corrupted ones, and test sets that others published."""
import logging
import os
from dataclasses import replace
from functools import lru_cache, partial
from importlib.resources import as_file, files
from typing import List

from ..corruptions import ALL_CORRUPTIONS, SEVERITIES, check_libraries
from ..engine.datasets import check_dataset_root, class_indices, open_split
from ..engine.eval_settings import EvalDataSettings, EvalSettings
from ..engine.results_file import Results
from ..engine.tested_model import TestedModel
from ..engine.validation import measure
from .cells import QUIET_BATCHES, Cell, Measured
from .corrupted_images import Corruption
from .published_sets import IMAGENET_C, NUM_CLASSES, PUBLISHED_SETS, corruption_folders, missing_corruptions

__all__ = ['clean_cells', 'corruption_cells', 'imagenet_c_cells', 'published_cells', 'real_cells']

_logger = logging.getLogger(__name__)


def clean_cells(settings: EvalSettings) -> List[Cell]:
    """The validation split as it is."""
    check_dataset_root(settings.data, settings.data.split)
    return [Cell('clean', lambda tested: [_measure(tested, settings.data)])]


def corruption_cells(settings: EvalSettings, folder: str) -> List[Cell]:
    """The corruptions of ImageNet-C, made of the validation split. Not equal to the files of ImageNet-C: its authors
    drew other random numbers, and kept images as JPEG."""
    check_libraries()
    return [
        Cell('corruptions', partial(_measure_corruption, corruption=Corruption(name, severity, settings.loader.seed)),
             name, severity) for name in ALL_CORRUPTIONS for severity in SEVERITIES]


def imagenet_c_cells(settings: EvalSettings, folder: str) -> List[Cell]:
    """ImageNet-C as its authors published it. Its images are cropped: they are resized where a model takes others."""
    folders, crop_pct = corruption_folders(folder), settings.image.crop_pct or 1.
    missing = missing_corruptions(corruption for corruption, _ in folders)
    if missing:
        _logger.warning(f'{folder} has no {", ".join(missing)}: there will be no mean over corruptions.')
    return [
        Cell('imagenet-c', partial(_measure_folder, name='imagenet-c', root=root, crop_pct=crop_pct), corruption,
             severity, about=os.path.abspath(root)) for (corruption, severity), root in folders.items()]


def published_cells(settings: EvalSettings, folder: str, name: str) -> List[Cell]:
    """A test set of ImageNet's classes, or of some of them, as its authors published it."""
    root, classes = PUBLISHED_SETS[name].open_folder(folder)
    return [Cell(name, partial(_measure_folder, name=name, root=root, classes=classes), about=os.path.abspath(root))]


def real_cells(settings: EvalSettings, folder: str) -> List[Cell]:
    """ImageNet's validation split by the labels of Beyer et al. (arXiv:2006.07159), which timm brings."""
    return [Cell('imagenet-real', _measure_real)]


def _measure(tested: TestedModel, data: EvalDataSettings, **kwargs) -> Results:
    return measure(tested, data, quiet_batches=QUIET_BATCHES, **kwargs)


def _measure_corruption(tested: TestedModel, corruption: Corruption) -> Measured:
    data = tested.settings.data
    row, channels = _measure(tested, data, on_pixels=corruption), tested.config['input_size'][0]
    if tested.num_classes == NUM_CLASSES and _has_imagenet_classes(data, channels):
        row['imagenet_classes'] = True
    return [row]


@lru_cache(maxsize=1)
def _has_imagenet_classes(data: EvalDataSettings, channels: int) -> bool:
    # whether errors may be compared with those of AlexNet
    dataset = open_split(data, data.split, dict(input_size=(channels, 1, 1)))
    return set(class_indices(dataset) or ()) == set(IMAGENET_C.class_folders())


def _measure_folder(tested: TestedModel, name: str, root: str, **kwargs) -> Measured:
    if name == IMAGENET_C.name:
        IMAGENET_C.check_classes(root)
    data = replace(tested.settings.data, dataset='', data_dir=root, class_map='', real_labels='', valid_labels='')
    return [{**_measure(tested, data, **kwargs), 'dataset': name, 'split': '', 'imagenet_classes': True}]


def _measure_real(tested: TestedModel) -> Measured:
    with as_file(files('timm.data') / '_info' / 'imagenet_real_labels.json') as labels:
        return [_measure(tested, replace(tested.settings.data, real_labels=str(labels)))]
