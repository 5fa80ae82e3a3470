"""A validation run: from settings to timm's results, through a route and under an attack."""
import importlib.util
import logging
from collections import OrderedDict
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn
from timm.data import RealLabelsImagenet
from timm.layers import apply_test_time_pool
from timm.utils import reparameterize_model

from ..errors import InputError, as_input_error
from ..norms import has_split_norm, num_aux_in, set_norm_route, strip_aux
from ..regimes import Attack
from ..weights import open_checkpoint, weights_digest
from .bad_images import explained_data_loss
from .datasets import (
    DataConfig,
    channel_normalisation,
    check_class_count,
    check_dataset_root,
    dataset_name,
    make_loader,
    open_split,
    resolve_image_config,
)
from .eval_settings import EvalDataSettings, EvalModelSettings, EvalSettings
from .evaluation import evaluate
from .open_model import open_model, try_images
from .placement import Placement, open_placement

__all__ = ['validate']

_logger = logging.getLogger(__name__)

Results = Dict[str, Any]


def validate(settings: EvalSettings) -> Results:
    """Validate one model.

    Returns:
        timm's results (`model`, `top1`, `top5`, … in percent), `route`, what was validated on what, and `adv_top1`,
        `adv_top5` and the attack where one was asked for: by the same labels as `top1`. An attack always starts from
        the labels of the data set.

    Raises:
        InputError: Settings do not go together, or something they name is missing.
    """
    _check_settings(settings)
    check_dataset_root(settings.data, settings.data.split)
    placement = open_placement(settings.device, settings.loader.seed)
    model = _open(settings)
    about = dict(weights=weights_digest(model.state_dict(), settings.model.route))
    param_count = sum(parameter.numel() for parameter in model.parameters())
    config = resolve_image_config(
        settings.image, model, verbose=True, use_test_size=not settings.image.use_train_size)
    num_classes = model.num_classes
    attack = _normalised_attack(settings, config, num_classes)
    model, config = _prepare(model, settings, config, placement)
    dataset, loader = _open_data(settings, config, num_classes, placement)
    labels = _Labels(settings.data, dataset, num_classes, placement.device)
    with explained_data_loss():
        metrics = evaluate(
            model, loader, placement, attack=attack, on_output=labels.add, output_indices=labels.valid,
            log_interval=settings.report.log_freq)
    metrics.update(labels.accuracies())
    results = OrderedDict(
        model=settings.model.model, **_rounded(metrics), **labels.scores(), param_count=round(param_count / 1e6, 2),
        img_size=config['input_size'][-1], crop_pct=config['crop_pct'], interpolation=config['interpolation'],
        route=settings.model.route, dataset=dataset_name(settings.data), split=settings.data.split, **about)
    if getattr(dataset, 'num_bad', 0):
        results['bad_images'] = dataset.num_bad
    if attack is not None:
        results.update({name: round(metrics[name], 4) for name in ('adv_top1', 'adv_top5')})
        results['adv_attack'] = attack.describe()
    _logger.info(' * ' + '  '.join(f'{name} {value:.3f}' for name, value in results.items() if 'top' in name))
    return results


def _check_settings(settings: EvalSettings) -> None:
    model, num_gpu = settings.model, settings.device.num_gpu
    attacked = settings.attack.attack is not None
    for wrong, message in (
            (model.torchscript and (attacked or model.route != 'main'),
             '--torchscript has only the main route and takes no attack'),
            (model.torchscript and model.torchcompile, '--torchscript and --torchcompile exclude each other'),
            (model.reparam and model.route != 'main', '--reparam folds the main norms only: use --route main'),
            (num_gpu > torch.cuda.device_count() and num_gpu > 1,
             f'--num-gpu {num_gpu}, but {torch.cuda.device_count()} are available'),
            (num_gpu > 1 and attacked, 'an attack runs on one GPU: use --num-gpu 1'),
            (settings.data.metrics_avg and importlib.util.find_spec('sklearn') is None,
             '--metrics-avg needs scikit-learn: pip install scikit-learn'),
    ):
        if wrong:
            raise InputError(f'{message}.')


def _open(settings: EvalSettings) -> nn.Module:
    model = settings.model
    checkpoint = open_checkpoint(model.checkpoint, model.use_ema) if model.checkpoint else None
    opened = open_model(
        model, settings.image, checkpoint, num_aux=num_aux_in(checkpoint.state_dict) if checkpoint else 0,
        pretrained=model.pretrained or checkpoint is None, scriptable=model.torchscript or None)
    if model.route != 'main' and not has_split_norm(opened):
        raise InputError(f'--route {model.route} needs auxiliary norms, {model.model} has none: '
                         'give a *_ap model or a checkpoint with auxiliary norms.')
    return opened


