"""The model of a validation run: opened, checked, on its device and its route."""
import logging
from dataclasses import dataclass, replace
from typing import Any, Optional, Tuple

import torch
import torch.nn as nn
from timm.layers import apply_test_time_pool
from timm.utils import reparameterize_model

from ..errors import InputError, as_input_error
from ..norms import Route, has_split_norm, num_aux_in, set_norm_route, strip_aux
from ..weights import Checkpoint, open_checkpoint, weights_digest
from .checkpoint_settings import with_settings_of
from .class_labels import names_by_label
from .datasets import DataConfig, resolve_image_config
from .eval_settings import EvalModelSettings, EvalSettings
from .open_model import open_model, try_images
from .placement import Placement, open_placement
from .recalibration import Recalibration
from .route_names import is_blend, plain_model_of

__all__ = ['TestedModel', 'open_tested_model']

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestedModel:
    """A model as it is evaluated.

    Args:
        settings: What was asked for, and what a checkpoint says beside it.
        model: The model on its device, on its route, in eval mode.
        config: How its images are sized, cropped and normalised.
        placement: Where it is.
        num_classes: Number of its classes.
        weights: Name of its weights, see `weights_digest`.
        param_count: Number of its parameters, in millions.
        recalibrated: The images that its statistics were taken from, '' where they are those of training.
        label_names: Names of its classes in their order, as they are kept with its weights; empty where they are not.
    """
    settings: EvalSettings
    model: nn.Module
    config: DataConfig
    placement: Placement
    num_classes: int
    weights: str
    param_count: float
    recalibrated: str = ''
    label_names: Tuple[str, ...] = ()
    __test__ = False  # no test of pytest's

    @property
    def route(self) -> Route:
        """The route that the model is on: `'main'` for a plain model, whatever its norms are made of."""
        return 'main' if self.settings.model.is_plain else self.settings.model.norm_route


def open_tested_model(settings: EvalSettings, attacked: Optional[bool] = None) -> TestedModel:
    """Open the model of a validation run.

    Args:
        settings: The run's settings.
        attacked: It will be attacked; by default where the settings have an attack.

    Raises:
        InputError: Settings do not go together, or something they name is missing.
    """
    _check_settings(settings, settings.attack.attack is not None if attacked is None else attacked)
    placement = open_placement(
        settings.device, settings.loader.seed, attack_dtypes=[attack.amp_dtype for attack in settings.attack.strengths])
    recalibration = _recalibration(settings)
    checkpoint = _open_checkpoint(settings.model)
    if checkpoint is not None:
        settings = with_settings_of(checkpoint, settings)
    model = _open(settings, checkpoint)
    label_names = _label_names(model, checkpoint)
    weights = weights_digest(model.state_dict(), settings.model.route)
    param_count = sum(parameter.numel() for parameter in model.parameters())
    config = resolve_image_config(
        settings.image, model, verbose=True, use_test_size=not settings.image.use_train_size)
    if recalibration is not None:
        recalibration = replace(recalibration, config=config)
        model = recalibration(model.to(placement.device), placement, settings.loader)
        weights = recalibration.digest(weights)
    num_classes: Any = model.num_classes
    model, config = _prepare(model, settings, config, placement)
    return TestedModel(
        settings, model, config, placement, num_classes, weights, round(param_count / 1e6, 2),
        recalibration.describe() if recalibration is not None else '', label_names)


def _check_settings(settings: EvalSettings, attacked: bool) -> None:
    model, num_gpu = settings.model, settings.device.num_gpu
    for wrong, message in (
            (model.torchscript and attacked, '--torchscript takes no attack'),
            (model.torchscript and not model.is_plain,
             '--torchscript has only the main route: use --route main or a blend such as --route 0.3'),
            (model.torchscript and model.torchcompile, '--torchscript and --torchcompile exclude each other'),
            (model.reparam and not model.is_plain,
             '--reparam folds the main norms only: use --route main or a blend such as --route 0.3'),
            (settings.data.recalibrate_split != 'train' and not model.recalibrate,
             '--recalibrate-split belongs to --recalibrate N'),
            (num_gpu > torch.cuda.device_count() and num_gpu > 1,
             f'--num-gpu {num_gpu}, but {torch.cuda.device_count()} are available'),
            (num_gpu > 1 and attacked, 'an attack runs on one GPU: use --num-gpu 1'),
    ):
        if wrong:
            raise InputError(f'{message}.')


def _recalibration(settings: EvalSettings) -> Optional[Recalibration]:
    if not settings.model.recalibrate:
        return None
    recalibration = Recalibration(
        settings.data, settings.data.recalibrate_split, settings.model.recalibrate, config={},
        crop_border_pixels=settings.image.crop_border_pixels)
    recalibration.check_split(settings.data.split)
    return recalibration


def _open_checkpoint(model: EvalModelSettings) -> Optional[Checkpoint]:
    if not model.checkpoint:
        return None
    checkpoint = open_checkpoint(model.checkpoint, model.use_ema)
    if model.use_ema and not checkpoint.averaged:
        raise InputError(f'--use-ema: {model.checkpoint} has no averaged weights, leave it out.')
    if not model.use_ema and checkpoint.has_average:
        _logger.info(f'{model.checkpoint} has averaged weights too: --use-ema takes them.')
    return checkpoint


def _label_names(model: nn.Module, checkpoint: Optional[Checkpoint]) -> Tuple[str, ...]:
    count: Any = model.num_classes
    kept = (getattr(model, 'pretrained_cfg', None) or {}) if checkpoint is None else checkpoint.raw
    names = names_by_label(kept.get('label_names'), count)
    return names if len(names) == count else ()


def _open(settings: EvalSettings, checkpoint: Optional[Checkpoint]) -> nn.Module:
    model = settings.model
    opened = open_model(
        model, settings.image, checkpoint, num_aux=num_aux_in(checkpoint.state_dict) if checkpoint else 0,
        pretrained=model.pretrained or checkpoint is None, scriptable=model.torchscript or None)
    if model.route != 'main' and not has_split_norm(opened):
        raise InputError(f'--route {model.route} needs auxiliary norms, {model.model} has none: '
                         'give a *_ap model or a checkpoint with auxiliary norms.')
    if is_blend(model.route) or model.recalibrate:
        return as_input_error(plain_model_of, opened, model.route)
    if has_split_norm(opened):
        as_input_error(set_norm_route, opened, model.norm_route)
    return opened


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
    if model_settings.reparam:
        model = reparameterize_model(strip_aux(model))
    model = placement.place(model).eval()
    try_images(model, config['input_size'], placement)
    if model_settings.torchscript:
        model = torch.jit.script(model)
    if model_settings.torchcompile:
        model = torch.compile(model, backend=model_settings.torchcompile, mode=model_settings.torchcompile_mode)  # pyright: ignore[reportAssignmentType]
    if settings.device.num_gpu > 1:
        model = nn.DataParallel(model, device_ids=list(range(settings.device.num_gpu)))
    return model, config
