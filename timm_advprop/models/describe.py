"""What the zoo says of a model."""
from typing import NamedTuple, Sequence

from timm.models import get_pretrained_cfg, list_pretrained
from torch.nn.modules.batchnorm import _BatchNorm

from ..norms import split_norms, split_state_dict
from .skeleton import create_skeleton
from .zoo import base_of

__all__ = ['ZooEntry', 'describe_model']


class ZooEntry(NamedTuple):
    """What the zoo says of a model. Parameters are counted, not in millions; input size is (channels, height, width).

    `batch_norms` and `other_norms` are the numbers of norms that are split; `advprop_weights` and `plain_weights` the
    tags of the weights that can be loaded.
    """
    model: str
    base: str
    main_parameters: int
    aux_parameters: int
    batch_norms: int
    other_norms: int
    advprop_weights: Sequence[str]
    plain_weights: Sequence[str]
    input_size: Sequence[int]


def describe_model(variant: str) -> ZooEntry:
    """Describe an `*_ap` model. It is built without values, which takes a tenth of a second and no memory.

    Args:
        variant: Registered name of the model.
    """
    model = create_skeleton(variant)
    main, aux = split_state_dict(dict(model.named_parameters()))
    is_batch_norm = [isinstance(norm, _BatchNorm) for norm in split_norms(model)]
    tags = [name.partition('.')[2] for name in list_pretrained(f'{variant}.*')]
    return ZooEntry(
        model=variant, base=base_of(variant), main_parameters=sum(parameter.numel() for parameter in main.values()),
        aux_parameters=sum(parameter.numel() for parameter in aux.values()), batch_norms=sum(is_batch_norm),
        other_norms=len(is_batch_norm) - sum(is_batch_norm),
        advprop_weights=[tag for tag in tags if not tag.startswith('plain')],
        plain_weights=[tag for tag in tags if tag.startswith('plain')],
        input_size=get_pretrained_cfg(variant).input_size)  # pyright: ignore[reportOptionalMemberAccess]
