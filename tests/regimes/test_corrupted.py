"""Corrupted images: which corruptions, at which severities, of which pixels."""
import numpy as np
import pytest
import torch

from tests.regimes.source_checks import drawn_pixels, in_pixels, in_units, normalisation
from timm_advprop.corruptions import CORRUPTIONS, corrupt
from timm_advprop.errors import InputError
from timm_advprop.regimes import AdvPropTask, CorruptedImages, corrupted
from timm_advprop.regimes.regime_settings import RegimeSettings

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def seen(monkeypatch):
    """What is asked of `corrupt`."""
    asked = []

    def note(image, name, severity, rng):
        asked.append((image.copy(), name, severity, rng.bit_generator.state['state']['state']))
        return 255 - image

    monkeypatch.setattr(corrupted, 'corrupt', note)
    return asked


@pytest.mark.parametrize('channels', [1, 3])
def test_an_image_is_corrupted_as_whole_grey_levels(seen, channels):
    pixels = drawn_pixels(4, channels)
    made, _ = CorruptedImages(**normalisation(channels))(None, in_units(pixels), torch.zeros(4))
    for (image, *_), expected in zip(seen, pixels):
        assert image.shape == (32, 32, channels) and image.dtype == np.uint8
        assert (image == (expected * 255).round().byte().permute(1, 2, 0).numpy()).all()
    torch.testing.assert_close(in_pixels(made), 1 - pixels, rtol=0, atol=1e-5)


def test_name_severity_and_seed_are_drawn_for_each_image(seen):
    source = CorruptedImages(severities=(2, 4), names=('fog', 'snow', 'saturate'), **normalisation(1))
    source(None, in_units(torch.rand(600, 1, 8, 8)), torch.zeros(600))
    _, names, severities, seeds = zip(*seen)
    pairs = {(name, severity): 0 for name in ('fog', 'snow', 'saturate') for severity in (2, 3, 4)}
    for pair in zip(names, severities):
        pairs[pair] += 1
    assert min(pairs.values()) > 600 / 9 * 0.6 and max(pairs.values()) < 600 / 9 * 1.5
    assert len(set(seeds)) == 600


def test_images_are_what_the_corruption_makes_of_them():
    pixels = drawn_pixels(2)
    made, _ = CorruptedImages(names=('contrast',), severities=(3, 3), **normalisation(3))(
        None, in_units(pixels), torch.zeros(2))
    for image, result in zip(pixels, in_pixels(made)):
        array = (image * 255).round().byte().permute(1, 2, 0).numpy()
        expected = corrupt(array, 'contrast', 3, np.random.default_rng(0))  # which draws nothing
        torch.testing.assert_close(result * 255, torch.from_numpy(expected).permute(2, 0, 1).float(), rtol=0, atol=1e-3)


def test_values_out_of_the_range_of_pixels_are_clamped(seen):
    images = in_units(drawn_pixels(1))
    images[0, :, :4], images[0, :, 4:8] = 9., -9.
    made, _ = CorruptedImages(**normalisation(3))(None, images, torch.zeros(1))
    image = seen[0][0]
    assert (image[:4] == 255).all() and (image[4:8] == 0).all()
    values = in_pixels(made)
    assert values.min() >= -1e-6 and values.max() <= 1 + 1e-6


def test_numpys_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    CorruptedImages(**normalisation(3))(None, in_units(drawn_pixels()), torch.zeros(6))
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize('settings, words', [
    ({}, 'corrupted images (all 15), severity 1–3'),
    (dict(severities=(5, 5)), 'corrupted images (all 15), severity 5'),
    (dict(names=[name for name in CORRUPTIONS if name not in ('fog', 'snow')]),
     'corrupted images (all 15 but snow, fog), severity 1–3'),
    (dict(names=['fog', 'saturate'], severities=[1, 2]), 'corrupted images (fog, saturate), severity 1–2'),
])
def test_the_log_says_which_corruptions_are_trained_on(settings, words):
    source = CorruptedImages(**settings)
    assert source.describe() == words
    assert source.facts() == dict(
        trained_on='corruption', severities=list(source.severities), names=list(source.names))
    assert source.relative_cost() == 0


@pytest.mark.parametrize('wrong, words', [
    (dict(severities=(0, 3)), 'severities must be from 1 to 5'), (dict(severities=(3, 1)), 'severities must rise'),
    (dict(severities=(1,)), 'severities must be 2 values'), (dict(severities=(1., 2.5)), 'must be a whole number'),
    (dict(names=('fogg',)), 'names must be one of gaussian_noise'), (dict(names=()), 'names must be')])
def test_settings_out_of_range_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        CorruptedImages(**wrong)


def test_what_is_not_installed_is_said_when_a_task_is_built(monkeypatch):
    def missing():
        raise InputError("Corruptions need more (cv2): pip install 'timm-advprop[robustness]'.")

    monkeypatch.setattr(corrupted, 'check_libraries', missing)
    source, = AdvPropTask.sources_of_aux_norms(RegimeSettings(named=('corruption',)))  # as a model card asks
    assert source.facts()['trained_on'] == 'corruption'
    with pytest.raises(InputError, match='timm-advprop.robustness'):
        source.normalised_by((0.5,), (0.5,))
