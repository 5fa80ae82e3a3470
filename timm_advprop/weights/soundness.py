"""Published tensors that are no weights of a model: refused, where torch would copy them into it without a word."""
from typing import Mapping

import torch

from ..errors import InputError

__all__ = ['check_kinds', 'check_values']


def check_values(state_dict: Mapping[str, torch.Tensor], name: str) -> None:
    """Check that tensors can be weights, whatever the model.

    Args:
        state_dict: The tensors.
        name: What they are, for messages.

    Raises:
        InputError: One is complex, has values that are not finite, or variances below 0; the message names it.
    """
    for key, value in state_dict.items():
        if value.is_complex():
            raise InputError(f'{name} holds no weights of a model: {key} is complex.')
        if value.is_floating_point() and not value.float().isfinite().all():
            raise InputError(f'{name} holds no weights of a model: {key} has values that are not finite.')
        if key.endswith('running_var') and (value < 0).any():
            raise InputError(f'{name} holds no weights of a model: {key} has variances below 0.')


def check_kinds(state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str) -> None:
    """Check that tensors are floating-point numbers where a model's are. Those in place of its integers pass: averages
    of checkpoints have counts of batches such as 99.5.

    Args:
        state_dict: The tensors.
        expected: The model's, by the same names; others are passed over.
        name: What the tensors are, for messages.

    Raises:
        InputError: One is integer, boolean or complex; the message names it.
    """
    for key, value in state_dict.items():
        if key in expected and expected[key].is_floating_point() and not value.is_floating_point():
            raise InputError(f'{name} holds no weights of this model: {key} is of type '
                             f'{str(value.dtype).removeprefix("torch.")}.')
