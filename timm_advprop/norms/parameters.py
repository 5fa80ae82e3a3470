"""The parameters that only some routes use, and which of the norms are trained."""
from typing import List, Tuple

import torch.nn as nn

from .split_norm import split_norms

__all__ = ['freeze_norms', 'norm_parameters', 'train_aux']


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


def freeze_norms(model: nn.Module, main: bool = True, aux: bool = True) -> None:
    """Freeze the main norms of a model, the auxiliary ones, or both, until the next call.

    The parameters of a frozen norm require no gradients, and its statistics stay, whatever `model.train()` does: in
    train mode, too, it normalises by its running statistics. Those that all routes share are the main norm's. Which
    norm an image passes does not change. (To freeze all statistics for a while, put every `_BatchNorm` into eval mode
    after `model.train()`, as in a plain model.)

    Args:
        model: A model with split norms. Its other parameters, and norms that are not split, are left alone.
        main: Freeze the main norms; otherwise they train.
        aux: Freeze the auxiliary norms; otherwise they train.
    """
    for norm in split_norms(model):
        norm.frozen = main, aux
        norm.train(model.training)
    for parameters, frozen in zip(norm_parameters(model), (main, aux)):
        for parameter in parameters:
            parameter.requires_grad_(not frozen)


def train_aux(model: nn.Module, train: bool = True) -> None:
    """Take the auxiliary norms of a model into training, or out of it for a regime that does not use them.

    Args:
        model: Any model.
        train: Let the parameters of auxiliary norms require gradients where those of their main norm do, or where only
            the main norms were frozen (`freeze_norms`). Otherwise none of them do (DDP would wait for gradients that do
            not come).
    """
    for norm in split_norms(model):
        main_frozen, aux_frozen = norm.frozen
        for aux in norm.aux_bn:
            for name, parameter in aux.named_parameters():
                trained = main_frozen or norm.get_parameter(name).requires_grad
                parameter.requires_grad_(train and trained and not aux_frozen)
