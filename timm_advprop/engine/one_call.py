"""`evaluate`: accuracy in one call, for Python. The programs measure by `evaluation.evaluate`, as it does."""
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Callable, Dict, Iterable, Iterator, Optional, Sequence, Union

import torch
import torch.nn as nn
from timm.utils import unwrap_model

from ..errors import InputError, as_input_error
from ..norms import Route, one_route
from ..regimes import PixelSource, Source, normalisation_of
from ..regimes.source import Images
from .evaluation import evaluate as evaluate_placed
from .placement import Placement

__all__ = ['evaluate']


def evaluate(
        model: nn.Module,
        loader: Iterable,
        route: Route = 'main',
        attack: Optional[Union[Source, Callable[..., Images]]] = None,
        *,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        amp_dtype: Optional[torch.dtype] = None,
) -> Dict[str, float]:
    """Accuracy of a model through one of its routes, on clean images and on those of an attack.

    The model is on its own device, in eval mode meanwhile; each module's mode and each norm's route are restored, also
    after an exception. Progress is logged where the loader has a length. In several processes the results are of the
    images of this one.

    Args:
        model: Maps normalised images [N, C, H, W] to logits [N, classes]: split, plain, compiled or wrapped in DDP.
        loader: Any iterable of images [N, C, H, W], normalised as the model expects, and labels [N]: a loader of
            torch or timm, or a list of batches.
        route: `'main'` (or 0, `'clean'`), `'aux'`, or i for the i-th auxiliary norm: the norms that images pass and
            that the attack sees. A plain model has `'main'` alone.
        attack: An `Attack`, another source of images, or a function of (model, images, target) to (images, target).
            None for clean images alone.
        mean: Mean of each channel that images are normalised by, in 0–1, for the attack. The model's `pretrained_cfg`
            by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        amp_dtype: Lower precision of mixed precision, `torch.bfloat16` or `torch.float16`; None for none.

    Returns:
        `loss` (cross-entropy), `top1` and `top5` (in percent), and with an attack the same of its images: `adv_loss`,
        `adv_top1` and `adv_top5`.

    Raises:
        InputError: The model has no such route, the loader no images, or it is not known how images are normalised.
    """
    if isinstance(attack, PixelSource):  # what it says itself counts
        mean, std = attack.mean or mean, attack.std or std
        attack = attack.normalised_by(*as_input_error(normalisation_of, unwrap_model(model), mean, std))
    placement = replace(_placement_of(model), amp_dtype=amp_dtype)
    with ExitStack() as restored:
        as_input_error(lambda: restored.enter_context(one_route(model, route)))
        restored.enter_context(_modes_kept(model))
        results = evaluate_placed(
            model, loader, placement, attack=attack, log_name='Evaluation' if _has_length(loader) else None)
    if results['top1'] != results['top1']:
        raise InputError('The loader has no images: a generator can be read once, and an empty set not at all.')
    return dict(results)


def _placement_of(model: nn.Module) -> Placement:
    value = next((value for value in chain(model.parameters(), model.buffers()) if value.is_floating_point()), None)
    return Placement(torch.device('cpu')) if value is None else Placement(value.device, dtype=value.dtype)


def _has_length(loader: Iterable) -> bool:
    try:  # loaders of streams have the method, and raise
        return len(loader) > 0  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
