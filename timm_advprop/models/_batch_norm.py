"""Settings of a model's batch norms that timm takes as flags."""
from typing import Optional

import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..norms import convert_sync_batchnorm

__all__ = ['configure_batch_norm']


def configure_batch_norm(
        model: nn.Module,
        momentum: Optional[float] = None,
        eps: Optional[float] = None,
        synchronise: bool = False,
) -> nn.Module:
    """Set every batch norm of a model, main and auxiliary.

    Args:
        model: A model with split or plain batch norms.
        momentum: Weight of the new batch in the running statistics; unchanged where None.
        eps: Added to the variance; unchanged where None.
        synchronise: Take the statistics over all processes.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = module.momentum if momentum is None else momentum
            module.eps = module.eps if eps is None else eps
    return convert_sync_batchnorm(model) if synchronise else model
