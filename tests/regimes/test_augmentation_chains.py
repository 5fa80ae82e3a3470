"""Chains of augmentations: each operation against PIL's, and which images pass which."""
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.regimes.source_checks import drawn_pixels
from timm_advprop.errors import InputError
from timm_advprop.regimes import augmentation_chains
from timm_advprop.regimes.augmentation_chains import OPERATIONS, ChainSettings, augmented_chains

pytestmark = pytest.mark.usefixtures('one_thread')


def affine(image, *coefficients):
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR)


# As the authors of AugMix have them, of the level in 0–1 and the sign.
BY_PIL = {
    'autocontrast': lambda image, level, sign: ImageOps.autocontrast(image),
    'equalize': lambda image, level, sign: ImageOps.equalize(image),
    'posterize': lambda image, level, sign: ImageOps.posterize(image, 4 - int(4 * level)),
    'solarize': lambda image, level, sign: ImageOps.solarize(image, 256 - int(256 * level)),
    'rotate': lambda image, level, sign: image.rotate(sign * int(30 * level), resample=Image.Resampling.BILINEAR),
    'shear_x': lambda image, level, sign: affine(image, 1, sign * 0.3 * level, 0, 0, 1, 0),
    'shear_y': lambda image, level, sign: affine(image, 1, 0, 0, sign * 0.3 * level, 1, 0),
    'translate_x': lambda image, level, sign: affine(image, 1, 0, sign * int(level * image.width / 3), 0, 1, 0),
    'translate_y': lambda image, level, sign: affine(image, 1, 0, 0, 0, 1, sign * int(level * image.height / 3)),
}


def test_the_operations_are_those_of_augmix():
    assert set(OPERATIONS) == set(BY_PIL)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('height, width', [(32, 32), (24, 40)])
@pytest.mark.parametrize('name', OPERATIONS)
def test_an_operation_does_what_pils_does(name, height, width, channels):
    pixels = drawn_pixels(4, channels, 40)[..., :height, :width]
    levels, signs = torch.tensor([0.05, 0.3, 0.63, 0.97]), torch.tensor([1., -1., 1., -1.])
    made = (OPERATIONS[name](pixels, levels, signs) * 255).round()
    inner = slice(2, -2) if name in ('rotate', 'shear_x', 'shear_y') else slice(None)  # PIL's edges are sharp
    for i in range(4):
        array = (pixels[i] * 255).round().byte().permute(1, 2, 0).numpy()
        image = Image.fromarray(array.squeeze(2) if channels == 1 else array)
        expected = np.asarray(BY_PIL[name](image, levels[i].item(), signs[i].item())).reshape(height, width, channels)
        off = np.abs(made[i].permute(1, 2, 0).numpy() - expected.astype(float))[inner, inner]
        near_edge = 0.1 if inner != slice(None) else 0  # of the image, which PIL does not blend with black
        assert (off > 2).mean() <= near_edge, (name, levels[i])


@pytest.mark.parametrize('name', OPERATIONS)
def test_images_of_a_batch_have_magnitudes_of_their_own(name):
    pixels, levels = drawn_pixels(3), torch.tensor([0.2, 0.5, 0.9])
    signs = torch.tensor([1., -1., 1.])
    together = OPERATIONS[name](pixels, levels, signs)
    for i in range(3):
        alone = OPERATIONS[name](pixels[i:i + 1], levels[i:i + 1], signs[i:i + 1])
        torch.testing.assert_close(together[i:i + 1], alone, rtol=0, atol=1e-6)


def counted(monkeypatch):
    """Replaces the operations by one that adds 1/64, and 16 of which each draws its own."""
    seen = []

    def operation(number):
        def add(pixels, level, sign):
            seen.append((number, len(pixels), level, sign))
            return pixels + 1 / 64
        return add
    monkeypatch.setattr(augmentation_chains, 'OPERATIONS', {str(number): operation(number) for number in range(9)})
    return seen


def test_other_channels_than_those_of_grey_and_coloured_images_are_refused():
    with pytest.raises(InputError, match='1 or 3 channels, got 4'):
        augmented_chains(torch.zeros(2, 4, 8, 8), ChainSettings())


@pytest.mark.parametrize('depth', [1, 2, 4])
def test_every_image_passes_as_many_operations_as_its_chain_is_deep(monkeypatch, depth):
    seen = counted(monkeypatch)
    chains = augmented_chains(torch.zeros(5, 3, 8, 8), ChainSettings(width=2, depth=depth))
    assert chains.shape == (5, 2, 3, 8, 8) and (chains * 64 == depth).all()
    assert sum(count for _, count, *_ in seen) == 10 * depth


def test_depth_operation_magnitude_and_sign_are_drawn_for_each_chain_of_each_image(monkeypatch):
    seen = counted(monkeypatch)
    chains = augmented_chains(torch.zeros(300, 1, 8, 8), ChainSettings(width=3, severity=5))
    depths = (chains[..., 0, 0, 0] * 64).long()
    assert [(depths == depth).float().mean().item() for depth in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.06)
    assert (depths.amin(dim=1) < depths.amax(dim=1)).float().mean() > 0.7  # chains of an image differ
    counts = torch.zeros(9)
    for number, count, *_ in seen:
        counts[number] += count
    assert (counts / counts.sum() - 1 / 9).abs().max() < 0.04
    levels, signs = (torch.cat(values) for values in list(zip(*seen))[2:])
    assert levels.min() >= 0.01 and levels.max() <= 0.5 and levels.mean().item() == pytest.approx(0.255, abs=0.02)
    assert set(signs.tolist()) == {-1, 1} and abs(signs.mean().item()) < 0.1


def test_images_that_have_passed_their_chain_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(augmentation_chains, 'OPERATIONS', {'invert': lambda pixels, level, sign: 1 - pixels})
    pixels = drawn_pixels(64)
    chains = augmented_chains(pixels, ChainSettings(width=2)).unbind(1)
    odd, even = (torch.tensor([[torch.allclose(chain[i], image, rtol=0, atol=1e-6) for chain in chains]
                               for i, image in enumerate(images)]) for images in (1 - pixels, pixels))
    assert (odd ^ even).all() and odd.float().mean().item() == pytest.approx(2 / 3, abs=0.15)


def test_the_pixels_are_left_alone_and_the_chains_in_range():
    pixels = drawn_pixels(8)
    before = pixels.clone()
    chains = augmented_chains(pixels, ChainSettings(severity=10, depth=5))
    assert torch.equal(pixels, before)
    assert chains.min() >= 0 and chains.max() <= 1 + 1e-6
    assert augmented_chains(pixels[:0], ChainSettings()).shape == (0, 3, 3, 32, 32)


@pytest.mark.parametrize('wrong, words', [
    (dict(width=0), 'width must be at least 1'), (dict(depth=0), 'depth must be at least 1, or -1'),
    (dict(depth=-2), 'depth must be at least -1'), (dict(severity=11), 'severity must be from 0.1 to 10'),
    (dict(severity=0), 'severity must be from 0.1 to 10')])
def test_settings_out_of_range_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        ChainSettings(**wrong)
