"""Adversarial training with one norm for all images: what AdvProp is compared with (Xie et al., CVPR 2020).

Only adversarial images: Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018,
arXiv:1706.06083. Clean and adversarial images together: Goodfellow et al., ICLR 2015, arXiv:1412.6572; Kurakin et al.,
ICLR 2017, arXiv:1611.01236.
"""
from typing import Any, Callable, Dict, Optional, Sequence, Union

import torch
import torch.nn as nn

from .attack import Attack
from .matched_masks import match_masks as mask_parts
from .pairing import PairingLoss, pairing_of
from .pixels import normalisation_of, warn_of_pixels
from .regime_settings import RegimeSettings
from .source import Images, Source, as_source
from .task import NO_AUX_NORMS, RegimeTask, check_weight, one_source, part_metrics, top1, use_main_norms

__all__ = ['JointTask', 'MadryTask']

_OF_TWO_KINDS = dict.fromkeys(
    ('adv_pairing', 'adv_pairing_weight', 'adv_match_masks'), 'it trains on adversarial images alone')

AnySource = Union[Source, Callable[..., Images]]


class _OneNormTask(RegimeTask):
    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            attack: Optional[AnySource] = None,
            *,
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        attack = as_source(self.default_attack if attack is None else attack)
        normalisation = normalisation_of(model, mean, std)
        warn_of_pixels(self, *normalisation)
        self.attack: Source = attack.normalised_by(*normalisation).against(self.criterion)
        use_main_norms(model)
        self.announce()

    @classmethod
    def arguments(cls, settings: RegimeSettings) -> Dict[str, Any]:
        return dict(attack=one_source(cls, settings))

    def _generated(self, input: torch.Tensor, target: torch.Tensor) -> Images:
        images, labels = self.attack(self.unwrapped_module, input, target)
        self.keep_made(self.attack, input, images)
        return images.detach().to(input.dtype), labels.detach()


class MadryTask(_OneNormTask):
    """Train on adversarial images only, through one norm; the first half of adversarial pre-training.

    Args:
        model: The model to train. Of a model with split norms, the main norms are used and the auxiliary ones frozen.
        criterion: Maps (logits, target) to a scalar. Cross-entropy by default.
        attack: The attack, by default PGD-5 away from the true label, with a random start for every sample; or another
            source of the images.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.
    """
    name = 'madry'
    default_attack = Attack(target='none', random_start=1.)
    no_use_for = {'adv_weight': '', **_OF_TWO_KINDS, **NO_AUX_NORMS}

    def describe(self) -> str:
        return f'{self.name}, {self.attack.describe()}'

    def relative_cost(self) -> float:
        return 1 + self.attack.relative_cost()

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attack a batch and compute the adversarial loss.

        Args:
            input: Clean images [N, C, H, W], normalised by mean and std.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'`, `'output'` (logits of the adversarial images [N, classes]), `'adv_loss'` (detached) and
            `'adv_top1'` (percent).
        """
        images, target = self._generated(input, target)
        output = self.trainable_module(images)
        loss = self.criterion(output, target)
        part = self.attack.part
        # a copy: timm's script divides the loss in place
        return {'loss': loss, 'output': output, f'{part}_loss': loss.detach().clone(),
                f'{part}_top1': top1(output, target)}


class JointTask(_OneNormTask):
    """Train on clean and adversarial images through the same norm, with summed losses.

    The two kinds of images share the norm's statistics: the mismatch that AdvProp's auxiliary norms remove.

    Args:
        model: The model to train. Of a model with split norms, the main norms are used and the auxiliary ones frozen.
        criterion: Maps (logits, target) to a scalar, for both losses. Cross-entropy by default.
        attack: The attack, by default PGD-5 towards a random wrong label; or another source of the images.
        weight: Weight of the adversarial loss.
        pairing: Loss between clean and adversarial images, as for `AdvPropTask`.
        pairing_weight: Weight of the pairing, by default that of its name's paper, 1 for a function.
        match_masks: Let dropout and stochastic depth treat both kinds of images alike, see `match_masks`.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.

    Raises:
        ValueError: An argument is out of range.
    """
    name = 'joint'
    no_use_for = NO_AUX_NORMS

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            attack: Optional[AnySource] = None,
            *,
            weight: Optional[float] = None,
            pairing: Optional[Union[str, PairingLoss]] = None,
            pairing_weight: Optional[float] = None,
            match_masks: bool = False,
            **kwargs: Any,
    ):
        self.weight = check_weight(weight, self.default_weight)
        self.pairing = pairing_of(pairing, pairing_weight, [
            as_source(self.default_attack if attack is None else attack)])
        super().__init__(model, criterion, attack, **kwargs)
        if match_masks:
            mask_parts(model, 2)

    @classmethod
    def arguments(cls, settings: RegimeSettings) -> Dict[str, Any]:
        arguments = super().arguments(settings)
        return dict(arguments, weight=settings.weight, **settings.between_routes([arguments['attack']]))

    def describe(self) -> str:
        pairing = self.pairing.describe() if self.pairing else ''
        return f'{self.name}, {self.attack.describe()}, adversarial loss × {self.weight:g}{pairing}'

    def relative_cost(self) -> float:
        return 2 + self.attack.relative_cost()

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attack a batch and compute both losses.

        Args:
            input: Clean images [N, C, H, W], normalised by mean and std.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'` (clean loss + weight × adversarial loss), `'output'` (clean logits [N, classes]), `'clean_loss'`
            and `'adv_loss'` (detached), `'clean_top1'` and `'adv_top1'` (percent). With a pairing, `'pairing_loss'`,
            too.
        """
        images, labels = self._generated(input, target)
        outputs, targets = self.trainable_module(torch.cat([input, images])).chunk(2), (target, labels)
        losses = [self.criterion(output, labels) for output, labels in zip(outputs, targets)]
        result = {
            'loss': losses[0] + self.weight * losses[1],
            'output': outputs[0],
            **part_metrics(('clean', self.attack.part), losses, outputs, targets),
        }
        return self.pairing.added_to(result, outputs, target, self.criterion) if self.pairing else result
