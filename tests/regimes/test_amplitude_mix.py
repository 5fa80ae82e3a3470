"""Amplitude mix: phase of the image, amplitude of both."""
import numpy as np
import pytest
import torch

from tests.regimes.source_checks import drawn_pixels, in_pixels, in_units, normalisation
from timm_advprop.regimes import AmplitudeMix

pytestmark = pytest.mark.usefixtures('one_thread')


def draws(count, strength=1.):
    """What it draws after the seed 0."""
    torch.manual_seed(0)
    return torch.randperm(count), torch.rand(count, 1, 1, 1).flatten() * strength


@pytest.mark.parametrize('channels, side', [(3, 32), (1, 27)])
@pytest.mark.parametrize('strength', [1., 0.3])
def test_the_spectrum_has_the_phase_of_the_image_and_a_mixed_amplitude(channels, side, strength):
    pixels = drawn_pixels(5, channels, side)
    order, weight = draws(5, strength)
    torch.manual_seed(0)
    made, _ = AmplitudeMix(strength=strength, **normalisation(channels))(None, in_units(pixels), torch.arange(5))
    for i, result in enumerate(in_pixels(made)):
        own, other = (np.fft.fft2(pixels[j].double().numpy()) for j in (i, order[i]))
        amplitude = (1 - weight[i].item()) * np.abs(own) + weight[i].item() * np.abs(other)
        expected = np.fft.ifft2(amplitude * np.exp(1j * np.angle(own))).real.clip(0, 1)
        assert np.abs(result.numpy() - expected).max() < 1e-4
    assert weight.max() <= strength


def test_no_strength_changes_nothing():
    images = in_units(drawn_pixels())
    made, target = AmplitudeMix(strength=0, **normalisation(3))(None, images, torch.arange(6))
    torch.testing.assert_close(made, images, rtol=0, atol=1e-4)
    assert torch.equal(target, torch.arange(6))


def test_an_image_without_any_phase_stays_empty():
    pixels = drawn_pixels(4)
    pixels[0] = 0
    made, _ = AmplitudeMix(**normalisation(3))(None, in_units(pixels), torch.zeros(4))
    assert in_pixels(made)[0].abs().max() < 1e-6


def test_what_amplitude_mix_says_of_itself():
    assert AmplitudeMix(strength=0.5).describe() == 'amplitude mix with another image, up to 0.5'
    assert AmplitudeMix().facts() == dict(trained_on='amplitude-mix', strength=1)
    assert AmplitudeMix().relative_cost() == 0
    with pytest.raises(ValueError, match='strength must be from 0 to 1, got 2'):
        AmplitudeMix(strength=2)
