"""Corruptions of arrays: any size, grey and coloured, and what each is by its definition."""
import math
import sys

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.corruptions.drawn_images import drawn_image
from timm_advprop.corruptions import blurs, corruptions, digital, noises, weather
from timm_advprop.corruptions.corruptions import check_libraries, corrupt
from timm_advprop.corruptions.severities import ALL_CORRUPTIONS, SEVERITIES
from timm_advprop.errors import InputError

LUMA = np.array([.299, .587, .114])
NOISES = ('gaussian_noise', 'shot_noise', 'impulse_noise', 'speckle_noise')
# By the authors' parameters a higher severity may change an image less: the affine part of `elastic_transform` gets
# smaller, `saturate` first takes colours away, `spatter` changes from water to mud, `frost` keeps less of the image,
# `glass_blur` reaches further in fewer rounds, `snow` has smaller flakes at 3 than at 2, `pixelate` has squares that
# fit better or worse; the third and fourth `motion_blur` of 32 px are the same but for a ten-thousandth.
NOT_RISING = ('elastic_transform', 'saturate', 'spatter', 'frost', 'glass_blur', 'snow', 'pixelate', 'motion_blur')
SIZES = [(28, 28), (32, 32), (40, 75), (96, 64), (224, 224), (320, 240)]


def rng(seed=0):
    return np.random.default_rng(seed)


def change(image, name, severity):
    return np.abs(corrupt(image, name, severity, rng()).astype(float) - image).mean()


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('name', ALL_CORRUPTIONS)
@pytest.mark.parametrize('height, width', [*SIZES, pytest.param(600, 640, marks=pytest.mark.slow)])
def test_kind_and_size_stay_and_the_given_image_too(name, height, width):
    image = drawn_image(height, width)
    for given in (image, image[..., 0], image[..., :1]):
        before = given.copy()
        result = corrupt(given, name, 3, rng())
        assert result.dtype == np.uint8 and result.shape == given.shape
        assert np.array_equal(given, before)
        assert not np.array_equal(result, given) or name == 'saturate'  # which leaves grey pixels as they are


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('level', [0, 128, 255])
@pytest.mark.parametrize('name', ALL_CORRUPTIONS)
def test_flat_images_at_every_severity(name, level):
    image = np.full((28, 33, 3), level, np.uint8)
    for severity in SEVERITIES:
        result = corrupt(image, name, severity, rng())
        assert result.shape == image.shape
        if name.endswith('blur') or name in ('contrast', 'pixelate', 'jpeg_compression', 'elastic_transform'):
            np.testing.assert_allclose(result, image, atol=1)


@pytest.mark.parametrize('size', [28, 64, 160, 224])
@pytest.mark.parametrize('name', [name for name in ALL_CORRUPTIONS if name not in NOT_RISING])
def test_a_higher_severity_changes_an_image_more(name, size):
    image = drawn_image(size)
    changes = [change(image, name, severity) for severity in SEVERITIES]
    assert changes == sorted(set(changes))


@pytest.mark.parametrize('size', [28, 160, 320])
@pytest.mark.parametrize('name', [name for name in ALL_CORRUPTIONS if name not in ('pixelate', 'glass_blur')])
def test_strength_hardly_depends_on_the_size(name, size):
    # against the nearest of the authors' sizes; squares and shifted pixels depend on whole numbers
    nearest = {28: 32, 160: 224, 320: 224}[size]
    for severity in SEVERITIES:
        ratio = change(drawn_image(size), name, severity) / change(drawn_image(nearest), name, severity)
        assert 0.4 < ratio < 2.5, severity


@pytest.mark.parametrize('name', [name for name in ALL_CORRUPTIONS if name not in NOISES])
def test_a_grey_image_is_one_of_three_equal_channels(name):
    grey = drawn_image(64)[..., 0]
    for severity in (1, 5):
        coloured = corrupt(np.repeat(grey[..., None], 3, axis=2), name, severity, rng())
        result = corrupt(grey, name, severity, rng())
        np.testing.assert_allclose(result, coloured @ LUMA, atol=1.01)


