"""The pictures of a model card: clean and adversarial images, and main against auxiliary norms. Need matplotlib."""
import logging
import os
from dataclasses import replace
from typing import Any, List, Tuple

import torch
import torch.nn as nn

from ..engine.datasets import channel_normalisation, image_transform, label_names, open_split
from ..engine.example_images import spread_samples
from ..engine.figures import draw_attack, new_figure
from ..engine.run_settings import TrainDataSettings
from ..errors import InputError
from ..norms import SplitNorm, norm_route, split_norms
from ..regimes import Attack
from .release import Release

__all__ = ['IMAGES_PICTURE', 'NORMS_PICTURE', 'draw_adversarial_images', 'draw_norms', 'draw_pictures']

_logger = logging.getLogger(__name__)

IMAGES_PICTURE, NORMS_PICTURE = 'adversarial.png', 'norms.png'
NUM_IMAGES = 8
_ENTRIES = {
    'weight': 'weight',
    'bias': 'bias',
    'running_mean': 'running mean',
    'running_var': 'running variance',
}


def draw_pictures(release: Release, folder: str, images: bool) -> None:
    """Draw what can be drawn of a release. A card without pictures is a card nevertheless.

    Args:
        release: What is published.
        folder: Folder to write into.
        images: Draw validation images of the run, where its data set is there.
    """
    attacked = [route for route, norm in enumerate(release.aux_norms, 1) if 'attack' in norm]
    has_data = release.recipe.get('dataset') or release.recipe.get('data_dir')
    try:
        if any(norm.get('trained_on') != 'nothing' for norm in release.aux_norms):
            draw_norms(release.model, os.path.join(folder, NORMS_PICTURE))
            if images and has_data and attacked:
                draw_adversarial_images(release, attacked[0], os.path.join(folder, IMAGES_PICTURE))
    except InputError as error:
        _logger.warning(f'A picture is left out: {error}')


def draw_adversarial_images(release: Release, route: int, path: str) -> None:
    """Draw validation images of the run, clean and attacked as in training, through auxiliary norms.

    Args:
        release: What is published.
        route: Route through auxiliary norms that an attack trained.
        path: File to write.

    Raises:
        InputError: The data set is not there, its images are neither grey nor coloured, or matplotlib is not installed.
    """
    channels = release.data_config['input_size'][0]
    if channels not in (1, 3):
        raise InputError(f'images of {channels} channels are neither grey nor coloured.')
    images, names = _validation_images(release)
    mean, std = channel_normalisation(release.data_config)
    # the same picture each time
    attack = Attack.from_facts(release.aux_norms[route - 1], target='none', random_start=0., mean=mean, std=std)
    model, clean = release.model.eval(), attack.from_pixels(images)
    with norm_route(model, 'main'), torch.inference_mode():
        target = model(clean).argmax(dim=1)
    with norm_route(model, route):
        adversarial, _ = attack(model, clean, target.clone())
    draw_attack(path, images, attack.in_pixels(adversarial), names, amplification=64 / max(attack.eps_px, 1))


def draw_norms(model: nn.Module, path: str) -> None:
    """Draw each channel's parameters and statistics in the main norm against those in the auxiliary norms.

    Raises:
        InputError: matplotlib is not installed.
    """
    norms = list(split_norms(model))
    entries = [name for name in _ENTRIES if any(_has_own(norm, name) for norm in norms)]
    num_aux = len(norms[0].aux_bn)
    figure = new_figure((2.7 * len(entries), 2.7 * num_aux + 0.3))
    axes = figure.subplots(num_aux, len(entries), squeeze=False)
    for i, row in enumerate(axes):
        for name, axis in zip(entries, row):
            main, aux, depth = _paired_values(norms, name, i)
            points = axis.scatter(main, aux, c=depth, s=2, cmap='viridis', vmin=0, vmax=1, rasterized=True)
            low, high = min(main.min(), aux.min()), max(main.max(), aux.max())
            axis.plot([low, high], [low, high], color='grey', linewidth=0.6)
            if name == 'running_var' and low > 0:
                axis.set_xscale('log')
                axis.set_yscale('log')
            axis.set_title(_ENTRIES[name], fontsize=8)
            axis.set_xlabel('main norm', fontsize=7)
            axis.set_ylabel('auxiliary norm' + (f' {i + 1}' if num_aux > 1 else ''), fontsize=7)
            axis.tick_params(labelsize=6)
    bar = figure.colorbar(points, ax=axes, ticks=[0, 1], shrink=0.8)
    bar.ax.set_yticklabels(['first', 'last norm'], fontsize=7)
    figure.savefig(path)


def _has_own(norm: SplitNorm, name: str) -> bool:
    # An auxiliary norm that shares the main norm's statistics has none.
    return all(getattr(part, name, None) is not None for part in (norm, norm.aux_bn[0]))


def _paired_values(norms: List[SplitNorm], name: str, i: int) -> Tuple[Any, Any, Any]:
    main, aux, depth = [], [], []
    for position, norm in enumerate(norms):
        if _has_own(norm, name):
            main.append(getattr(norm, name).detach().float().flatten())
            aux.append(getattr(norm.aux_bn[i], name).detach().float().flatten())
            depth.append(torch.full_like(main[-1], position / max(len(norms) - 1, 1)))
    return tuple(torch.cat(values).numpy() for values in (main, aux, depth))  # pyright: ignore[reportReturnType]


def _validation_images(release: Release) -> Tuple[torch.Tensor, List[str]]:
    # Images [N, C, H, W] in 0–1, evenly over the data set, and the names of their classes.
    data = TrainDataSettings.from_values(release.recipe)
    data = replace(data, dataset_download=False, dataset_trust_remote_code=False)  # a checkpoint cannot ask for that
    dataset: Any = open_split(
        data, data.val_split or 'validation', release.data_config, num_samples=data.val_num_samples,
        batch_size=NUM_IMAGES)
    dataset.transform = image_transform(release.data_config, normalise=False)
    samples = spread_samples(dataset, NUM_IMAGES)
    names = label_names(dataset, release.model.num_classes)  # pyright: ignore[reportArgumentType]
    return torch.stack([image for image, _ in samples]), [names[label] if names else str(label) for _, label in samples]
