"""AdvProp: clean and adversarial images, each kind through its own norms.

Xie et al., *Adversarial Examples Improve Image Recognition*, CVPR 2020, arXiv:1911.09665, Algorithm 1.
"""
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import torch
import torch.nn as nn

from ..norms import forward_parts, has_split_norm, norm_route, num_aux_norms
from .matched_masks import match_masks as mask_parts
from .pairing import PairingLoss, pairing_of
from .pixels import normalisation_of, warn_of_pixels
from .regime_settings import RegimeSettings
from .source import Images, Source, as_source
from .task import RegimeTask, check_weight, part_metrics, use_split_norms

__all__ = ['AdvPropTask']

Sources = Union[Source, Callable[..., Images], Sequence[Union[Source, Callable[..., Images]]]]


class AdvPropTask(RegimeTask):
    """Train on clean images through the main norms and on the images of each source through auxiliary norms.

    With an attack as its source, as in the paper, each step attacks the batch through the auxiliary norms, then sends
    [clean; adversarial] through the model in one forward pass and adds the losses. Takes the place of
    `timm.task.ClassificationTask` in timm's own training script.

    Several attacks train one auxiliary norm for each strength. Fine-grained AdvProp has augmented images, too: with
    `AugmentedView(1)` among the sources a batch is [clean; augmented], as timm's `--aug-splits 2` delivers it.

    Args:
        model: A model with split norms. Outside of a step it is on route `'main'`.
        criterion: Maps (logits, target) to a scalar, for each of the losses. Cross-entropy by default.
        sources: What makes the images of each auxiliary norm, one source or several; by default PGD-5 of strength 4.
            A function (model, images, target) → (images, target) is a source, too.
        weight: Weight of the losses of the sources' images. Augmented views weigh 1.
        pairing: Loss between the main route and that of each source whose images show the clean ones: a name in
            `pairing.PAIRINGS` or a function of (main_logits, aux_logits, target) to a scalar.
        pairing_weight: Weight of the pairing, by default that of its name's paper, 1 for a function.
        match_masks: Let dropout and stochastic depth treat all parts of a batch alike, see `match_masks`.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.

    Raises:
        ValueError: The model has no split norms, or not as many auxiliary norms as there are sources; or an argument is
            out of range.
    """
    name = 'advprop'

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            sources: Optional[Sources] = None,
            *,
            weight: Optional[float] = None,
            pairing: Optional[Union[str, PairingLoss]] = None,
            pairing_weight: Optional[float] = None,
            match_masks: bool = False,
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        self.weight = check_weight(weight, self.default_weight)
        sources = self.default_attack if sources is None else sources
        sources = sources if isinstance(sources, Sequence) and not isinstance(sources, str) else [sources]
        if not sources:
            raise ValueError('AdvProp needs a source of images for each aux norm, got none.')
        normalisation = normalisation_of(model, mean, std)
        warn_of_pixels(self, *normalisation)
        self.sources: List[Source] = [
            as_source(source).normalised_by(*normalisation).against(self.criterion) for source in sources]  # pyright: ignore[reportArgumentType]
        self.num_views = 1 + max(source.view for source in self.sources)
        self.parts = ['clean', *(source.part for source in self.sources)]
        self.weights = [1., *(self.weight if source.weight is None else source.weight for source in self.sources)]
        if has_split_norm(model) and num_aux_norms(model) != len(self.sources):
            raise ValueError(f'{len(self.sources)} kinds of images beside clean ones (sources, strengths, augmented '
                             f'splits) need as many auxiliary norms, the model has {num_aux_norms(model)}. Create it '
                             f'with num_aux={len(self.sources)} (--model-kwargs num_aux={len(self.sources)}).')
        self.pairing = pairing_of(pairing, pairing_weight, self.sources)
        use_split_norms(model)  # raises where there are none
        if match_masks:
            mask_parts(model, len(self.parts))
        self.announce()

    @classmethod
    def arguments(cls, settings: RegimeSettings) -> Dict[str, Any]:
        sources = cls.sources_of_aux_norms(settings)
        return dict(sources=sources, weight=settings.weight, **settings.between_routes(sources))

    @classmethod
    def sources_of_aux_norms(cls, settings: RegimeSettings) -> Sequence[Source]:
        return settings.sources(cls.default_attack)

    def describe(self) -> str:
        made = '; '.join(source.describe() for source in self.sources)
        pairing = self.pairing.describe() if self.pairing else ''
        return f'{self.name}, {made}, adversarial loss × {self.weight:g}{pairing}'

    def relative_cost(self) -> float:
        """Arithmetic of a step relative to a vanilla step on its clean images."""
        return 1 + sum(1 + source.relative_cost() for source in self.sources)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Make each source's images, send all parts through the model, each through its norms, and add their losses.

        Args:
            input: Images [N, C, H, W], normalised by mean and std: clean ones, or equal parts of clean and augmented
                ones where a source is an augmented view.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'` (weighted sum), `'output'` (clean logits), and for each kind of images, `clean`, `adv`, `aug`, its
            `…_loss` (detached, the sum of several sources) and `…_top1` (percent, their mean). With a pairing,
            `'pairing_loss'`, too.

        Raises:
            ValueError: The images do not divide into equal parts.
        """
        if len(input) % self.num_views:
            raise ValueError(f'{len(input)} images are no {self.num_views} equal parts of clean and augmented ones.')
        views = list(zip(input.chunk(self.num_views), target.chunk(self.num_views)))
        parts = [views[0]]
        for route, source in enumerate(self.sources, 1):
            with norm_route(self.unwrapped_module, route):
                images, labels = source(self.unwrapped_module, *views[source.view])
            self.keep_made(source, views[source.view][0], images)
            parts.append((images.detach().to(input.dtype), labels.detach()))
        images, targets = zip(*parts)
        outputs = forward_parts(self.trainable_module, images)  # one pass through the DDP wrapper
        losses = [self.criterion(output, labels) for output, labels in zip(outputs, targets)]
        loss = sum(weight * part_loss for weight, part_loss in zip(self.weights, losses))
        result = {'loss': loss, 'output': outputs[0], **part_metrics(self.parts, losses, outputs, targets)}
        return self.pairing.added_to(result, outputs, targets[0], self.criterion) if self.pairing else result