@pytest.mark.parametrize('name', ALL_CORRUPTIONS)
def test_what_is_drawn_follows_from_the_generator_alone(name):
    image = drawn_image(32)
    assert np.array_equal(corrupt(image, name, 4, rng(1)), corrupt(image, name, 4, rng(1)))
    drawn = name not in ('defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate', 'jpeg_compression',
                         'gaussian_blur', 'saturate')
    assert drawn != np.array_equal(corrupt(image, name, 4, rng(1)), corrupt(image, name, 4, rng(2)))


# Function, parameters, and what they come to at twice the scale: lengths doubled.
SCALED = [
    (blurs.gaussian_blur, (1.5,), (3.,)),
    (blurs.motion_blur, (6, 2.), (12, 4.)),
    (blurs.glass_blur, (.7, 2, 2), (1.4, 4, 2)),
    (weather.snow, (.3, .3, 1.5, .5, 5, 2., .8), (.3, .3, 3., .5, 10, 4., .8)),
    (weather.frost, (.8, .4, .2), (.8, .4, .4)),
    (weather.fog, (1., 2., 64), (1., 2., 128)),
    (weather.spatter, (.65, .3, 2., .65, .7, 'mud'), (
        .65, .3 * blurs.std_after_gaussian(2.) / blurs.std_after_gaussian(4.), 4., .65, 1.4, 'mud')),
    (digital.elastic_transform, (9., 2., 3.), (
        18 * blurs.std_after_gaussian(2.) / blurs.std_after_gaussian(4.), 4., 6.)),
]


@pytest.mark.parametrize('function, parameters, doubled', SCALED)
def test_lengths_are_multiplied_by_the_scale(function, parameters, doubled):
    x = drawn_image(60).astype(np.float32) / 255
    result = function(x, rng(), 2., *parameters)
    np.testing.assert_allclose(result, function(x, rng(), 1., *doubled), atol=1e-4)
    assert np.abs(result - function(x, rng(), 1., *parameters)).max() > .05


def test_flakes_are_not_smaller_than_a_pixel():
    x, others = drawn_image(60).astype(np.float32) / 255, (.5, 5, 2., .8)
    result = weather.snow(x, rng(), .5, .3, .3, 1, *others)
    assert np.array_equal(result, weather.snow(x, rng(), .5, .3, .3, 2, *others))


@pytest.mark.parametrize('sigma', [.1, .4, .65, 2.])
def test_gaussian_filter_is_that_of_scipy(sigma):
    x = rng().random((20, 24, 3), dtype=np.float32)
    expected = gaussian_filter(x, (sigma, sigma, 0), mode='nearest', truncate=4)
    np.testing.assert_allclose(blurs.gaussian(x, sigma), expected, atol=1e-5)


def test_normal_noise():
    x = np.full((200, 200, 3), .25, np.float32)
    for function, expected in ((noises.gaussian_noise, .2), (noises.speckle_noise, .05)):
        noise = function(x, rng(), 1., .2) - x
        assert noise.mean() == pytest.approx(0, abs=4 * expected / math.sqrt(x.size))
        assert noise.std() == pytest.approx(expected, rel=.01)


def test_shot_noise_is_as_strong_as_the_root_of_the_light():
    for light in (.1, .8):
        x = np.full((200, 200, 3), light, np.float32)
        result = noises.shot_noise(x, rng(), 1., 30)
        assert result.mean() == pytest.approx(light, rel=.01)
        assert result.var() == pytest.approx(light / 30, rel=.03)


def test_impulse_noise_is_as_much_salt_as_pepper():
    x = np.full((300, 300, 3), .5, np.float32)
    result = noises.impulse_noise(x, rng(), 1., .1)
    assert set(np.unique(result)) == {0, .5, 1}
    for value in (0, 1):
        assert (result == value).mean() == pytest.approx(.05, abs=4 * math.sqrt(.05 / x.size))


