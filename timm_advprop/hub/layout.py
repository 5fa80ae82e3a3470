"""Writes the folder that is published: plain model, auxiliary norms, recipe, pictures and model card."""
import json
import logging
import os
import shutil
from copy import deepcopy
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
import torch.nn as nn
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import save_for_hf

from ..errors import InputError
from ..models import create_model
from ..norms import has_split_norm, set_norm_route, split_state_dict, strip_aux
from ..version import __version__
from ..weights import AUX_FILE, CONFIG_FILE, CONFIG_KEY, WEIGHTS_FILE, Publication, file_digest
from ..weights.downloads import redact
from .card import render_card
from .card_pictures import draw_adversarial_images, draw_norms
from .recipe import publishable_recipe
from .release import Release
from .results import collect_results

__all__ = ['FILES', 'check_replaceable', 'replace_folder', 'write_publication']

_logger = logging.getLogger(__name__)

CARD, RECIPE, SUMMARY = 'README.md', 'args.yaml', 'summary.csv'
IMAGES_PICTURE, NORMS_PICTURE = 'adversarial.png', 'norms.png'
FILES = (WEIGHTS_FILE, CONFIG_FILE, AUX_FILE, CARD, RECIPE, SUMMARY, IMAGES_PICTURE, NORMS_PICTURE)
_WAY_OUT = ('publish a model as timm creates it, with norms as convert_split_norm splits them. timm before 1.0.31 does '
            'not remember the arguments of a model: give them as model_kwargs.')
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
        token: Optional[str] = None,
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
        token: Hub token, which must not get into a file.

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
        release, repo_id, measured, dataset=dataset or release.dataset, license=license or _license(release),
        files=os.listdir(folder))
    with open(os.path.join(folder, CARD), 'w', encoding='utf-8') as file:
        file.write(card)
    _redact_files(folder, token)
    return [name for name in FILES if os.path.isfile(os.path.join(folder, name))]


def _redact_files(folder: str, token: Optional[str]) -> None:
    for name in (CARD, CONFIG_FILE, RECIPE, SUMMARY):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, newline='', encoding='utf-8') as file:
                text = file.read()
            with open(path, 'w', newline='', encoding='utf-8') as file:
                file.write(redact(text, token))


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
    if release.recipe.get('gp'):
        model_args['global_pool'] = release.recipe['gp']
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
        file.write(json.dumps(config, indent=2) + '\n')


def _check_loads(release: Release, folder: str) -> None:
    # A publication that cannot be loaded, or computes something else, is found before it is made.
    model = deepcopy(release.model).float().eval()
    state_dict = model.state_dict()
    unfit = [name for name, value in release.model.state_dict().items()
             if value.dtype == torch.float64 or not value.isfinite().all()]
    if unfit:
        raise InputError(f'{unfit[0]} has values that are not finite, or float64, which timm does not load.')
    try:
        loaded = create_model(f'local-dir:{folder}', num_aux=release.num_aux).eval()
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f'{release.architecture} cannot be created again from its {CONFIG_FILE} '
                         f'({" ".join(str(error).split())[:400]}): {_WAY_OUT}') from error
    loaded_state = loaded.state_dict()
    different = [name for name in {**state_dict, **loaded_state} if name not in state_dict or name not in loaded_state
                 or not torch.equal(loaded_state[name], state_dict[name])]
    if different or not _compute_the_same(model, loaded, release.data_config['input_size']):
        raise InputError(f'{release.architecture} is not the same when it is created again from its {CONFIG_FILE} '
                         f'({different[0] if different else "outputs"}): {_WAY_OUT}')


def _compute_the_same(model: nn.Module, other: nn.Module, input_size: Sequence[int]) -> bool:
    if has_split_norm(model):
        set_norm_route(model, 'main')
    images = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            output, expected = other(images), model(images)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f'The model cannot be tried with an image of {"x".join(map(str, input_size))}: '
                         f'{" ".join(str(error).split())[:400]}.') from error
    return output.shape == expected.shape and torch.allclose(output, expected, rtol=1e-4, atol=1e-5)


def _draw_pictures(release: Release, folder: str, images: bool) -> None:
    # A card without them is a card nevertheless.
    try:
        if any(norm.get('trained_on') != 'nothing' for norm in release.aux_norms):
            draw_norms(release.model, os.path.join(folder, NORMS_PICTURE))
            if images and release.dataset and release.adversarial_route:
                draw_adversarial_images(release, os.path.join(folder, IMAGES_PICTURE))
    except InputError as error:
        _logger.warning(f'A picture is left out: {error}')


def _license(release: Release) -> str:
    began_with_weights = not release.recipe or release.recipe.get('pretrained')
    return (release.model.pretrained_cfg.get('license') if began_with_weights else None) or 'apache-2.0'
