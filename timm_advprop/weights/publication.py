"""Published weights: a Hub repository or a local folder of the same layout.

`model.safetensors` and `config.json` are the plain model, as stock timm reads and writes them. `aux.safetensors` holds
the auxiliary norms, and `config.json` has under `timm_advprop` what is needed to rebuild the split model.
"""
import hashlib
import json
import logging
import os
from copy import deepcopy
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models._hub import _parse_model_cfg
from timm.models._pretrained import PretrainedCfg

from ..errors import InputError, one_line
from ..norms import SHARES, num_aux_in, split_state_dict
from .downloads import download_file, split_model_id
from .model_arguments import check_model_arguments, is_number_of_norms
from .soundness import check_values

__all__ = ['AUX_FILE', 'CONFIG_FILE', 'CONFIG_KEY', 'OF_SPLIT_MODELS', 'Publication', 'WEIGHTS_FILE', 'file_digest',
           'open_publication', 'read_config']

WEIGHTS_FILE, AUX_FILE, CONFIG_FILE = 'model.safetensors', 'aux.safetensors', 'config.json'
CONFIG_KEY = 'timm_advprop'
OF_SPLIT_MODELS = ('num_aux', 'share')  # their arguments, beside those of the plain model

# Entries of a pretrained cfg that say where weights are and how to read them: for a publication, its own files alone.
_OF_WEIGHTS = {'custom_load', 'file', 'hf_hub_filename', 'hf_hub_id', 'source', 'state_dict', 'url'}

_logger = logging.getLogger(__name__)


class Publication:
    """Published weights. Opening reads `config.json` alone; the weights are read when they are asked for first.

    Args:
        name: Name for messages.
        locate: Maps a file's name, and `force=True` to download it again, to its path, None where there is none.
        origin: Entries of a pretrained cfg that say where the weights are.
        config: Contents of `config.json`, empty where there is none.

    Attributes:
        details: What `config.json` says of AdvProp: `num_aux`, `share`, `regime`, …; empty for a plain model.
    """

    def __init__(self, name: str, locate: Callable[..., Optional[str]], origin: Dict[str, Any], config: Dict[str, Any]):
        self.name = name
        self.origin = origin
        self.config = config
        self.details: Dict[str, Any] = config.get(CONFIG_KEY) or {}
        self._locate = locate
        self._state_dict: Optional[Dict[str, torch.Tensor]] = None

    @classmethod
    def on_hub(cls, model_id: str, cache_dir: Optional[str] = None) -> 'Publication':
        """Open `user/name` or `user/name@revision`. All files are taken from the commit that `config.json` is from, so
        that a push in the meantime does not mix two publications."""
        path = download_file(model_id, CONFIG_FILE, cache_dir)
        try:
            config = read_config(path, model_id)
        except InputError as damage:
            _logger.warning(f'{damage} It is downloaded again.')
            path = download_file(model_id, CONFIG_FILE, cache_dir, force=True)
            config = read_config(path, model_id)
        if path:  # …/snapshots/<commit>/config.json
            model_id = f'{split_model_id(model_id)[0]}@{Path(path).parent.name}'
        locate = partial(download_file, model_id, cache_dir=cache_dir)
        return cls(model_id, locate, dict(hf_hub_id=model_id, source='hf-hub'), config)

    @classmethod
    def of_weights(cls, model_id: str, cache_dir: Optional[str] = None) -> 'Publication':
        """Open a repository that is known to hold plain weights, and read nothing else of it."""
        locate = partial(download_file, model_id, cache_dir=cache_dir)
        return cls(model_id, locate, dict(hf_hub_id=model_id), {})

    @classmethod
    def in_folder(cls, folder: str) -> 'Publication':
        """Open a local folder."""
        if not os.path.isdir(folder):
            raise InputError(f'There is no folder {folder}.')
        locate = partial(_file_in, folder)
        return cls(folder, locate, dict(file=folder, source='local-dir'), read_config(locate(CONFIG_FILE), folder))

    @property
    def num_aux(self) -> int:
        """Number of auxiliary norms for each norm, 0 for a plain model."""
        return self.details.get('num_aux') or self._saved_args.get('num_aux') or 0

    @property
    def share(self) -> str:
        """What main and auxiliary norms share, see `convert_split_norm`."""
        return self.details.get('share') or self._saved_args.get('share') or 'none'

    @property
    def architecture(self) -> str:
        """The plain timm architecture.

        Raises:
            InputError: There is no `config.json`, or it names none.
        """
        if not isinstance(self.config.get('architecture'), str):
            raise InputError(f'{self.name} does not hold a timm model: it has no {CONFIG_FILE} that names an '
                             'architecture.')
        return self.config['architecture']

    @property
    def pretrained_cfg(self) -> Dict[str, Any]:
        """The model's pretrained cfg, as timm's factory takes it, without entries that this timm does not know: where
        weights are says `origin` alone."""
        known = {field.name for field in fields(PretrainedCfg)} - _OF_WEIGHTS
        cfg = _parse_model_cfg(deepcopy(self.config), {})[0]
        return {**{name: value for name, value in cfg.items() if name in known}, **self.origin}

    @property
    def model_args(self) -> Dict[str, Any]:
        """Arguments that the plain model is created with.

        Raises:
            InputError: There is one that says where to load from, or what, which is not for a publication to say.
        """
        check_model_arguments(self._saved_args, f'{CONFIG_FILE} of {self.name}')
        return {name: value for name, value in self._saved_args.items() if name not in OF_SPLIT_MODELS}

    @property
    def _saved_args(self) -> Dict[str, Any]:
        # Those of split models are among them where timm's own save_for_hf saved one: all norms are in one file then.
        return _parse_model_cfg(deepcopy(self.config), {})[2] if 'architecture' in self.config else {}

    def load_state_dict(self) -> Dict[str, torch.Tensor]:
        """The state dict of the split model, or of the plain one where there are no auxiliary norms. Read once.

        Raises:
            InputError: A file is missing or damaged, or holds no weights, or pickled ones.
        """
        if self._state_dict is None:
            state_dict = self._load(WEIGHTS_FILE)
            if self.details.get('num_aux'):
                aux = self._load(AUX_FILE)
                # other entries would replace main weights: what is trained on would not be what stock timm loads
                if split_state_dict(aux)[0] or num_aux_in(aux) != self.num_aux:
                    raise InputError(f'{AUX_FILE} of {self.name} does not hold the {self.num_aux} auxiliary norm(s) '
                                     f'for each norm that its {CONFIG_FILE} announces.')
                state_dict.update(aux)
            self._state_dict = state_dict
        return dict(self._state_dict)  # timm takes entries out

    def _load(self, filename: str, again: bool = False) -> Dict[str, torch.Tensor]:
        path = self._locate(filename, force=again)
        if path is None:
            why = f'which its {CONFIG_FILE} announces: it is not complete'
            if filename == WEIGHTS_FILE:
                why = 'and pickled weights, such as pytorch_model.bin, could run code and are not read'
            raise InputError(f'{self.name} has no {filename}, {why}.')
        expected, cause = self.details.get('sha256', {}).get(filename), None
        try:  # safetensors notices a file that is cut short; a changed byte in it only the digest tells
            if not expected or file_digest(path) == expected:
                weights = load_file(path)
                check_values(weights, f'{filename} of {self.name}')
                return weights
            problem = 'damaged: its contents are not what was published'
        except (OSError, SafetensorError) as error:
            problem, cause = f'damaged or no safetensors file: {one_line(error)}', error
        damage = f'{filename} of {self.name} is {problem}.'
        if again or 'hf_hub_id' not in self.origin:
            raise InputError(damage) from cause
        _logger.warning(f'{damage} It is downloaded again.')  # most likely the copy in the cache alone is damaged
        return self._load(filename, again=True)


