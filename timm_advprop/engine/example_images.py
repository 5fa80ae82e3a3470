"""A few images to look at: of a data set, or of those that need no download."""
import itertools
from typing import Any, List, Tuple

import numpy as np
import torch
from PIL import Image

__all__ = ['builtin_images', 'spread_samples']


def spread_samples(dataset: Any, count: int) -> List[Tuple[Any, Any]]:
    """Samples of a data set, evenly spread over it; the first ones of one that has no length."""
    if not hasattr(dataset, '__len__'):
        return list(itertools.islice(dataset, count))
    chosen = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().tolist()
    return [dataset[index] for index in chosen]


def builtin_images(num_classes: int) -> List[Image.Image]:
    """Images of scikit-learn: ten digits for a model of ten classes, else its photographs. None where it is missing.

    Args:
        num_classes: Classes of the model.
    """
    try:
        from sklearn import datasets
    except ImportError:
        return []
    if num_classes != 10:
        return [Image.fromarray(photo) for photo in datasets.load_sample_images().images]
    digits: Any = datasets.load_digits()  # the first ten show 0 to 9, in 17 shades of grey
    return [Image.fromarray(np.round(digit * 255 / 16).astype(np.uint8)) for digit in digits.images[:10]]
