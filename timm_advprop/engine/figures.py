"""Figures, their colors, and pictures of what an attack does to images. Needs matplotlib."""
from typing import Any, Sequence, Tuple

import torch

from ..errors import InputError

__all__ = ['COLORS', 'draw_attack', 'new_figure']

COLORS = ('#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377', '#bbbbbb')  # Tol's bright scheme


def draw_attack(
        path: str,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        titles: Sequence[str],
        amplification: float,
) -> None:
    """Draw images, their adversarial twins and the perturbation between them, one column an image.

    Args:
        path: File to write, by its ending PNG, PDF or SVG.
        images: Clean images [N, C, H, W] in 0–1, C of 1 or 3.
        adversarial: Adversarial images [N, C, H, W] in 0–1.
        titles: A title for each column.
        amplification: Factor on the perturbation, which is drawn around grey.

    Raises:
        InputError: matplotlib is not installed.
    """
    perturbation = 0.5 + amplification * (adversarial - images)
    rows = [('clean', images), ('adversarial', adversarial), (f'difference × {amplification:g}', perturbation)]
    figure = new_figure((1.1 * len(images) + 0.6, 3.9))
    axes = figure.subplots(len(rows), len(images), squeeze=False)
    for row, (label, pictures) in zip(axes, rows):
        row[0].set_ylabel(label, fontsize=8)
        for axis, picture in zip(row, pictures):
            axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy(), cmap='gray', vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=7)
    figure.savefig(path)


def new_figure(size: Tuple[float, float], dpi: int = 150) -> Any:
    """An empty matplotlib figure.

    Args:
        size: Width and height in inches.
        dpi: Dots per inch.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('Pictures need matplotlib: pip install matplotlib.') from error
    return Figure(figsize=size, dpi=dpi, layout='constrained')
