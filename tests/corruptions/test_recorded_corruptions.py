"""Corruptions, drawing what the authors' scripts drew, compared with what those scripts made of the same images."""
import numpy as np
import pytest

from tests.corruptions.drawn_images import drawn_image
from tests.corruptions.legacy_draws import LegacyDraws
from tests.corruptions.record_corruptions import NAMES, RECORD, SCRIPTS, checksum, places_of, seed_of
from timm_advprop.corruptions.corruptions import corrupt
from timm_advprop.corruptions.severities import ALL_CORRUPTIONS, SEVERITIES

# Draws from a generator of its own in the original: its statistics are compared in test_corruptions.
COMPARED = [name for name in ALL_CORRUPTIONS if name != 'impulse_noise']


@pytest.fixture(scope='module')
def record():
    with np.load(RECORD) as file:
        return dict(file)


def test_record_is_of_all_corruptions():
    assert set(NAMES) == set(ALL_CORRUPTIONS)
    assert RECORD.stat().st_size < 200_000


@pytest.mark.parametrize('size', SCRIPTS)
def test_image_is_the_recorded_one(record, size):
    assert checksum(drawn_image(size)) == record[f'checksum_{size}']


@pytest.mark.parametrize('size', SCRIPTS)
@pytest.mark.parametrize('name', COMPARED)
def test_pixels_are_those_of_the_original(record, name, size):
    """float32 and OpenCV's interpolation at 1/32 of a pixel in some versions may cost a grey level, rarely two."""
    image, places, of_name = drawn_image(size), places_of(size), NAMES.index(name)
    for severity in SEVERITIES:
        result = corrupt(image, name, severity, LegacyDraws(seed_of(size, severity)))
        expected = record[f'pixels_{size}'][of_name, severity - 1].astype(int)
        differences = np.abs(result.reshape(-1, 3)[places] - expected)
        assert differences.max() <= 3
        assert (differences > 1).mean() <= 0.03
        means = record[f'means_{size}'][of_name, severity - 1]
        np.testing.assert_allclose(result.mean(axis=(0, 1)), means, atol=0.35)


@pytest.mark.parametrize('size', SCRIPTS)
def test_recorded_impulse_noise_changes_as_many_pixels(record, size):
    image, of_name = drawn_image(size).reshape(-1, 3)[places_of(size)], NAMES.index('impulse_noise')
    for severity in SEVERITIES:
        ours = corrupt(drawn_image(size), 'impulse_noise', severity, np.random.default_rng(0)).reshape(-1, 3)
        ours, theirs = ((pixels != image).mean() for pixels in (
            ours[places_of(size)], record[f'pixels_{size}'][of_name, severity - 1]))
        assert ours == pytest.approx(theirs, abs=4 * (2 * theirs / image.size) ** .5)
