"""What timm makes of the name of an augmentation policy, `--aa`: it passes over parts that it does not understand."""
import re
from typing import Optional

from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

__all__ = ['policy_problem']

_PART = re.compile(r'[a-z]+\d+(\.\d*)?|t[a-z0-9]+')
_POLICIES = 'original, originalr, v0, v0r, 3a, rand-m9-mstd0.5-inc1 or augmix-m5-w4-d2'


def policy_problem(name: str) -> Optional[str]:
    """What is wrong with a policy; None where nothing is.

    Args:
        name: A kind and its options with their values, divided by dashes, as timm takes it; `''` for none.
    """
    if not name:
        return None
    kind, *options = name.split('-')
    for option in options:
        if not _PART.fullmatch(option) or option.startswith('p') and float(option[1:]) > 1:
            return f'must be a policy such as {_POLICIES} ({option or "-"!r} is no option of one)'
    make = dict(rand=rand_augment_transform, augmix=augment_and_mix_transform).get(kind, auto_augment_transform)
    try:
        make(name, dict(translate_const=1))
    except (AssertionError, ValueError) as error:
        return f'must be a policy such as {_POLICIES} ({error})'
    return None
