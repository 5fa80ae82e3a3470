"""Policies of augmentation: names that timm would half understand are refused, and all others run."""
import random

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

from timm_advprop.engine.policies import policy_problem, posterize_any


@pytest.mark.parametrize('name', [
    '', 'original', 'originalr', 'original-mstd0.5', 'v0', 'v0r-mstd0.5', '3a', 'rand', 'rand-m9-mstd0.5-inc1',
    'rand-m9-n3-p0.5-mmax12-tweights', 'rand-m9-t3a', 'rand-t3aw-mstd101', 'augmix', 'augmix-m5-w4-d2-a1.5-b1'])
def test_timms_policies_are_right(name):
    assert policy_problem(name) is None


@pytest.mark.parametrize('name, part', [
    ('rand-m', "'m'"), ('rand-m-9', "'m'"), ('rand-mstdinf', "'mstdinf'"), ('rand-m9-p1.5', "'p1.5'"),
    ('rand-tx', "'tx'"), ('rand--m9', "''"), ('rand-m9x', "'m9x'"), ('rand-m9.5', "'9.5'"),
    ('rand-k3', 'Unknown RandAugment'), ('rand-m9-prob0.5', 'Unknown RandAugment'), ('augmix-pos5', 'Unknown AugMix'),
    ('original-m3', 'Unknown AutoAugment'), ('augmix-n3', 'Unknown AugMix'), ('v1', 'Unknown AA policy v1'),
])
def test_a_name_that_is_half_understood_is_refused(name, part):
    problem = policy_problem(name)
    assert problem.startswith('must be a policy such as original, v0, 3a, ') and part in problem


@pytest.mark.parametrize('transform', [
    auto_augment_transform('v0', dict(translate_const=1)),
    rand_augment_transform('rand-m10-n15-p1-inc1', dict(translate_const=1)),
])
def test_policies_that_posterize_to_no_bits_run(transform):
    random.seed(0)
    np.random.seed(0)
    for _ in range(100):
        assert transform(Image.new('RGB', (4, 4), (200, 3, 100))).size == (4, 4)


def test_no_bits_are_a_black_image_and_others_as_timms():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)
    assert not np.asarray(posterize_any(image, 0)).any()
    assert (np.asarray(posterize_any(image, 3)) == np.asarray(image) // 32 * 32).all()
    assert posterize_any(image, 8) is image