@pytest.mark.parametrize('reach', [1, 3])
def test_copies_of_glass_blur_are_made_one_after_another(reach):
    height, width, random = 14, 17, rng(3)
    places = [(row, column) for row in range(height - reach, reach, -1) for column in range(width - reach, reach, -1)]
    steps = random.integers(-reach, reach, size=(len(places), 2))
    image = np.arange(height * width).reshape(height, width)
    for (row, column), (right, down) in zip(places, steps):
        image[row, column] = image[row + down, column + right]
    target = np.array([row * width + column for row, column in places])
    origin = blurs._after_copies(target, target + steps[:, 1] * width + steps[:, 0], height * width)
    assert np.array_equal(origin, image.ravel())


def test_smear_is_a_half_gaussian_along_a_ray():
    point = np.zeros((41, 41, 1), np.float32)
    point[20, 20] = 1
    smeared = blurs.smeared(point, 10, 3., 0)[..., 0]  # each pixel sees what is to the right of it
    expected = np.exp(-np.arange(21) ** 2 / 18)
    np.testing.assert_allclose(smeared[20, 20::-1], expected / expected.sum(), atol=2e-4)
    assert smeared.sum() == pytest.approx(1, abs=1e-5) and smeared[20].sum() == pytest.approx(1, abs=1e-5)
    diagonal = blurs.smeared(point, 10, 3., -45)[..., 0]  # upwards and to the right
    assert diagonal[23, 17] > 0.05 and diagonal[17, 17] == 0


def test_zoom_lays_corners_on_corners():
    ramp = np.arange(33, dtype=np.float32)[:, None] + np.zeros((33, 33), np.float32)
    expected = 5 + np.linspace(0, 21, 33)  # the middle 22 rows as 33
    np.testing.assert_allclose(blurs.clipped_zoom(ramp, 1.5)[:, 5], expected, rtol=1e-5)
    blurred = blurs.zoom_blur(ramp[..., None], rng(), 1., 1.6, .5)[:, 5, 0]
    np.testing.assert_allclose(blurred, (2 * ramp[:, 5] + expected) / 3, atol=1 / 32)


def test_disc_of_another_scale_has_as_many_times_more_pixels():
    assert np.count_nonzero(blurs._disc(6, .01, 1.)) == 113
    widths = [1 / np.square(blurs._disc(3, .01, scale)).sum() for scale in (.9, 1., 1.1, 1.5, 2.)]
    np.testing.assert_allclose(np.array(widths) / widths[1], np.square([.9, 1., 1.1, 1.5, 2.]), rtol=.08)


def test_rim_of_a_disc():
    assert [len(blurs._disc(radius, .5, 1.)) for radius in (6, 9)] == [15, 19]  # the authors' kernel ends at 9
    center = cv2.getGaussianKernel(3, .35)[1, 0] ** 2
    assert blurs._disc(.3, .4, .875).max() == pytest.approx(center)
    for radius in (3, 8, 10):
        assert blurs._disc(radius, .5, 1.2).sum() == pytest.approx(1, abs=1e-6)


def test_light_in_a_drop_is_even_more_than_twenty_pixels_from_its_edge():
    drop = np.zeros((120, 120), np.float32)
    drop[10:110, 10:110] = .8
    light = weather._refraction(drop)
    assert np.ptp(light[36:84, 36:84]) == 0 and np.ptp(light[20:30, 60]) > 0


