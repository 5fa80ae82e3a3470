import sys

import numpy as np
import pytest

from timm_advprop.engine.example_images import builtin_images, spread_samples


def test_samples_are_spread_over_a_data_set():
    assert spread_samples(range(101), 5) == [0, 25, 50, 75, 100]
    assert spread_samples(range(3), 5) == [0, 1, 2]
    assert spread_samples(iter(range(100)), 3) == [0, 1, 2]  # which has no length


def test_ten_classes_get_digits_and_others_photographs():
    digits, photos = builtin_images(10), builtin_images(1000)
    assert [(image.mode, image.size) for image in digits] == [('L', (8, 8))] * 10
    assert {np.asarray(image).max() for image in digits} <= {239, 255}
    assert [(image.mode, image.size) for image in photos] == [('RGB', (640, 427))] * 2


@pytest.mark.parametrize('num_classes', [10, 1000])
def test_without_scikit_learn_there_are_none(monkeypatch, num_classes):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    assert builtin_images(num_classes) == []
