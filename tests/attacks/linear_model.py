"""A linear model, on which the optimum of an attack is known in closed form, and images for it."""
import pytest
import torch

from timm_advprop.attacks import gd, ifgsm, pgd

HALF = 0.5, 0.5, 0.5
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATIONS = [
    pytest.param((0., 0., 0.), (1., 1., 1.), id='pixels'),
    pytest.param(HALF, HALF, id='half'),
    pytest.param(IMAGENET_MEAN, IMAGENET_STD, id='imagenet'),
    pytest.param((0.9, 0.5, 0.02), (0.01, 0.3, 3.), id='uneven'),
]
ATTACKS = [pytest.param(pgd, id='pgd'), pytest.param(ifgsm, id='ifgsm'), pytest.param(gd, id='gd')]
NORMS = ['linf', 'l2']


class LinearModel:
    """Logits [−s, s] of s = ⟨w, x⟩: the loss of label 0 rises along w, that of label 1 falls."""

    def __init__(self, weight):
        self.weight = weight
        self.seen = []

    def __call__(self, images):
        self.seen.append(images.detach().clone())
        score = (images * self.weight.to(images.dtype)).flatten(1).sum(dim=1)
        return torch.stack([-score, score], dim=1)


def make_weight(shape, seed=0, dtype=torch.float32):
    # away from zero, so that every sign is sure, and small, so that no softmax saturates
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (sign * (0.5 + torch.rand(shape, generator=generator)) / sign.numel()).to(dtype)


def pixel_images(*shape, seed=1):
    # the corners of pixel space are part of the sample
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return images.mul(1.4).sub(0.2).clamp(0, 1)


class Normalised:
    """Pixel images as a timm loader delivers them, and the numbers of an attack, in the model's units."""

    def __init__(self, pixels, mean, std, dtype=torch.float32):
        self.mean, self.std = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (mean, std))
        self.images = ((pixels - self.mean) / self.std).to(dtype)
        self.bounds = tuple(((value - self.mean) / self.std).flatten().tolist() for value in (0., 1.))

    def scale(self, pixels):
        return (pixels / self.std).flatten().tolist()

    def to_pixels(self, images):
        return images.double() * self.std + self.mean


def make_labels(images, label=0):
    return torch.full((len(images),), label)
