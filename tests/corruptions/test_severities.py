"""The table of severities: complete, the authors' at their sizes, scaled elsewhere."""
from statistics import fmean

import pytest

from timm_advprop.corruptions.severities import (
    ALEXNET_ERRORS,
    ALL_CORRUPTIONS,
    CORRUPTIONS,
    GROUPS,
    SEVERITIES,
    parameters_for,
)
from timm_advprop.errors import InputError


def test_fifteen_corruptions_in_four_groups_and_four_more():
    assert [len(names) for names in GROUPS.values()] == [3, 4, 4, 4, 4]
    assert len(set(ALL_CORRUPTIONS)) == 19
    assert set(CORRUPTIONS) == set(ALL_CORRUPTIONS) - set(GROUPS['extra'])


def test_alexnet_has_an_error_for_each():
    assert set(ALEXNET_ERRORS) == set(ALL_CORRUPTIONS)
    assert fmean(ALEXNET_ERRORS[name] for name in CORRUPTIONS) == pytest.approx(0.788993, abs=1e-6)


@pytest.mark.parametrize('name', ALL_CORRUPTIONS)
def test_every_severity_has_its_parameters(name):
    for size in (32, 64, 224):
        of_severities = [parameters_for(name, severity, size, size) for severity in SEVERITIES]
        assert {scale for scale, _ in of_severities} == {1}
        assert len({len(parameters) for _, parameters in of_severities}) == 1
        assert len({parameters for _, parameters in of_severities}) == 5


@pytest.mark.parametrize('height, width, size', [
    (28, 28, 32), (45, 45, 32), (46, 46, 64), (119, 119, 64), (120, 120, 224), (600, 600, 224), (300, 28, 32),
    (64, 500, 64),
])
def test_nearest_size_in_ratio_to_the_shorter_side(height, width, size):
    scale, parameters = parameters_for('shot_noise', 1, height, width)
    assert scale == min(height, width) / size
    assert parameters == {32: (500,), 64: (250,), 224: (60,)}[size]


def test_a_misspelt_name_is_told_with_the_near_ones():
    with pytest.raises(InputError, match=r"no corruption 'gausian_noise' \(did you mean gaussian_noise"):
        parameters_for('gausian_noise', 1, 32, 32)


@pytest.mark.parametrize('severity', [0, 6, -1, 2.5, 2., True, '3', None])
def test_severity_is_one_to_five(severity):
    with pytest.raises(InputError, match='severity of fog must be 1, 2, 3, 4 or 5, got'):
        parameters_for('fog', severity, 32, 32)
