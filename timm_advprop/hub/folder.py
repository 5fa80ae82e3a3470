"""Writes the folder that is published: plain model, auxiliary norms, recipe, pictures and model card."""
import json
import logging
import os
import shutil
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import save_for_hf

from ..downloads import redact
from ..errors import InputError
from ..models import create_model
from ..norms import split_state_dict, strip_aux
from ..publication import AUX_FILE, CONFIG_FILE, CONFIG_KEY, WEIGHTS_FILE, Publication, file_digest
from ..version import __version__
from .card import render_card
from .pictures import draw_adversarial_images, draw_norms
from .recipe import publishable_recipe
from .release import Release
from .results import collect_results

__all__ = ['FILES', 'check_replaceable', 'replace_folder', 'write_publication']

_logger = logging.getLogger(__name__)

CARD, RECIPE, SUMMARY = 'README.md', 'args.yaml', 'summary.csv'
IMAGES_PICTURE, NORMS_PICTURE = 'adversarial.png', 'norms.png'
FILES = (WEIGHTS_FILE, CONFIG_FILE, AUX_FILE, CARD, RECIPE, SUMMARY, IMAGES_PICTURE, NORMS_PICTURE)
_TEST_ENTRIES = ('test_input_size', 'test_crop_pct', 'test_pool_size')
_DATA_ENTRIES = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')


def write_publication(
        release: Release,
        folder: str,
        repo_id: str,
        results: Sequence[Mapping[str, Any]] = (),
        dataset: Optional[str] = None,
        license: Optional[str] = None,
        images: bool = True,
) -> List[str]:
    """Write everything that a repository of the Hub gets, and load it again to see that it is whole.

    Args:
        release: What is published.
        folder: An empty folder.
        repo_id: Repository, which the card names.
        results: Results of the validation program, which the card shows.
        dataset: Name of the data set on the card, by default that of the run.
        license: Licence on the card, by default that of the weights the run began with, else `apache-2.0`.
        images: Put validation images on the card, where the run's data set is there.

    Returns:
        Names of the files in the folder.

    Raises:
        InputError: The model cannot be created again from what was written, or the results are not its own.
    """
    measured = collect_results(release, results, dataset)
    _write_weights(release, folder)
    _check_loads(release, folder)
    if release.recipe:
        with open(os.path.join(folder, RECIPE), 'w', encoding='utf-8') as file:
            yaml.safe_dump(publishable_recipe(release.recipe), file, default_flow_style=False)
    if release.summary:
        with open(os.path.join(folder, SUMMARY), 'w', newline='', encoding='utf-8') as file:
            file.write(release.summary)
    _draw_pictures(release, folder, images)
    card = render_card(
        release,
        repo_id,
        measured,
        dataset=dataset or release.dataset,
        license=license or _license(release),
        files=os.listdir(folder),
    )
    with open(os.path.join(folder, CARD), 'w', encoding='utf-8') as file:
        file.write(redact(card))
    return [name for name in FILES if os.path.isfile(os.path.join(folder, name))]


def check_replaceable(folder: str) -> None:
    """Check that a folder can be written without a loss: it is new, empty, or holds a former publication.

    Raises:
        InputError: It holds something else.
    """
    if not os.path.exists(folder):
        return
    if not os.path.isdir(folder):
        raise InputError(f'{folder} is not a folder: give another one.')
    if os.listdir(folder) and not Publication.in_folder(folder).details:
        raise InputError(f'{folder} holds something else than a publication: give another folder.')


