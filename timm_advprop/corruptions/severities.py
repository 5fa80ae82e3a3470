"""How strong each corruption is at each severity, for images of 32, 64 and 224 pixels, and AlexNet's errors.

Figures of Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*,
ICLR 2019, arXiv:1903.12261, as their scripts make_cifar_c.py, make_tinyimagenet_c.py and make_imagenet_c.py
(github.com/hendrycks/robustness, ImageNet-C/create_c) have them; AlexNet's errors stand in that repository's README.
"""
from typing import Any, Dict, Tuple

from ..errors import InputError, near_matches

__all__ = [
    'ALEXNET_ERRORS', 'ALL_CORRUPTIONS', 'CORRUPTIONS', 'GROUPS', 'SEVERITIES', 'check_corruption', 'parameters_for',
]

GROUPS: Dict[str, Tuple[str, ...]] = {
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
    'extra': ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate'),
}
ALL_CORRUPTIONS = tuple(name for names in GROUPS.values() for name in names)
CORRUPTIONS = tuple(name for name in ALL_CORRUPTIONS if name not in GROUPS['extra'])  # those of the mean error
SEVERITIES = (1, 2, 3, 4, 5)

# Error of AlexNet (0–1), mean over the severities, that a mean corruption error is relative to.
ALEXNET_ERRORS: Dict[str, float] = {
    'gaussian_noise': 0.886428, 'shot_noise': 0.894468, 'impulse_noise': 0.922640, 'defocus_blur': 0.819880,
    'glass_blur': 0.826268, 'motion_blur': 0.785948, 'zoom_blur': 0.798360, 'snow': 0.866816, 'frost': 0.826572,
    'fog': 0.819324, 'brightness': 0.564592, 'contrast': 0.853204, 'elastic_transform': 0.646056,
    'pixelate': 0.717840, 'jpeg_compression': 0.606500, 'speckle_noise': 0.845388, 'gaussian_blur': 0.787108,
    'spatter': 0.717512, 'saturate': 0.658248,
}

