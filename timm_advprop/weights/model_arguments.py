"""Arguments of models that a file names: how the model is made, never what is loaded into it, nor from where."""
from typing import Any

from ..errors import InputError

__all__ = ['MOST_AUX', 'check_model_arguments', 'is_number_of_norms']

MOST_AUX = 100  # auxiliary norms of a norm; more would be a mistake, or an attempt to exhaust the memory

# Arguments of timm's factory and builder, which say what is loaded and how. The others reach the model alone.
_NOT_OF_MODELS = {
    'base', 'cache_dir', 'checkpoint_path', 'device', 'dtype', 'exportable', 'feature_cfg', 'features_only',
    'kwargs_filter', 'model_cls', 'model_name', 'no_jit', 'out_indices', 'pretrained', 'pretrained_cfg',
    'pretrained_cfg_overlay', 'pretrained_filter_fn', 'pretrained_model_args', 'pretrained_strict', 'publication',
    'scriptable', 'variant',
}


def check_model_arguments(arguments: Any, name: str) -> None:
    """Check the arguments of a model in a file.

    Args:
        arguments: The arguments by their names, as they were read.
        name: The file, for messages.

    Raises:
        InputError: There is one that says where to load from, or what, which is not for a file to say, or too many
            auxiliary norms; or these are no arguments.
    """
    if not isinstance(arguments, dict):
        raise InputError(f'{name} has no names for the arguments of its model.')
    refused = _NOT_OF_MODELS & arguments.keys()
    if refused:
        raise InputError(f'{name} has the model argument {min(refused)}, which is not one: the model is not created.')
    if not is_number_of_norms(arguments.get('num_aux')):
        raise InputError(f'{name} has the model argument num_aux={arguments["num_aux"]!r}: it must be from 0 to '
                         f'{MOST_AUX}.')


def is_number_of_norms(value: Any) -> bool:
    """Whether a value can be the number of auxiliary norms for each norm; None leaves it open."""
    return value is None or type(value) is int and 0 <= value <= MOST_AUX