def open_publication(source: str, location: str, cache_dir: Optional[str] = None) -> Publication:
    """Open published weights.

    Args:
        source: `'hf-hub'` or `'local-dir'`, as timm calls them.
        location: `user/name`, `user/name@revision` or a folder.
        cache_dir: Cache folder of the Hub's client.

    Raises:
        InputError: There is no such repository, revision or folder, or it cannot be read.
    """
    return Publication.in_folder(location) if source == 'local-dir' else Publication.on_hub(location, cache_dir)


def file_digest(path: str) -> str:
    """The SHA-256 of a file, as a hexadecimal number."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_config(path: Optional[str], name: str) -> Dict[str, Any]:
    """Read a `config.json`.

    Args:
        path: The file, None for none.
        name: Name of the publication for messages.

    Raises:
        InputError: It is damaged.
    """
    if path is None:
        return {}
    try:
        with open(path, encoding='utf-8') as file:
            config = json.load(file)
    except (OSError, RecursionError, ValueError) as error:
        raise InputError(f'{CONFIG_FILE} of {name} is damaged ({error}).') from error
    if not _is_well_formed(config):
        raise InputError(f'{CONFIG_FILE} of {name} is damaged: its entries are not what timm and timm-advprop write.')
    return config


def _file_in(folder: str, filename: str, force: bool = False) -> Optional[str]:
    path = os.path.join(folder, filename)
    return path if os.path.isfile(path) else None


def _is_well_formed(config: Any) -> bool:
    if not isinstance(config, dict):
        return False
    arguments, _, details = parts = [config.get(entry, {}) for entry in ('model_args', 'pretrained_cfg', CONFIG_KEY)]
    return (
        all(isinstance(part, dict) for part in parts)
        and isinstance(details.get('sha256', {}), dict)
        and all(is_number_of_norms(part.get('num_aux')) and part.get('share') in (None, *SHARES)
                for part in (arguments, details))
    )
