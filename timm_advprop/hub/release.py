"""What is published: a model with the weights of a run, and what is known of the run."""
import csv
import io
import os
import re
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Union

import torch
import torch.nn as nn
from timm.models import get_pretrained_cfg
from timm.utils import unwrap_model

from ..engine.datasets import DataConfig, dataset_name, resolve_image_config
from ..engine.open_model import base_name, open_model
from ..engine.run_settings import DataSettings, ImageSettings, ModelSettings
from ..errors import InputError, as_input_error
from ..models import base_of
from ..norms import has_split_norm, num_aux_in, num_aux_norms, set_norm_route
from ..regimes import RegimeSettings, regime_of
from ..weights import open_checkpoint, weights_digest

__all__ = ['Release', 'open_release', 'release_model']


@dataclass
class Release:
    """What is published.

    Args:
        model: The model, split or plain, on the CPU.
        recipe: Arguments of the run, under the names of `args.yaml`; empty where nothing is known.
        data_config: How images are sized and normalised, see `timm.data.resolve_data_config`.
        summary: The run's `summary.csv`.
        epoch: Epoch that the weights are from.
        averaged: The weights are an exponential moving average.
    """
    model: nn.Module
    recipe: Dict[str, Any] = field(default_factory=dict)
    data_config: Dict[str, Any] = field(default_factory=dict)
    summary: str = ''
    epoch: Optional[int] = None
    averaged: bool = False

    @property
    def architecture(self) -> str:
        """The plain timm architecture."""
        return base_of(self.model.pretrained_cfg['architecture'])

    @property
    def num_aux(self) -> int:
        """Number of auxiliary norms for each norm, 0 for a plain model."""
        return num_aux_norms(self.model)

    @property
    def regime(self) -> Optional[str]:
        """The training regime, None where it is not known."""
        if 'regime' not in self.recipe:
            return None
        return as_input_error(regime_of, self._regime_settings, has_split_norm(self.model)).name

    @property
    def aux_norms(self) -> List[Dict[str, Any]]:
        """For each auxiliary norm, what it was trained on; strengths and step sizes in 0–255 pixels."""
        if 'regime' not in self.recipe:
            return [{} for _ in range(self.num_aux)]
        settings = self._regime_settings
        task_type = as_input_error(regime_of, settings, has_split_norm(self.model))
        facts = [source.facts() for source in as_input_error(task_type.sources_of_aux_norms, settings)]
        return (facts + [dict(trained_on='nothing')] * self.num_aux)[:self.num_aux]

    @property
    def _regime_settings(self) -> RegimeSettings:
        return as_input_error(RegimeSettings.from_values, self.recipe)

    @property
    def adversarial_route(self) -> Optional[int]:
        """Route through the first auxiliary norm that was trained on adversarial images, None where there is none."""
        routes = [route for route, norm in enumerate(self.aux_norms, 1) if 'attack' in norm]
        return routes[0] if routes else None

    def digest(self, route: str) -> str:
        """Digest of the weights that images pass on a route, see `weights_digest`."""
        return weights_digest(self.model.state_dict(), route)

    @property
    def dataset(self) -> str:
        """Name of the data set of the run, '' where it is not known."""
        return dataset_name(as_input_error(DataSettings.from_values, self.recipe))

    @property
    def metrics(self) -> Dict[str, float]:
        """Validation metrics of the weights, in percent, as the training program measured them."""
        if self.averaged and self.recipe.get('model_ema_force_cpu'):
            return {}  # the program validates the weights themselves then
        rows = csv.DictReader(io.StringIO(self.summary))
        row = next((row for row in rows if row.get('epoch') == str(self.epoch)), {})
        return {name: float(row[f'eval_{name}']) for name in ('top1', 'top5')
                if re.fullmatch(r'[\d.]+', row.get(f'eval_{name}') or '')}