def replace_folder(source: str, folder: str) -> None:
    """Copy a publication to a folder, instead of a former one.

    Args:
        source: Folder that `write_publication` wrote.
        folder: Folder that `check_replaceable` has seen.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        for name in FILES:
            if os.path.isfile(os.path.join(source, name)):
                shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
            elif os.path.isfile(os.path.join(folder, name)):
                os.remove(os.path.join(folder, name))
    except OSError as error:
        raise InputError(f'Cannot write {folder}: {error}.') from error


def _write_weights(release: Release, folder: str) -> None:
    plain = strip_aux(release.model).to(memory_format=torch.contiguous_format)
    plain.pretrained_cfg = _pretrained_cfg(release)
    if hasattr(plain, '_model_args'):  # timm ≥ 1.0.31 remembers what a model was created with
        plain._model_args = {name: value for name, value in plain._model_args.items() if name != 'num_aux'}
    model_args = dict(release.recipe.get('model_kwargs') or {})
    model_args.pop('num_aux', None)
    try:
        save_for_hf(plain, folder, model_args=model_args or None, safe_serialization=True)
        if release.num_aux:
            aux = split_state_dict(release.model.state_dict())[1]
            save_file({name: value.contiguous() for name, value in aux.items()}, os.path.join(folder, AUX_FILE))
    except (RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f'{release.architecture} cannot be written: {" ".join(str(error).split())[:400]}') from error
    _add_details(release, folder)


def _pretrained_cfg(release: Release) -> Dict[str, Any]:
    model = release.model
    cfg = {name: value for name, value in model.pretrained_cfg.items() if name not in ('tag', 'state_dict')}
    data = {name: release.data_config[name] for name in _DATA_ENTRIES if name in release.data_config}
    if release.recipe:  # these weights were trained at one size: nothing is known of another for testing
        cfg = {name: value for name, value in cfg.items() if name not in _TEST_ENTRIES}
    if tuple(data['input_size'][1:]) != tuple(cfg['input_size'][1:]):
        cfg['pool_size'] = None
    data['input_size'] = (getattr(model, 'in_chans', None) or data['input_size'][0], *data['input_size'][1:])
    return dict(cfg, **data, architecture=release.architecture, num_classes=model.num_classes, custom_load=False)


def _add_details(release: Release, folder: str) -> None:
    details = dict(
        version=__version__,
        num_aux=release.num_aux,
        regime=release.regime,
        aux_norms=release.aux_norms,
        epoch=release.epoch,
        averaged=release.averaged,
        sha256={name: file_digest(os.path.join(folder, name)) for name in (WEIGHTS_FILE, AUX_FILE)
                if os.path.isfile(os.path.join(folder, name))},
    )
    path = os.path.join(folder, CONFIG_FILE)
    with open(path, encoding='utf-8') as file:
        config = json.load(file)
    config[CONFIG_KEY] = {name: value for name, value in details.items() if value is not None}
    with open(path, 'w', encoding='utf-8') as file:
        file.write(redact(json.dumps(config, indent=2)) + '\n')


def _check_loads(release: Release, folder: str) -> None:
    # A publication that cannot be loaded, or not as it was, is found before it is made.
    try:
        loaded = create_model(f'local-dir:{folder}').state_dict()
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f'{release.architecture} cannot be created again from its {CONFIG_FILE}: '
                         f'{" ".join(str(error).split())[:400]}') from error
    if not release.num_aux:
        loaded = split_state_dict(loaded)[0]
    state_dict = release.model.state_dict()
    different = [name for name in {**state_dict, **loaded} if name not in state_dict or name not in loaded
                 or not torch.equal(loaded[name].to(state_dict[name].dtype), state_dict[name])]
    if different:
        raise InputError(f'{release.architecture} cannot be created again from its {CONFIG_FILE}, {different[0]} '
                         'differs: publish a model that timm creates, whose norms convert_split_norm split.')


def _draw_pictures(release: Release, folder: str, images: bool) -> None:
    # A card without them is a card nevertheless.
    try:
        if release.num_aux and release.regime != 'vanilla':
            draw_norms(release.model, os.path.join(folder, NORMS_PICTURE))
            if images and release.dataset and release.aux_norms[0].keys() >= {'attack', 'eps_px', 'alpha_px'}:
                draw_adversarial_images(release, os.path.join(folder, IMAGES_PICTURE))
    except InputError as error:
        _logger.warning(f'A picture is left out: {error}')


def _license(release: Release) -> str:
    began_with_weights = not release.recipe or release.recipe.get('pretrained')
    return (release.model.pretrained_cfg.get('license') if began_with_weights else None) or 'apache-2.0'


