"""What is published: a model with the weights of a run, what is known of the run, and what was measured."""
import csv
import io
import os
import re
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Union

import torch
import torch.nn as nn
from timm.models import get_pretrained_cfg
from timm.utils import natural_key, unwrap_model

from ..engine.datasets import DataConfig, dataset_name, resolve_image_config
from ..engine.open_model import base_name, open_model
from ..engine.run_settings import DataSettings, ImageSettings, ModelSettings
from ..errors import InputError, as_input_error
from ..models import base_of
from ..norms import has_split_norm, num_aux_in, num_aux_norms
from ..output import without_folders
from ..regimes import RegimeSettings, regime_of
from ..robustness.summary import headline, is_summary
from ..weights import check_model_arguments, open_checkpoint, weights_digest
from ..weights.downloads import redact
from .blending import Blend, BlendRequest, blended
from .label_names import names_of_labels

__all__ = ['Release', 'Result', 'open_release', 'release_model']

# Of one machine, or of one run on it: nobody else can use them.
_OF_ONE_RUN = (
    'config', 'data', 'data_dir', 'device', 'device_modules', 'distributed', 'experiment', 'hub_private', 'local_rank',
    'log_wandb', 'no_resume_opt', 'output', 'prefetcher', 'push_to_hub', 'rank', 'resume', 'train_images',
    'wandb_project', 'wandb_resume_id', 'wandb_tags', 'world_size',
)


class Result(NamedTuple):
    """Accuracy on a kind of images, in percent.

    Args:
        images: `'clean'`, `'under <attack>'`, or a suite of `timm_advprop.robustness`.
        norms: `'main'`, `'aux'`, `'aux <number>'`, or `'blend <share>'`: the norms that images passed, and that the
            attack saw.
        top1: Top-1 accuracy.
        top5: Top-5 accuracy, None where there are no more than 5 classes to tell apart.
        dataset: Name of the data set.
        split: Its split.
        source: The program that measured it.
        num_images: Number of images, None where it is not known.
    """
    images: str
    norms: str
    top1: float
    top5: Optional[float]
    dataset: str
    split: str
    source: str
    num_images: Optional[int] = None


@dataclass(frozen=True)
class Release:
    """What is published.

    Args:
        model: The model, split or plain, on the CPU.
        architecture: The plain timm architecture.
        data_config: How images are sized and normalised, see `timm.data.resolve_data_config`.
        recipe: Arguments of the run, under the names of `args.yaml`; empty where nothing is known.
        published_recipe: The same without folders, devices, accounts and tokens of its machine.
        regime: The training regime, None where it is not known.
        aux_norms: For each auxiliary norm what it was trained on, empty where it is not known; strengths and step sizes
            in 0–255 pixels.
        regime_flags: The flags that the regime was given and made use of, under the names of `args.yaml`.
        dataset: Name of the data set, '' where it is not known.
        license: Licence, as the Hub names it.
        summary: The run's `summary.csv`.
        epoch: Epoch that the weights are from.
        within_epoch: They are from the midst of it, not from its end.
        averaged: The weights are an exponential moving average.
        blend: What its norms are made of, where it is the plain model of a route.
        results: What was measured, each kind once.
        label_names: Names of the classes, in the order of labels, None where they are not known or ImageNet's.
    """
    model: nn.Module
    architecture: str
    data_config: DataConfig
    recipe: Mapping[str, Any]
    published_recipe: Mapping[str, Any]
    regime: Optional[str]
    aux_norms: Sequence[Mapping[str, Any]]
    dataset: str
    license: str
    summary: str = ''
    epoch: Optional[int] = None
    within_epoch: bool = False
    averaged: bool = False
    regime_flags: Sequence[str] = ()
    blend: Optional[Blend] = None
    results: Sequence[Result] = ()
    label_names: Optional[Sequence[str]] = None


