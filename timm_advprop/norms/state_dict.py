"""State dicts of models with split norms: the main norms' keys are the plain model's, the others hold `aux_bn.<i>`."""
import re
from typing import Any, Dict, Iterable, Mapping, Set, Tuple

__all__ = ['aux_indices_in', 'index_aux_key', 'main_key', 'num_aux_in', 'split_state_dict']

_AUX_KEY = re.compile(r'(^|\.)aux_bn\.(\d+)\.')
_UNINDEXED_AUX_KEY = re.compile(r'(^|\.)aux_bn\.(?!\d+\.)')


def split_state_dict(state_dict: Mapping[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Divide a state dict into that of the plain model and that of the auxiliary norms.

    Args:
        state_dict: State dict of a model with split norms.

    Returns:
        The plain model's state dict, which stock timm loads strictly, and the auxiliary norms' entries, with their
        full keys: the union of both is the argument.
    """
    main = {key: value for key, value in state_dict.items() if not _AUX_KEY.search(key)}
    aux = {key: value for key, value in state_dict.items() if _AUX_KEY.search(key)}
    return main, aux


def num_aux_in(state_dict: Iterable[str]) -> int:
    """Number of auxiliary norms of each split norm in a state dict, 0 for that of a plain model."""
    return 1 + max(aux_indices_in(state_dict), default=-1)


def aux_indices_in(state_dict: Iterable[str]) -> Set[int]:
    """Indices of the auxiliary norms that the keys of a state dict name."""
    return {int(match[2]) for match in map(_AUX_KEY.search, state_dict) if match}


def main_key(key: str) -> str:
    """The key of a main norm's entry, for the key of an auxiliary one: `bn1.weight` for `bn1.aux_bn.0.weight`."""
    return _AUX_KEY.sub(r'\1', key)


def index_aux_key(key: str) -> str:
    """Give the auxiliary norm that a key names an index where it has none: `bn1.aux_bn.0.weight`."""
    return _UNINDEXED_AUX_KEY.sub(r'\1aux_bn.0.', key)
