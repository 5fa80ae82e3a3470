"""The parameters that only some routes use."""
from typing import List, Tuple

import torch.nn as nn

from .split_norm import split_norms

__all__ = ['norm_parameters', 'train_aux']


def norm_parameters(model: nn.Module) -> Tuple[List[nn.Parameter], List[nn.Parameter]]:
    """The parameters that only some routes use: those of the main norms, and those of the auxiliary norms.

    Args:
        model: Any model. All its other parameters are shared by all routes.
    """
    main, aux = [], []
    for norm in split_norms(model):
        main.extend(norm.get_parameter(name) for name, _ in norm.aux_bn[0].named_parameters())
        aux.extend(norm.aux_bn.parameters())
    return main, aux


def train_aux(model: nn.Module, train: bool = True) -> None:
    """Take the auxiliary norms of a model into training, or out of it for a regime that does not use them.

    Args:
        model: Any model.
        train: Let the parameters of auxiliary norms require gradients where those of their main norm do. Otherwise none
            of them do (DDP would wait for gradients that do not come).
    """
    for norm in split_norms(model):
        for aux in norm.aux_bn:
            for name, parameter in aux.named_parameters():
                parameter.requires_grad_(train and norm.get_parameter(name).requires_grad)
