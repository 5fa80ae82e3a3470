"""What the classes of a model are called."""
from typing import Any, Mapping, Optional, Tuple

import torch.nn as nn
from timm.data import ImageNetInfo
from torch.utils.data import Dataset

from .datasets import label_names

__all__ = ['class_labels', 'names_by_label']

_IMAGENET_CLASSES = 1000


def class_labels(model: nn.Module, dataset: Optional[Dataset] = None) -> Tuple[str, ...]:
    """Names of a model's classes, for people.

    They are those that were published with the weights, else those of the data set, else ImageNet's for a model of
    1,000 classes, else numbers. Names of another number of classes than the model's are of something else.

    Args:
        model: A timm model with `num_classes` and `pretrained_cfg`.
        dataset: A data set of its classes.
    """
    count: Any = model.num_classes
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    known = (_published(cfg, count), _of_dataset(dataset, count), _imagenet(count))
    return next((names for names in known if len(names) == count), tuple(map(str, range(count))))


def names_by_label(names: Any, count: int) -> Tuple[str, ...]:
    """The names of classes in the order of labels, as a checkpoint or published weights say them; none where they do
    not.

    Args:
        names: A list, or a mapping from labels, which JSON writes as texts.
        count: Number of classes that a mapping is read for.
    """
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        names = [by_number.get(str(number), number) for number in range(count)]
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()


def _published(cfg: Mapping[str, Any], count: int) -> Tuple[str, ...]:
    descriptions = cfg.get('label_descriptions')
    descriptions = descriptions if isinstance(descriptions, dict) else {}
    return tuple(str(descriptions.get(name, name)) for name in names_by_label(cfg.get('label_names'), count))


def _of_dataset(dataset: Optional[Dataset], count: int) -> Tuple[str, ...]:
    return () if dataset is None else tuple(label_names(dataset, count) or ())


def _imagenet(count: int) -> Tuple[str, ...]:
    if count != _IMAGENET_CLASSES:
        return ()
    info = ImageNetInfo()
    return tuple(info.index_to_description(number).split(',')[0] for number in range(count))  # the first of synonyms