def release_model(
        model: nn.Module,
        recipe: Optional[Mapping[str, Any]] = None,
        model_kwargs: Optional[Mapping[str, Any]] = None,
        blend: Optional[BlendRequest] = None,
        **about: Any,
) -> Release:
    """Publish a model as it is, or the plain model of a route.

    Args:
        model: A timm model with or without split norms; DDP and compilation are taken off. It is left as it is.
        recipe: Arguments of the run, under the names of `args.yaml`.
        model_kwargs: Arguments that the model was created with, where timm does not remember them.
        blend: The route, None for all of them.
        **about: `results`, `dataset`, `license` and `label_names`, see `push_to_hub`.

    Raises:
        InputError: It is not a timm classifier, or the recipe or the results are not its own.
    """
    model = unwrap_model(model)
    if not (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or not hasattr(model, 'num_classes'):
        raise InputError(f'{type(model).__name__} is not a timm classifier: only models that timm can create again '
                         'can be published.')
    recipe = _with_model_kwargs(recipe or {}, model_kwargs)
    # those of weights that a run began with may be of other classes
    known_names = None if recipe.get('regime') else model.pretrained_cfg.get('label_names')  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    image = as_input_error(ImageSettings.from_values, recipe)
    return _describe(deepcopy(model).cpu(), recipe, image, blend, known_names=known_names, **about)


def open_release(
        checkpoint: Union[str, os.PathLike],
        model: Optional[str] = None,
        model_kwargs: Optional[Mapping[str, Any]] = None,
        recipe: Optional[Mapping[str, Any]] = None,
        blend: Optional[BlendRequest] = None,
        **about: Any,
) -> Release:
    """Publish a checkpoint, or the plain model of a route: the averaged weights where there are any.

    Args:
        checkpoint: A checkpoint of the training program or of timm's, which say which model they are of, or a file with
            weights alone.
        model: Model name, for a file that does not say it.
        model_kwargs: Further arguments of the model, for such a file.
        recipe: Arguments of the run that replace or add to those in the checkpoint.
        blend: The route, None for all of them.
        **about: `results`, `dataset`, `license` and `label_names`, see `push_to_hub`.

    Raises:
        InputError: There is no such file, it does not say which model it is of, or it does not fit; it says what to
            load into the model; or the recipe or the results are not its own.
    """
    opened = open_checkpoint(os.fspath(checkpoint), use_ema=True)
    check_model_arguments(opened.args.get('model_kwargs') or {}, opened.path)
    recipe = _with_model_kwargs({**opened.args, **(recipe or {})}, model_kwargs)
    name = model or recipe.get('model')
    if not name:
        raise InputError(f'{opened.path} does not say which model it is of: give --model (in Python, model=…).')
    # the weights are those of the file, and fast_norm would stay on in this process
    settings = as_input_error(ModelSettings.from_values, {
        **recipe, 'model': name, 'pretrained': False, 'fast_norm': False})
    settings = replace(settings, num_classes=settings.num_classes or _count_classes(name, opened.state_dict))
    image = as_input_error(ImageSettings.from_values, recipe)
    created = open_model(settings, image, opened, num_aux=num_aux_in(opened.state_dict))
    summary = Path(opened.path).with_name('summary.csv')
    return _describe(
        created, recipe, image, blend, known_names=opened.raw.get('label_names'), **about,
        summary=summary.read_bytes().decode(errors='replace') if opened.args and summary.is_file() else '',
        epoch=opened.epoch if isinstance(opened.epoch, int) else None, within_epoch='position' in opened.raw,
        averaged=opened.averaged)


def _describe(
        model: Any,
        recipe: Mapping[str, Any],
        image: ImageSettings,
        blend: Optional[BlendRequest] = None,
        results: Sequence[Mapping[str, Any]] = (),
        dataset: Optional[str] = None,
        license: Optional[str] = None,
        label_names: Optional[Sequence[str]] = None,
        known_names: Any = None,
        **of_run: Any,
) -> Release:
    dataset = dataset and without_folders(dataset)
    config = resolve_image_config(image, model)
    channels = getattr(model, 'in_chans', None) or config['input_size'][0]  # the cfg is of the weights it began with
    began_with_weights = recipe.get('pretrained', True)  # every run says whether it did
    regime, aux_norms, regime_flags = as_input_error(_training_of_norms, recipe, model)
    config = dict(config, input_size=(channels, *config['input_size'][1:]))
    made_of = None
    if blend is not None:
        model, made_of = blended(model, blend, recipe, config, aux_norms)
        aux_norms = []
    release = Release(
        model=model,
        architecture=base_of(model.pretrained_cfg['architecture']),
        data_config=config,
        recipe=recipe,
        published_recipe=_publishable(recipe, left_out=_OF_ONE_RUN),
        regime=regime,
        aux_norms=aux_norms,
        regime_flags=regime_flags,
        dataset=dataset or dataset_name(as_input_error(DataSettings.from_values, recipe)),
        license=license or began_with_weights and model.pretrained_cfg.get('license') or 'apache-2.0',
        blend=made_of,
        label_names=names_of_labels(label_names or known_names, model.num_classes, given=bool(label_names)),
        **of_run,
    )
    return replace(release, results=_measured(release, results, dataset))


def _training_of_norms(
        recipe: Mapping[str, Any],
        model: nn.Module,
) -> Tuple[Optional[str], List[Dict[str, Any]], List[str]]:
    # The regime, what each auxiliary norm was trained on, and the regime's flags. A regime may have left some norms
    # alone, and one that makes no images has no use for flags that it passes over.
    num_aux = num_aux_norms(model)
    if 'regime' not in recipe:  # of another program
        return None, [{} for _ in range(num_aux)], []
    # Code that a checkpoint names is not run for a card: it may be anything, and it may not be here.
    settings = replace(RegimeSettings.from_values(recipe), runs_code=False)
    task_type = regime_of(settings, has_split_norm(model))
    facts = [source.facts() for source in task_type.sources_of_aux_norms(settings)]
    flags = sorted(settings.given) if task_type.arguments(settings) else []
    return task_type.name, (facts + [dict(trained_on='nothing')] * num_aux)[:num_aux], flags


def _measured(release: Release, rows: Sequence[Mapping[str, Any]], dataset: Optional[str]) -> List[Result]:
    weights = {route: _names_of_weights(release, route)
               for route in {row.get('route') or 'main' for row in rows}}
    rows = _of_published_weights(release, weights, rows)
    for row in rows:
        _check_row(release, weights, row)
    own = _row_of_run(release) if release.blend is None else None
    measured = [(own, 'train.py')] if own else []
    measured += [(row, 'validate.py') for row in rows]
    results = {}
    for row, source in measured:
        for images, prefix in _kinds_of_images(row).items():
            result = Result(
                images, _norms_of(release, str(row.get('route') or 'main')), *_accuracies(release, row, prefix),
                dataset=_dataset_of(row) or dataset or without_folders(str(row.get('dataset') or release.dataset)),
                split=without_folders(str(row.get('split') or ('test' if _dataset_of(row) else 'validation'))),
                source=source,
                num_images=int(row['num_images']) if row.get('num_images') else None)
            results[result[:2] + (result.dataset, result.split, result.num_images)] = result
    return sorted(results.values(), key=lambda result: (
        result.images != 'clean', natural_key(result.images), result.norms != 'main'))


def _names_of_weights(release: Release, route: str) -> Set[str]:
    # Of a blend, the validation program knows two: as a blend, and as the plain model that it is once it is published.
    names = {weights_digest(release.model.state_dict(), route)}
    return {*names, release.blend.weights} if release.blend and route in (release.blend.route, 'main') else names


def _of_published_weights(
        release: Release,
        weights: Mapping[str, Set[str]],
        rows: Sequence[Mapping[str, Any]],
) -> List[Mapping[str, Any]]:
    # Suites compare models, and a blend was chosen among routes: a file of theirs has rows of others, too.
    single = [] if release.blend else [row for row in rows if not row.get('suite')]
    compared = [row for row in rows if row.get('suite') or release.blend]
    own = [row for row in compared if row.get('weights') in weights[row.get('route') or 'main']]
    return single + (own or compared[:1])  # which is refused


def _dataset_of(row: Mapping[str, Any]) -> Optional[str]:
    # of a suite that is a data set of its own, whatever people call the model's
    return row['dataset'] if row.get('suite') and row['suite'] == row.get('dataset') else None


def _kinds_of_images(row: Mapping[str, Any]) -> Dict[str, str]:
    # For each kind of images that a row is of, what begins the names of its figures.
    attack = f'under {row["adv_attack"]}' if row.get('adv_attack') else None
    if not row.get('suite'):
        return {'clean': '', **({attack: 'adv_'} if attack else {})}
    title = headline(row)  # a card has no room for each severity
    if title and is_summary(row) and title != row['suite']:
        title = f'{row["suite"]}: {title.removeprefix(row["suite"]).strip()}'
    return {attack or title: ''} if title else {}


def _norms_of(release: Release, route: str) -> str:
    if release.blend:
        return release.blend.name
    return route if route in ('main', 'aux') else f'aux {route}'


def _row_of_run(release: Release) -> Optional[Dict[str, Any]]:
    # Validation metrics of the weights, as the training program measured them: at the end of an epoch.
    if release.within_epoch:
        return None
    if release.averaged and release.recipe.get('model_ema_force_cpu'):
        return None  # the program validates the weights themselves then
    rows = csv.DictReader(io.StringIO(release.summary))
    row = next((row for row in rows if row.get('epoch') == str(release.epoch)), {})
    metrics = {name: row[f'eval_{name}'] for name in ('top1', 'top5')
               if re.fullmatch(r'[\d.]+', row.get(f'eval_{name}') or '')}
    return dict(metrics, split=release.recipe.get('val_split')) if 'top1' in metrics else None


def _check_row(release: Release, weights: Mapping[str, Set[str]], row: Mapping[str, Any]) -> None:
    if not (row.get('model') and row.get('weights')):
        raise InputError('The results do not say which model and weights they are of: validate with the program of '
                         'this version.')
    name = str(row['model'])
    if ':' not in name and base_of(base_name(name)) != release.architecture:
        raise InputError(f'The results are of {name}, the published model is {release.architecture}.')
    if row['weights'] not in weights[row.get('route') or 'main']:
        also = ' The averaged weights are published: validate with --use-ema.' if release.averaged else ''
        raise InputError(f'The results of {name} are of other weights than those that are published.{also}')


def _accuracies(release: Release, row: Mapping[str, Any], prefix: str) -> Tuple[float, Optional[float]]:
    top5 = row.get(f'{prefix}top5')
    try:
        top1, top5 = float(row.get(f'{prefix}top1')), None if top5 in (None, '') else float(top5)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError) as error:
        raise InputError(f'The results lack a number: {error}.') from error
    if not all(0 <= value <= 100 for value in (top1, top5 or 0)):
        raise InputError(f'The results are not accuracies in percent: {top1}, {top5}.')
    return top1, top5 if release.model.num_classes > 5 else None  # pyright: ignore[reportOperatorIssue]


def _count_classes(name: str, state_dict: Mapping[str, torch.Tensor]) -> Optional[int]:
    # From the classifier's bias; None where the model has none of that name.
    cfg = None if ':' in name else get_pretrained_cfg(base_name(name))
    classifier = cfg.classifier if cfg else None
    for layer in (classifier,) if isinstance(classifier, str) else classifier or ():
        if f'{layer}.bias' in state_dict:
            return len(state_dict[f'{layer}.bias'])
    return None


def _with_model_kwargs(recipe: Mapping[str, Any], model_kwargs: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    given = {**(recipe.get('model_kwargs') or {}), **(model_kwargs or {})}
    return {**recipe, 'model_kwargs': given} if given else dict(recipe)


def _publishable(value: Any, left_out: Sequence[str] = ()) -> Any:
    # A value of a recipe without folders of its machine and without secrets.
    if isinstance(value, str):
        return redact(without_folders(value))
    if isinstance(value, Mapping):
        return {str(key): _publishable(entry) for key, entry in value.items() if key not in left_out}
    if isinstance(value, (list, tuple)):
        return [_publishable(entry) for entry in value]
    return value if isinstance(value, (int, float, bool, type(None))) else _publishable(str(value))
