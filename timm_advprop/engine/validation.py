"""A validation run: timm's results of a model, through a route and under an attack."""
import json
import logging
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from PIL import Image
from timm.data import RealLabelsImagenet
from torch.utils.data import IterableDataset

from ..errors import InputError, as_input_error
from ..output import without_folders
from ..regimes import Attack
from .bad_images import explained_data_loss
from .class_scores import ClassCounts
from .datasets import (
    DataConfig,
    channel_normalisation,
    check_class_count,
    check_dataset_root,
    class_count,
    class_indices,
    dataset_name,
    insert_before_tensor,
    make_loader,
    open_split,
)
from .eval_settings import EvalDataSettings, EvalSettings
from .evaluation import evaluate
from .interrupts import deferred_ctrl_c
from .placement import Placement
from .results_file import Results
from .seeding import seed_at, seed_generators
from .tested_model import TestedModel, open_tested_model
from .wrapped_images import SampledImages

__all__ = ['measure', 'open_test_images', 'read_valid_labels', 'validate']

_logger = logging.getLogger(__name__)

def validate(settings: EvalSettings) -> Results:
    """Validate one model.

    Returns:
        timm's results (`model`, `top1`, `top5`, … in percent), `route`, what was validated on what, and `adv_top1`,
        `adv_top5` and the attack where one was asked for: by the same labels as `top1`. An attack always starts from
        the labels of the data set.

    Raises:
        InputError: Settings do not go together, or something they name is missing.
    """
    check_dataset_root(settings.data, settings.data.split)  # before a model is downloaded for it
    results = measure(open_tested_model(settings), settings.data, attack=settings.attack.attack)
    _logger.info(' * ' + '  '.join(f'{name} {value:.3f}' for name, value in results.items() if 'top' in name))
    return results


@deferred_ctrl_c()
def measure(
        tested: TestedModel,
        data: EvalDataSettings,
        *,
        attack: Optional[Attack] = None,
        crop_pct: Optional[float] = None,
        classes: Optional[Sequence[int]] = None,
        on_pixels: Optional[Callable[[Image.Image], Image.Image]] = None,
        quiet_batches: int = 0,
) -> Results:
    """Measure the accuracy of a model on a data set. The same call gives the same results, whatever came before it.

    Args:
        tested: The model.
        data: The data set, and what its labels mean.
        attack: Makes adversarial images, which are evaluated beside the clean ones.
        crop_pct: Centre crop, the model's own by default.
        classes: The model's class of each label of the data set, where that has some of the classes alone.
        on_pixels: What is done to images after they were sized and cropped.
        quiet_batches: Data sets of no more batches are evaluated without progress lines.

    Returns:
        See `validate`.

    Raises:
        InputError: The data set is missing, cannot be read, or is not of the model's classes.
    """
    settings, placement = tested.settings, tested.placement
    config = tested.config if crop_pct is None else {**tested.config, 'crop_pct': crop_pct}
    attack = _normalised_attack(attack, settings, config, tested.num_classes)
    classes = read_valid_labels(data, tested.num_classes) or classes
    dataset, loader = open_test_images(tested, data, config, classes, on_pixels)
    labels = _Labels(data, dataset, classes, placement.device)
    seed_generators(seed_at(settings.loader.seed, placement.rank), placement.device)
    with explained_data_loss(), _explained_statistics():
        metrics = evaluate(
            tested.model, loader, placement, attack=attack, on_output=labels.add, output_indices=labels.valid,
            log_name='Test' if len(loader) > quiet_batches else None, log_interval=settings.report.log_freq)
    metrics.update(labels.accuracies())
    results = OrderedDict(
        model=settings.model.model, **_rounded(metrics), **labels.scores(placement), param_count=tested.param_count,
        img_size=config['input_size'][-1], crop_pct=config['crop_pct'], interpolation=config['interpolation'],
        route=settings.model.route, dataset=dataset_name(data), split=without_folders(data.split),
        weights=tested.weights)
    if tested.recalibrated:
        results['recalibrated'] = tested.recalibrated
    if not isinstance(dataset, IterableDataset):
        results['num_images'] = len(dataset)
    if getattr(dataset, 'num_bad', 0):
        results['bad_images'] = dataset.num_bad  # pyright: ignore[reportAttributeAccessIssue]
    if attack is not None:
        results.update({name: round(metrics[name], 4) for name in ('adv_top1', 'adv_top5')})
        results['adv_attack'] = attack.describe()
    return results


@contextmanager
def _explained_statistics() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if 'more than 1 value per channel' not in str(error):
            raise
        raise InputError('--adv-norm-stats train: the last batch is of 1 image, which is too few for the statistics of '
                         'batch norms: give another --batch-size.') from error


def open_test_images(
        tested: TestedModel,
        data: EvalDataSettings,
        config: Optional[DataConfig] = None,
        classes: Optional[Sequence[int]] = None,
        on_pixels: Optional[Callable[[Image.Image], Image.Image]] = None,
) -> Tuple[Any, Any]:
    """The data set and timm's loader of it, for a model. See `measure`; `--valid-labels` are among `classes`."""
    config, settings = config or tested.config, tested.settings
    dataset: Any = open_split(data, data.split, config, num_samples=data.num_samples, seed=settings.loader.seed)
    if not data.real_labels:
        _check_classes(tested, data, dataset, classes)
    if data.num_samples and not isinstance(dataset, IterableDataset) and data.num_samples < len(dataset):
        dataset = SampledImages(dataset, data.num_samples)
    loader = make_loader(
        dataset, config, tested.placement, settings.loader, settings.loader.batch_size * settings.device.num_gpu,
        interpolation=config['interpolation'], crop_pct=config['crop_pct'], crop_mode=config['crop_mode'],
        crop_border_pixels=settings.image.crop_border_pixels)
    if on_pixels is not None:
        dataset.transform = insert_before_tensor(dataset.transform, on_pixels)  # pyright: ignore[reportAttributeAccessIssue]
    return dataset, loader