# By size of the images, one tuple a severity: the arguments of the function of that name, lengths in pixels.
# The authors' 224 px script has 244 for the size in `elastic_transform`, and ImageNet-C was made with that.
_PARAMETERS: Dict[int, Dict[str, Tuple[Tuple[Any, ...], ...]]] = {
    32: {
        'gaussian_noise': ((.04,), (.06,), (.08,), (.09,), (.10,)),
        'shot_noise': ((500,), (250,), (100,), (75,), (50,)),
        'impulse_noise': ((.01,), (.02,), (.03,), (.05,), (.07,)),
        'defocus_blur': ((.3, .4), (.4, .5), (.5, .6), (1, .2), (1.5, .1)),
        'glass_blur': ((.05, 1, 1), (.25, 1, 1), (.4, 1, 1), (.25, 1, 2), (.4, 1, 2)),
        'motion_blur': ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        'zoom_blur': ((1.06, .01), (1.11, .01), (1.16, .01), (1.21, .01), (1.26, .01)),
        'snow': (
            (.1, .2, 1, .6, 8, 3, .95), (.1, .2, 1, .5, 10, 4, .9), (.15, .3, 1.75, .55, 10, 4, .9),
            (.25, .3, 2.25, .6, 12, 6, .85), (.3, .3, 1.25, .65, 14, 12, .8)),
        'frost': ((1, .2, .2), (1, .3, .2), (.9, .4, .2), (.85, .4, .2), (.75, .45, .2)),
        'fog': ((.2, 3, 32), (.5, 3, 32), (.75, 2.5, 32), (1, 2, 32), (1.5, 1.75, 32)),
        'brightness': ((.05,), (.1,), (.15,), (.2,), (.3,)),
        'contrast': ((.75,), (.5,), (.4,), (.3,), (.15,)),
        'elastic_transform': (
            (0, 0, 32 * .08), (32 * .05, 32 * .2, 32 * .07), (32 * .08, 32 * .06, 32 * .06),
            (32 * .1, 32 * .04, 32 * .05), (32 * .1, 32 * .03, 32 * .03)),
        'pixelate': ((.95,), (.9,), (.85,), (.75,), (.65,)),
        'jpeg_compression': ((80,), (65,), (58,), (50,), (40,)),
        'speckle_noise': ((.06,), (.1,), (.12,), (.16,), (.2,)),
        'gaussian_blur': ((.4,), (.6,), (.7,), (.8,), (1,)),
        'spatter': (
            (.62, .1, .7, .7, .5, 'water'), (.65, .1, .8, .7, .5, 'water'), (.65, .3, 1, .69, .5, 'water'),
            (.65, .1, .7, .69, .6, 'mud'), (.65, .1, .5, .68, .6, 'mud')),
        'saturate': ((.3, 0), (.1, 0), (1.5, 0), (2, .1), (2.5, .2)),
    },
    64: {
        'gaussian_noise': ((.04,), (.08,), (.12,), (.15,), (.18,)),
        'shot_noise': ((250,), (100,), (50,), (30,), (15,)),
        'impulse_noise': ((.01,), (.02,), (.05,), (.08,), (.14,)),
        'defocus_blur': ((.5, .6), (1, .1), (1.5, .1), (2.5, .01), (3, .1)),
        'glass_blur': ((.1, 1, 1), (.5, 1, 1), (.6, 1, 2), (.7, 2, 1), (.9, 2, 2)),
        'motion_blur': ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        'zoom_blur': ((1.06, .01), (1.11, .01), (1.16, .01), (1.21, .01), (1.26, .01)),
        'snow': (
            (.1, .2, 1, .6, 8, 3, .8), (.1, .2, 1, .5, 10, 4, .8), (.15, .3, 1.75, .55, 10, 4, .7),
            (.25, .3, 2.25, .6, 12, 6, .65), (.3, .3, 1.25, .65, 14, 12, .6)),
        'frost': ((1, .3, .3), (.9, .4, .3), (.8, .45, .3), (.75, .5, .3), (.7, .55, .3)),
        'fog': ((.4, 3, 64), (.7, 3, 64), (1, 2.5, 64), (1.5, 2, 64), (2, 1.75, 64)),
        'brightness': ((.1,), (.2,), (.3,), (.4,), (.5,)),
        'contrast': ((.4,), (.3,), (.2,), (.1,), (.05,)),
        'elastic_transform': (
            (0, 0, 64 * .08), (64 * .05, 64 * .3, 64 * .06), (64 * .1, 64 * .08, 64 * .06),
            (64 * .1, 64 * .03, 64 * .03), (64 * .16, 64 * .03, 64 * .02)),
        'pixelate': ((.9,), (.8,), (.7,), (.6,), (.5,)),
        'jpeg_compression': ((65,), (58,), (50,), (40,), (25,)),
        'speckle_noise': ((.15,), (.2,), (.25,), (.3,), (.35,)),
        'gaussian_blur': ((.5,), (.75,), (1,), (1.25,), (1.5,)),
        'spatter': (
            (.62, .1, .7, .7, .6, 'water'), (.65, .1, .8, .7, .6, 'water'), (.65, .3, 1, .69, .6, 'water'),
            (.65, .1, .7, .68, .6, 'mud'), (.65, .1, .5, .67, .6, 'mud')),
        'saturate': ((.3, 0), (.1, 0), (2, 0), (5, .1), (30, .2)),
    },
    224: {
        'gaussian_noise': ((.08,), (.12,), (.18,), (.26,), (.38,)),
        'shot_noise': ((60,), (25,), (12,), (5,), (3,)),
        'impulse_noise': ((.03,), (.06,), (.09,), (.17,), (.27,)),
        'defocus_blur': ((3, .1), (4, .5), (6, .5), (8, .5), (10, .5)),
        'glass_blur': ((.7, 1, 2), (.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        'motion_blur': ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        'zoom_blur': ((1.11, .01), (1.16, .01), (1.21, .02), (1.26, .02), (1.31, .03)),
        'snow': (
            (.1, .3, 3, .5, 10, 4, .8), (.2, .3, 2, .5, 12, 4, .7), (.55, .3, 4, .9, 12, 8, .7),
            (.55, .3, 4.5, .85, 12, 8, .65), (.55, .3, 2.5, .85, 12, 12, .55)),
        'frost': ((1, .4, 1), (.8, .6, 1), (.7, .7, 1), (.65, .7, 1), (.6, .75, 1)),
        'fog': ((1.5, 2, 256), (2, 2, 256), (2.5, 1.7, 256), (2.5, 1.5, 256), (3, 1.4, 256)),
        'brightness': ((.1,), (.2,), (.3,), (.4,), (.5,)),
        'contrast': ((.4,), (.3,), (.2,), (.1,), (.05,)),
        'elastic_transform': (
            (244 * 2, 244 * .7, 244 * .1), (244 * 2, 244 * .08, 244 * .2), (244 * .05, 244 * .01, 244 * .02),
            (244 * .07, 244 * .01, 244 * .02), (244 * .12, 244 * .01, 244 * .02)),
        'pixelate': ((.6,), (.5,), (.4,), (.3,), (.25,)),
        'jpeg_compression': ((25,), (18,), (15,), (10,), (7,)),
        'speckle_noise': ((.15,), (.2,), (.35,), (.45,), (.6,)),
        'gaussian_blur': ((1,), (2,), (3,), (4,), (6,)),
        'spatter': (
            (.65, .3, 4, .69, .6, 'water'), (.65, .3, 3, .68, .6, 'water'), (.65, .3, 2, .68, .5, 'water'),
            (.65, .3, 1, .65, 1.5, 'mud'), (.67, .4, 1, .65, 1.5, 'mud')),
        'saturate': ((.3, 0), (.1, 0), (2, 0), (5, .1), (20, .2)),
    },
}


def check_corruption(name: str, severity: int) -> None:
    """Check the name and the severity of a corruption.

    Raises:
        InputError: There is no such corruption, or the severity is not 1, 2, 3, 4 or 5.
    """
    if name not in ALL_CORRUPTIONS:
        raise InputError(f'There is no corruption {name!r}{near_matches(str(name), ALL_CORRUPTIONS)}: choose from '
                         f'{", ".join(ALL_CORRUPTIONS)}.')
    if type(severity) is not int or severity not in SEVERITIES:
        raise InputError(f'The severity of {name} must be 1, 2, 3, 4 or 5, got {severity!r}.')


def parameters_for(name: str, severity: int, height: int, width: int) -> Tuple[float, Tuple[Any, ...]]:
    """The parameters of a corruption for images of a size.

    They are those of the authors' size that is nearest, in ratio, to the shorter side.

    Args:
        name: The corruption.
        severity: 1 to 5.
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        The scale, which lengths are to be multiplied by: shorter side / authors' size. And the authors' parameters.
    """
    check_corruption(name, severity)
    side = min(height, width)
    size = min(_PARAMETERS, key=lambda size: max(side / size, size / side))
    return side / size, _PARAMETERS[size][name][severity - 1]
