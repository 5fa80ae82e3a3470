"""Writes the folder that is published: plain model, auxiliary norms, recipe, pictures and model card."""
import json
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
import torch.nn as nn
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import save_for_hf

from ..errors import InputError, one_line
from ..models import create_model
from ..norms import has_split_norm, set_norm_route, share_of, split_state_dict, strip_aux
from ..output import replacing
from ..version import __version__
from ..weights import AUX_FILE, CONFIG_FILE, CONFIG_KEY, OF_SPLIT_MODELS, WEIGHTS_FILE, Publication, file_digest
from ..weights.downloads import redact
from .card import render_card
from .card_pictures import IMAGES_PICTURE, NORMS_PICTURE, draw_pictures
from .release import Release

__all__ = ['CARD', 'FILES', 'check_replaceable', 'replace_folder', 'write_publication']

CARD, RECIPE, SUMMARY = 'README.md', 'args.yaml', 'summary.csv'
FILES = (WEIGHTS_FILE, CONFIG_FILE, AUX_FILE, CARD, RECIPE, SUMMARY, IMAGES_PICTURE, NORMS_PICTURE)
_WAY_OUT = ('publish a model as timm creates it, with norms as convert_split_norm splits them. timm before 1.0.31 does '
            'not remember the arguments of a model: give them as model_kwargs.')
_TEST_ENTRIES = ('test_input_size', 'test_crop_pct', 'test_pool_size')
_DATA_ENTRIES = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')


def write_publication(
        release: Release,
        folder: str,
        repo_id: str,
        images: bool = True,
        token: Optional[str] = None,
) -> List[str]:
    """Write everything that a repository of the Hub gets, and load it again to see that it is whole.

    Args:
        release: What is published.
        folder: An empty folder.
        repo_id: Repository, which the card names.
        images: Put validation images on the card, where the run's data set is there.
        token: Hub token, which must not get into a file.

    Returns:
        Names of the files in the folder.

    Raises:
        InputError: The model cannot be created again from what was written.
    """
    _write_model(release, folder, token)
    _check_loads(release, folder)
    draw_pictures(release, folder, images)
    texts = {
        RECIPE: yaml.safe_dump(release.published_recipe, default_flow_style=False) if release.recipe else '',
        SUMMARY: release.summary,
        CARD: render_card(release, repo_id, os.listdir(folder)),
    }
    for name, text in texts.items():
        if text:
            Path(folder, name).write_bytes(redact(text, token).encode())
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
                _copy(os.path.join(source, name), os.path.join(folder, name))
            elif os.path.isfile(os.path.join(folder, name)):
                os.remove(os.path.join(folder, name))
    except OSError as error:
        raise InputError(f'Cannot write {folder}: {error}.') from error


def _copy(source: str, target: str) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)  # not moved: others could not read what safetensors wrote


def _write_model(release: Release, folder: str, token: Optional[str]) -> None:
    plain: Any = strip_aux(release.model).to(memory_format=torch.contiguous_format)
    plain.pretrained_cfg = _pretrained_cfg(release)
    if hasattr(plain, '_model_args'):  # timm ≥ 1.0.31 would write them all
        plain._model_args = {name: value for name, value in plain._model_args.items() if name not in OF_SPLIT_MODELS}
    model_args = {name: value for name, value in (release.recipe.get('model_kwargs') or {}).items()
                  if name not in OF_SPLIT_MODELS}
    if release.recipe.get('gp'):
        model_args['global_pool'] = release.recipe['gp']
    try:
        save_for_hf(plain, folder, model_args=model_args or None, safe_serialization=True)
        if release.aux_norms:
            aux = split_state_dict(release.model.state_dict())[1]
            save_file({name: value.contiguous() for name, value in aux.items()}, os.path.join(folder, AUX_FILE))
    except (RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f'{release.architecture} cannot be written: {one_line(error, 400)}') from error
    written = [name for name in (WEIGHTS_FILE, AUX_FILE) if os.path.isfile(os.path.join(folder, name))]
    details = dict(
        version=__version__, num_aux=len(release.aux_norms), regime=release.regime, aux_norms=release.aux_norms,
        share=None if share_of(release.model) == 'none' else share_of(release.model),
        epoch=release.epoch, averaged=release.averaged,
        sha256={name: file_digest(os.path.join(folder, name)) for name in written})
    details.update(release.blend.details() if release.blend else {})
    path = Path(folder, CONFIG_FILE)
    config = json.loads(path.read_bytes())
    # which stands beside them and in pretrained_cfg: transformers would give it twice, and fail
    config.get('model_args', {}).pop('num_classes', None)
    if release.label_names:
        config['label_names'] = release.label_names
    config[CONFIG_KEY] = {name: value for name, value in details.items() if value is not None}
    path.write_bytes(redact(json.dumps(config, indent=2) + '\n', token).encode())


def _pretrained_cfg(release: Release) -> Dict[str, Any]:
    # The weights of a run were trained at one size: nothing is known of another for testing. A custom loader is for the
    # files of other authors, with keys of their own.
    left_out = ('tag', 'state_dict', 'label_names', *(_TEST_ENTRIES if release.recipe else ()))
    cfg = {name: value for name, value in release.model.pretrained_cfg.items() if name not in left_out}  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    if not release.label_names or set(release.label_names) - set(cfg.get('label_descriptions') or ()):
        cfg.pop('label_descriptions', None)  # of other classes
    data = {name: release.data_config[name] for name in _DATA_ENTRIES if name in release.data_config}
    if tuple(data['input_size'][1:]) != tuple(cfg['input_size'][1:]):
        cfg['pool_size'] = None  # that of the other size
    return dict(cfg, **data, architecture=release.architecture, num_classes=release.model.num_classes,
                license=release.license, custom_load=False)


def _check_loads(release: Release, folder: str) -> None:
    # A publication that cannot be loaded, or computes something else, is found before it is made. Equal weights are not
    # enough: an argument without weights, of a pooling or an activation, may be lost.
    unfit = [name for name, value in release.model.state_dict().items()
             if value.dtype == torch.float64 or not value.isfinite().all()]
    if unfit:
        raise InputError(f'{unfit[0]} has values that are not finite, or float64, which timm does not load.')
    try:
        loaded = create_model(f'local-dir:{folder}', num_aux=len(release.aux_norms)).eval()
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f'{release.architecture} cannot be created again from its {CONFIG_FILE} '
                         f'({one_line(error, 400)}): {_WAY_OUT}') from error
    model = deepcopy(release.model).float().eval()
    state, loaded_state = model.state_dict(), loaded.state_dict()
    different = [name for name in {**state, **loaded_state} if name not in state or name not in loaded_state
                 or not torch.equal(loaded_state[name], state[name])]
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
                         f'{one_line(error, 400)}.') from error
    return output.shape == expected.shape and torch.allclose(output, expected, rtol=1e-4, atol=1e-5)
