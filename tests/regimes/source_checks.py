"""What holds for the images of every source that the package brings, and models and images to try it on."""
import torch

from timm_advprop.regimes import AmplitudeMix, AugMax, AugMix, CorruptedImages, GaussianNoise

SOURCES = [GaussianNoise, AugMix, AugMax, CorruptedImages, AmplitudeMix]
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def normalisation(channels):
    return dict(mean=MEAN[:channels], std=STD[:channels])


def in_units(pixels):
    mean, std = (torch.tensor(values[:pixels.shape[1]], dtype=pixels.dtype).view(-1, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def in_pixels(images):
    mean, std = (torch.tensor(values[:images.shape[1]], dtype=images.dtype).view(-1, 1, 1) for values in (MEAN, STD))
    return images * std + mean


def drawn_pixels(size=6, channels=3, side=32, seed=1):
    """Whole grey levels in 0–1, smooth enough to have shapes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, channels, 8, 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, side, mode='bilinear', align_corners=False)
    return (fine * 255).round() / 255


class Linear(torch.nn.Module):
    """A linear classifier of images of any size, in the type of its images."""

    def __init__(self, channels=3, classes=5, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(classes, channels, 4, 4, generator=generator))

    def forward(self, images):
        pooled = torch.nn.functional.adaptive_avg_pool2d(images, 4)
        return torch.einsum('nchw,kchw->nk', pooled, self.weight.to(images.dtype))
