"""Pictures of training batches. Need no matplotlib."""
import torch
import torchvision.utils

from ..regimes import MadeImages

__all__ = ['CHANNELS_OF_PICTURES', 'save_made_images']

CHANNELS_OF_PICTURES = (1, 3)

_COLUMNS = 8


def save_made_images(path: str, made: MadeImages) -> None:
    """Save images, what a source made of them, and the difference, which is scaled to the whole range around grey.

    Args:
        path: File to write, by its ending JPEG or PNG.
        made: The images; the first eight are shown, a column each.
    """
    images, others = (pixels[:_COLUMNS].cpu() for pixels in made.in_pixels())
    difference = others - images
    scale = difference.abs().max().clamp(min=1e-8)
    rows = torch.cat([images, others, 0.5 + 0.5 * difference / scale])
    torchvision.utils.save_image(rows, path, nrow=len(images), padding=1)
