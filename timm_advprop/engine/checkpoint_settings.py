"""What the checkpoint of a training run says of its evaluation: the model, and the size and normalisation of images."""
import logging
from dataclasses import replace
from typing import Any, Dict, Sequence

from ..errors import InputError, as_input_error
from ..settings import Settings
from ..weights import Checkpoint, check_model_arguments
from .eval_settings import EvalSettings
from .run_settings import ImageSettings

__all__ = ['with_settings_of']

_logger = logging.getLogger(__name__)

_OF_MODEL = ('model', 'num_classes', 'gp', 'model_kwargs')
_OF_SIZE = ('img_size', 'input_size')  # which say the same
_OF_IMAGES = ('mean', 'std', 'crop_pct', 'interpolation')


def with_settings_of(checkpoint: Checkpoint, settings: EvalSettings) -> EvalSettings:
    """Settings with what the arguments in a checkpoint say where they say nothing themselves, and log it.

    Args:
        checkpoint: A checkpoint of the training program or of timm's; any other says nothing.
        settings: Settings of a validation run.

    Raises:
        InputError: The model is named by neither, or arguments are out of range, do not go with the settings, or say
            what to load into the model.
    """
    of_model = _unsaid(settings.model, _OF_MODEL, checkpoint.args)
    check_model_arguments(of_model.get('model_kwargs', {}), checkpoint.path)
    has_size = settings.image.img_size or settings.image.input_size
    of_images = _unsaid(settings.image, _OF_IMAGES if has_size else _OF_SIZE + _OF_IMAGES, checkpoint.args)
    channels = as_input_error(ImageSettings.from_values, checkpoint.args).channels
    if channels and not settings.image.channels:
        of_images['in_chans'] = channels
    if not settings.model.model and 'model' not in of_model:
        raise InputError(f'{checkpoint.path} does not say which model it is of: give --model.')
    if of_model or of_images:
        said = ', '.join(f'{name} {_text(value)}' for name, value in {**of_model, **of_images}.items())
        _logger.info(f'{checkpoint.path} says, where the command line does not: {said}.')
    return replace(settings, model=as_input_error(replace, settings.model, **of_model),
                   image=as_input_error(replace, settings.image, **of_images))


def _unsaid(settings: Settings, names: Sequence[str], arguments: Dict[str, Any]) -> Dict[str, Any]:
    return {name: arguments[name] for name in names if arguments.get(name) and not getattr(settings, name)}


def _text(value: Any) -> str:
    if hasattr(value, 'items'):
        return ' '.join(f'{name}={entry}' for name, entry in value.items())
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
