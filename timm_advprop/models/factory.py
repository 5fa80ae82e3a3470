"""`create_model`: timm's, which knows that published weights may have auxiliary norms."""
from typing import Any, Dict, Optional, Union

import torch.nn as nn
from timm.models import create_model as create_timm_model
from timm.models import is_model, parse_model_name

from ..errors import InputError
from ..norms import split_state_dict
from ..weights import Publication, check_kinds, open_publication
from .builder import build_split_model
from .zoo import base_of, variant_of

__all__ = ['create_model']


def create_model(
        name: Union[str, Publication],
        pretrained: Optional[bool] = None,
        num_aux: Optional[int] = None,
        share: Optional[str] = None,
        **kwargs: Any,
) -> nn.Module:
    """Create a split model from published weights: `create_model('hf-hub:user/name')`.

    Weights that were published from a split model come with their auxiliary norms, bit for bit. Plain weights give a
    split model whose auxiliary norms are copies of the main ones, and a warning that says so.

    Args:
        name: `hf-hub:user/name`, `hf-hub:user/name@revision` or `local-dir:folder`, or what `open_publication` made of
            it; or a registered model, for which this is `timm.create_model`.
        pretrained: Load the weights; by default those of a repository or a folder are loaded.
        num_aux: Number of auxiliary norms for each norm; by default the published number, or 1 for plain weights. With
            0, the plain model of a repository or a folder.
        share: What main and auxiliary norms share, see `convert_split_norm`; by default what was published, else
            `'none'`.
        **kwargs: Arguments of `timm.create_model`, which replace the published ones.

    Raises:
        InputError: The repository, revision or folder is missing, cannot be read, or holds something else.
        RuntimeError: The weights do not fit the model that is asked for.
    """
    if isinstance(name, Publication):
        publication = name
    else:
        source, location = parse_model_name(name)
        if not source:
            return create_timm_model(name, pretrained=bool(pretrained), num_aux=num_aux, share=share, **kwargs)
        publication = open_publication(source, location, kwargs.get('cache_dir'))
    base = base_of(publication.architecture)
    if not is_model(base):
        raise InputError(f'{publication.name} holds {base}, which this timm does not know.')
    kwargs = {**publication.model_args, **{key: value for key, value in kwargs.items() if value is not None}}
    kwargs.update(pretrained=pretrained is not False, pretrained_cfg=publication.pretrained_cfg)
    if num_aux == 0:
        return _create_plain(base, publication, **kwargs)
    kwargs.update(
        num_aux=num_aux or publication.num_aux or 1, share=share or publication.share, publication=publication)
    variant = variant_of(base)
    if variant is None:  # not in the zoo, but its norms can be split all the same
        return build_split_model(base, base, **kwargs)
    model = create_timm_model(variant, **kwargs)
    getattr(model, '_model_args', {}).pop('publication', None)  # timm ≥ 1.0.31 keeps all arguments
    return model


def _create_plain(
        base: str,
        publication: Publication,
        pretrained: bool,
        pretrained_cfg: Dict[str, Any],
        **kwargs: Any,
) -> nn.Module:
    # read here rather than by timm: checked, of one commit, and without auxiliary norms that share the file
    weights = split_state_dict(publication.load_state_dict())[0] if pretrained else None
    cfg = dict(pretrained_cfg, source=None, state_dict=weights)
    model: Any = create_timm_model(base, pretrained=pretrained, pretrained_cfg=cfg, **kwargs)
    if weights:
        check_kinds(weights, model.state_dict(), publication.name)
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **publication.origin}
    model.pretrained_cfg.pop('state_dict', None)
    return model
