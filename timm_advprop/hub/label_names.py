"""The names of a model's classes, as `config.json` tells them to timm and transformers."""
from typing import Any, List, Optional, Sequence

from timm.data import ImageNetInfo, infer_imagenet_subset

from ..errors import InputError

__all__ = ['names_of_labels']


def names_of_labels(names: Any, num_classes: int, given: bool = False) -> Optional[List[str]]:
    """The names of classes that are published.

    Args:
        names: The name of each label, as a user, a checkpoint or a pretrained cfg has them; None where there are none.
        num_classes: Number of classes of the model.
        given: A user gave them.

    Returns:
        The names; None where they are not known, do not fit, or are ImageNet's, which both libraries know themselves.

    Raises:
        InputError: A user gave others than one for each class.
    """
    if isinstance(names, dict):
        names = [names.get(label, names.get(str(label))) for label in range(num_classes)]
    fits = isinstance(names, (list, tuple)) and len(names) == num_classes > 0 and all(
        isinstance(name, str) and name for name in names)
    if given and not fits:
        raise InputError(f'label_names must have one name for each of the {num_classes} classes.')
    return list(names) if fits and not _are_imagenets(names) else None


def _are_imagenets(names: Sequence[str]) -> bool:
    subset = infer_imagenet_subset(dict(num_classes=len(names)))
    return bool(subset) and list(ImageNetInfo(subset).label_names()) == list(names)