def _check_classes(
        tested: TestedModel,
        data: EvalDataSettings,
        dataset: Any,
        classes: Optional[Sequence[int]],
) -> None:
    # As far as both tell: their number, and that a name that both have is that of the same class.
    count, what = class_count(dataset), f'split {data.split!r}'
    if classes is None:
        check_class_count(dataset, tested.num_classes, what)
    elif count not in (None, len(classes)):
        meant = f'--valid-labels {data.valid_labels} has' if data.valid_labels else 'the suite takes'
        raise InputError(f'The {what} has {count} classes, {meant} {len(classes)}: give an index for each class.')
    if data.class_map:
        return  # by whoever knows better
    for name, label in (class_indices(dataset) or {}).items():
        index = label if classes is None else classes[label]
        if str(name) in tested.label_names and tested.label_names[index] != str(name):
            raise InputError(
                f'Class {str(name)!r} of the {what} is class {tested.label_names.index(str(name))} of the model, by '
                f'the names that are kept with its weights, and would be taken for class {index}, '
                f'{tested.label_names[index]!r}: say with --class-map which class each is.')


def _normalised_attack(
        attack: Optional[Attack],
        settings: EvalSettings,
        config: DataConfig,
        num_classes: int,
) -> Optional[Attack]:
    if attack is None:
        return None
    as_input_error(attack.check_classes, num_classes)
    attack = attack.normalised_by(*channel_normalisation(config))
    _logger.info(f'Attack through the {settings.model.route} route: {attack.describe()}')
    return attack


class _Labels:
    # What the labels of a data set mean, and what is measured by other labels than those of its folders.
    def __init__(
            self,
            settings: EvalDataSettings,
            dataset: Any,
            classes: Optional[Sequence[int]],
            device: torch.device,
    ):
        self.average = settings.metrics_avg
        self.valid = None if classes is None else torch.tensor(classes, device=device)
        # one count for clean images and one for adversarial ones
        self.real: Dict[str, Any] = {kind: _read_real_labels(settings.real_labels, dataset)
                     for kind in ('', 'adv_') if settings.real_labels}
        self.counts = ClassCounts()

    def add(self, kind: str, output: torch.Tensor, target: torch.Tensor) -> None:
        if kind in self.real:
            self.real[kind].add_result(output)
        if self.average:
            self.counts.add(kind, output, target)

    def accuracies(self) -> Dict[str, float]:
        # In percent, where the real labels take the place of the folders'.
        return {f'{kind}top{k}': real.get_accuracy(k=k)
                for kind, real in self.real.items() for k in (1, 5) if real.sample_idx}

    def scores(self, placement: Placement) -> Dict[str, float]:
        if not self.average:
            return {}
        scores = self.counts.scores(self.average, placement)
        return {f'{self.average}_{name}': round(scores[name], 4) for name in ('precision', 'recall', 'f1_score')}


def _rounded(metrics: Dict[str, float]) -> Dict[str, float]:
    rounded = {}
    for name in ('top1', 'top5'):
        rounded[name] = round(metrics[name], 4)
        rounded[f'{name}_err'] = round(100 - metrics[name], 4)
    return rounded


def read_valid_labels(settings: EvalDataSettings, num_classes: int) -> Optional[List[int]]:
    """The model's class of each label of a data set, where `--valid-labels` says it; else None.

    Raises:
        InputError: The file cannot be read, or the model has no such classes.
    """
    path = settings.valid_labels
    if not path:
        return None
    try:
        with open(path, encoding='utf-8') as file:
            labels = [int(line) for line in file if line.strip()]
        if not labels or not 0 <= min(labels) <= max(labels) < num_classes:
            raise ValueError(f'the model has the classes 0 to {num_classes - 1}')
        return labels
    except (OSError, ValueError) as error:
        raise InputError(f'--valid-labels {path} is not a file with one class index a line: {error}.') from error


def _read_real_labels(path: str, dataset: Any) -> RealLabelsImagenet:
    if not hasattr(dataset, 'filenames'):
        raise InputError('--real-labels needs the names of images, which this data set does not say: give the folder '
                         'with --data-dir.')
    names = dataset.filenames(basename=True)
    try:
        with open(path, encoding='utf-8') as file:
            known = {f'ILSVRC2012_val_{number:08d}.JPEG' for number in range(1, len(json.load(file)) + 1)}
        # timm wants a name for each label: those of images that are not evaluated come last
        return RealLabelsImagenet([*names, *sorted(known.difference(names))], real_json=path)
    except AssertionError as error:
        raise InputError(f'--real-labels {path} has labels of {len(known)} images of ImageNet\'s validation set, named '
                         f'ILSVRC2012_val_00000001.JPEG and so on; {names[0]} is none of them.') from error
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f'Cannot read --real-labels {path}: {error}.') from error