def test_wide_gaussian_filter_as_matrices_is_that_of_opencv():
    noise = rng().random((40, 56), dtype=np.float32)
    narrow = blurs.gaussian(noise, 5., truncate=3, border=cv2.BORDER_REFLECT)
    down, right = (digital._gaussian_matrix(side, 5.) for side in noise.shape)
    np.testing.assert_allclose(down @ noise @ right.T, narrow, atol=1e-5)
    np.testing.assert_allclose(digital._gaussian_matrix(9, 50.).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize('sigma', [.2, .5, 1., 4.])
def test_standard_deviation_of_smoothed_noise(sigma):
    noise = blurs.gaussian(rng().standard_normal((500, 500), dtype=np.float32), sigma)
    assert noise.std() == pytest.approx(blurs.std_after_gaussian(sigma), rel=.05)


def test_fog_covers_a_long_image_as_a_square_of_its_side():
    clear = np.full((64, 256, 1), .5, np.float32)
    foggy = weather.fog(clear, rng(), 1., 1., 2., 64)[..., 0]
    square = weather.fog(np.full((256, 256, 1), .5, np.float32), rng(), 4., 1., 2., 64)[..., 0]
    assert np.array_equal(foggy, square[:64])


def test_frost_textures_are_enlarged_for_large_images():
    assert [texture.shape[2] for texture in weather.frost_textures()] == [3] * 5
    x = np.zeros((700, 1000, 3), np.float32)
    assert all(weather.frost(x, rng(seed), 1., 1., 1., 1.).shape == x.shape for seed in range(5))


def test_brightness_and_saturation_of_a_colour():
    x = np.full((8, 8, 3), (.4, .2, .1), np.float32)  # value .4, saturation .75
    np.testing.assert_allclose(weather.brightness(x, rng(), 1., .2)[0, 0], (.6, .3, .15), rtol=1e-5)
    np.testing.assert_allclose(digital.saturate(x, rng(), 1., .5, .125)[0, 0], (.4, .8 / 3, .2), rtol=1e-5)
    np.testing.assert_allclose(weather.brightness(0 * x, rng(), 1., .2)[0, 0], .2, rtol=1e-5)
    grey = np.full((8, 8, 3), .5, np.float32)
    np.testing.assert_allclose(digital.saturate(grey, rng(), 1., 2., .2)[0, 0], (.5, .4, .4), rtol=1e-5)


@pytest.mark.parametrize('image', [
    np.zeros((32, 32, 3), np.float32), np.zeros((32, 32, 4), np.uint8), np.zeros((1, 32, 32, 3), np.uint8),
    np.zeros((32, 4), np.uint8), np.zeros((32, 32, 0), np.uint8),
])
def test_images_of_another_kind_are_named(image):
    with pytest.raises(InputError, match=r'Corruptions take .* got .*\[.*32'):
        corrupt(image, 'fog', 1, rng())


def test_opencv_runs_on_one_thread_and_keeps_what_was_set(monkeypatch):
    before, seen = cv2.getNumThreads(), []

    def fails(*args):
        seen.append(cv2.getNumThreads())
        raise ArithmeticError
    monkeypatch.setattr(corruptions, '_functions', lambda: {'fog': fails})
    try:
        cv2.setNumThreads(2)
        with pytest.raises(ArithmeticError):
            corrupt(drawn_image(32), 'fog', 1, rng())
        assert (seen, cv2.getNumThreads()) == ([1], 2)
    finally:
        cv2.setNumThreads(before)


def test_libraries_that_are_missing_are_named_with_the_extra(monkeypatch):
    check_libraries()
    try:
        corruptions._functions.cache_clear()
        weather.frost_textures.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(weather, 'find_spec', lambda name: None)
            with pytest.raises(InputError, match=r"torch-uncertainty-assets.*pip install 'timm-advprop\[robustness\]'"):
                check_libraries()
        for module in corruptions._MODULES:
            monkeypatch.delitem(sys.modules, f'timm_advprop.corruptions.{module}')
        monkeypatch.setitem(sys.modules, 'cv2', None)
        with pytest.raises(InputError, match=r"cv2.*pip install 'timm-advprop\[robustness\]'"):
            corrupt(drawn_image(32), 'fog', 1, rng())
    finally:
        corruptions._functions.cache_clear()