def _normalised_attack(settings: EvalSettings, config: DataConfig, num_classes: int) -> Optional[Attack]:
    if settings.attack.attack is None:
        return None
    as_input_error(settings.attack.attack.check_classes, num_classes)
    attack = settings.attack.attack.normalised_by(*channel_normalisation(config))
    _logger.info(f'Attack through the {settings.model.route} route: {attack.describe()}')
    return attack


def _prepare(
        model: nn.Module,
        settings: EvalSettings,
        config: DataConfig,
        placement: Placement,
) -> Tuple[nn.Module, DataConfig]:
    # The model as it is evaluated, and the crop that goes with it.
    model_settings: EvalModelSettings = settings.model
    if model_settings.test_pool:
        model, pooled = apply_test_time_pool(model, config)
        config = {**config, 'crop_pct': 1.0} if pooled else config
    if has_split_norm(model):
        set_norm_route(model, model_settings.route)
    if model_settings.reparam:
        model = reparameterize_model(strip_aux(model))
    model = placement.place(model).eval()
    try_images(model, config['input_size'], placement)
    if model_settings.torchscript:
        model = torch.jit.script(model)
    if model_settings.torchcompile:
        model = torch.compile(model, backend=model_settings.torchcompile, mode=model_settings.torchcompile_mode)
    if settings.device.num_gpu > 1:
        model = nn.DataParallel(model, device_ids=list(range(settings.device.num_gpu)))
    return model, config


def _open_data(settings: EvalSettings, config: DataConfig, num_classes: int, placement: Placement) -> Tuple[Any, Any]:
    data = settings.data
    dataset = open_split(data, data.split, config, num_samples=data.num_samples, seed=settings.loader.seed)
    if not data.valid_labels and not data.real_labels:
        check_class_count(dataset, num_classes, f'split {data.split!r}')
    loader = make_loader(
        dataset, config, placement, settings.loader, settings.loader.batch_size * settings.device.num_gpu,
        interpolation=config['interpolation'], crop_pct=config['crop_pct'], crop_mode=config['crop_mode'],
        crop_border_pixels=settings.image.crop_border_pixels)
    return dataset, loader


class _Labels:
    # What the labels of a data set mean, and what is measured by other labels than those of its folders.
    def __init__(self, settings: EvalDataSettings, dataset: Any, num_classes: int, device: torch.device):
        self.average = settings.metrics_avg
        self.valid = _read_valid_labels(settings.valid_labels, num_classes, device)
        # one count for clean images and one for adversarial ones
        self.real = {kind: _read_real_labels(settings.real_labels, dataset)
                     for kind in ('', 'adv_') if settings.real_labels}
        self._predicted, self._true = [], []

    def add(self, kind: str, output: torch.Tensor, target: torch.Tensor) -> None:
        if kind in self.real:
            self.real[kind].add_result(output)
        if self.average and not kind:
            self._predicted.append(output.argmax(dim=1).cpu())
            self._true.append(target.cpu())

    def accuracies(self) -> Dict[str, float]:
        # In percent, where the real labels take the place of the folders'.
        return {f'{kind}top{k}': real.get_accuracy(k=k)
                for kind, real in self.real.items() for k in (1, 5) if real.sample_idx}

    def scores(self) -> Dict[str, float]:
        if not self.average:
            return {}
        from sklearn.metrics import precision_recall_fscore_support
        scores = precision_recall_fscore_support(
            torch.cat(self._true).numpy(), torch.cat(self._predicted).numpy(), average=self.average, zero_division=0)
        return {f'{self.average}_{name}': round(100 * score, 4)
                for name, score in zip(('precision', 'recall', 'f1_score'), scores)}


def _rounded(metrics: Dict[str, float]) -> Dict[str, float]:
    rounded = {}
    for name in ('top1', 'top5'):
        rounded[name] = round(metrics[name], 4)
        rounded[f'{name}_err'] = round(100 - metrics[name], 4)
    return rounded


def _read_valid_labels(path: str, num_classes: int, device: torch.device) -> Optional[torch.Tensor]:
    if not path:
        return None
    try:
        with open(path, encoding='utf-8') as file:
            labels = [int(line) for line in file if line.strip()]
        if not labels or not 0 <= min(labels) <= max(labels) < num_classes:
            raise ValueError(f'the model has the classes 0 to {num_classes - 1}')
        return torch.tensor(labels, device=device)
    except (OSError, ValueError) as error:
        raise InputError(f'--valid-labels {path} is not a file with one class index a line: {error}.') from error


def _read_real_labels(path: str, dataset: Any) -> Optional[RealLabelsImagenet]:
    if not path:
        return None
    try:
        return RealLabelsImagenet(dataset.filenames(basename=True), real_json=path)
    except (OSError, ValueError) as error:
        raise InputError(f'Cannot read --real-labels {path}: {error}.') from error
