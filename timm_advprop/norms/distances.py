"""How far apart training has taken the norms of a model's routes."""
from itertools import product
from typing import Dict, List

import torch
import torch.nn as nn

from .split_norm import num_aux_norms, split_norms

__all__ = ['norm_distances']

_KINDS = {'running_mean': 'mean', 'running_var': 'var', 'weight': 'weight', 'bias': 'bias'}


@torch.no_grad()
def norm_distances(model: nn.Module) -> Dict[str, float]:
    """Distances between main and auxiliary norms, by kind: 2 ‖aux − main‖ / (‖aux‖ + ‖main‖), the mean over norms.

    Args:
        model: Any model.

    Returns:
        `aux_mean_distance`, `aux_var_distance`, `aux_weight_distance`, `aux_bias_distance`, and the same of `aux2`, …;
        from 0 (equal) to 2 (opposite). What routes share has no entry; a plain model has none at all.
    """
    found: Dict[str, List[torch.Tensor]] = {}
    for norm, i in product(split_norms(model), range(num_aux_norms(model))):
        for name, kind in _KINDS.items():
            main, aux = getattr(norm, name, None), getattr(norm.aux_bn[i], name, None)
            if main is not None and aux is not None and aux is not main:
                key = f'aux{i + 1 if i else ""}_{kind}_distance'
                found.setdefault(key, []).append(_relative(aux.float(), main.float()))
    means = [torch.stack(values).mean() for values in found.values()]
    return dict(zip(found, torch.stack(means).tolist())) if found else {}


def _relative(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    lengths = one.norm() + other.norm()
    return torch.where(lengths > 0, 2 * (one - other).norm() / lengths, 0.)