def release_model(
        model: nn.Module,
        recipe: Optional[Mapping[str, Any]] = None,
        model_kwargs: Optional[Mapping[str, Any]] = None,
) -> Release:
    """Publish a model as it is.

    Args:
        model: A timm model with or without split norms; DDP and compilation are taken off. It is left as it is.
        recipe: Arguments of the run, under the names of `args.yaml`.
        model_kwargs: Arguments that the model was created with, where timm does not remember them.

    Raises:
        InputError: It is not a timm classifier.
    """
    model = unwrap_model(model)
    if not (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or not hasattr(model, 'num_classes'):
        raise InputError(f'{type(model).__name__} is not a timm classifier: only models that timm can create again '
                         'can be published.')
    model = deepcopy(model).cpu()
    return Release(model, _with_model_kwargs(recipe, model_kwargs), _data_config({}, model))


def open_release(
        checkpoint: Union[str, os.PathLike],
        model: Optional[str] = None,
        model_kwargs: Optional[Mapping[str, Any]] = None,
        recipe: Optional[Mapping[str, Any]] = None,
) -> Release:
    """Publish a checkpoint: the averaged weights where there are any.

    Args:
        checkpoint: A checkpoint of the training program or of timm's, which say which model they are of, or a file with
            weights alone.
        model: Model name, for a file that does not say it.
        model_kwargs: Further arguments of the model, for such a file.
        recipe: Arguments of the run that replace or add to those in the checkpoint.

    Raises:
        InputError: There is no such file, it does not say which model it is of, or it does not fit.
    """
    opened = open_checkpoint(os.fspath(checkpoint), use_ema=True)
    args = _with_model_kwargs({**opened.args, **(recipe or {})}, model_kwargs)
    name = model or args.get('model')
    if not name:
        raise InputError(f'{opened.path} does not say which model it is of: give --model (in Python, model=…).')
    settings = as_input_error(ModelSettings.from_values, {**args, 'model': name, 'pretrained': False})
    settings = replace(settings, num_classes=settings.num_classes or _count_classes(name, opened.state_dict))
    image = as_input_error(ImageSettings.from_values, args)
    model = open_model(settings, image, opened, num_aux=num_aux_in(opened.state_dict))
    if num_aux_norms(model):
        set_norm_route(model, 'main')
    summary = os.path.join(os.path.dirname(opened.path), 'summary.csv')
    return Release(
        model, recipe=args, data_config=_data_config(args, model),
        summary=_read_summary(summary) if opened.args else '',
        epoch=opened.epoch if isinstance(opened.epoch, int) else None, averaged=opened.averaged)


def _data_config(args: Mapping[str, Any], model: nn.Module) -> DataConfig:
    config = resolve_image_config(as_input_error(ImageSettings.from_values, args), model)
    channels = getattr(model, 'in_chans', None) or config['input_size'][0]  # the cfg is of the weights it began with
    return dict(config, input_size=(channels, *config['input_size'][1:]))


def _count_classes(name: str, state_dict: Mapping[str, torch.Tensor]) -> Optional[int]:
    # From the classifier's bias; None where the model has none of that name.
    cfg = None if ':' in name else get_pretrained_cfg(base_name(name))
    classifier = cfg.classifier if cfg else None
    for layer in (classifier,) if isinstance(classifier, str) else classifier or ():
        if f'{layer}.bias' in state_dict:
            return len(state_dict[f'{layer}.bias'])
    return None


def _read_summary(path: str) -> str:
    if not os.path.isfile(path):
        return ''
    with open(path, newline='', encoding='utf-8', errors='replace') as file:
        return file.read()


def _with_model_kwargs(
        recipe: Optional[Mapping[str, Any]],
        model_kwargs: Optional[Mapping[str, Any]],
) -> Dict[str, Any]:
    recipe = dict(recipe or {})
    if model_kwargs:
        recipe['model_kwargs'] = {**(recipe.get('model_kwargs') or {}), **model_kwargs}
    return recipe
