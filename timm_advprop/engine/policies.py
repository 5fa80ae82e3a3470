"""Augmentation policies, `--aa`: timm passes over parts of a name that it does not understand, and Pillow refuses one
operation of timm's."""
import re
from typing import Any, Optional

from PIL import Image
from timm.data.auto_augment import (
    NAME_TO_OP,
    augment_and_mix_transform,
    auto_augment_transform,
    posterize,
    rand_augment_transform,
)

__all__ = ['policy_problem', 'posterize_any']

_PART = re.compile(r'[a-z]+\d+(\.\d*)?|tweights|t3aw?')
_POLICIES = 'original, v0, 3a, rand-m9-mstd0.5-inc1 or augmix-m5-w4-d2'


def policy_problem(name: str) -> Optional[str]:
    """What is wrong with a policy; None where nothing is.

    Args:
        name: A kind and its options with their values, divided by dashes, as timm takes it; `''` for none.
    """
    if not name:
        return None
    kind, *options = name.split('-')
    for option in options:
        if not _PART.fullmatch(option) or re.fullmatch(r'p\d.*', option) and float(option[1:]) > 1:
            return f'must be a policy such as {_POLICIES} ({option!r} is no option of one)'
    make = dict(rand=rand_augment_transform, augmix=augment_and_mix_transform).get(kind, auto_augment_transform)
    try:
        make(name, dict(translate_const=1))
    except (AssertionError, ValueError) as error:
        return f'must be a policy such as {_POLICIES} ({error})'
    return None


def posterize_any(image: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
    """timm's operation, which its policies call for 0 bits, too: a black image, as Pillow before 13 makes it."""
    return posterize(image, bits_to_keep, **kwargs) if bits_to_keep else Image.new(image.mode, image.size)


NAME_TO_OP.update({name: posterize_any for name, operation in NAME_TO_OP.items() if operation is posterize})
