"""Adversarial training with one norm for all images: what AdvProp is compared with (Xie et al., CVPR 2020).

Only adversarial images: Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018,
arXiv:1706.06083. Clean and adversarial images together: Goodfellow et al., ICLR 2015, arXiv:1412.6572; Kurakin et al.,
ICLR 2017, arXiv:1611.01236.
"""
from typing import Any, Callable, Dict, Optional, Sequence, Union

import torch
import torch.nn as nn

from .attack import Attack
from .pixels import normalisation_of
from .regime_settings import RegimeSettings
from .task import RegimeTask, check_weight, one_attack, part_metrics, top1, use_main_norms

__all__ = ['JointTask', 'MadryTask']

_OF_AUX_NORMS = {
    **dict.fromkeys(('adv_bn_momentum', 'adv_generator', 'adv_share'), 'it has no auxiliary norms'),
    'split_bn': 'its images share one norm',
}


class _OneNormTask(RegimeTask):
    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            attack: Optional[Attack] = None,
            *,
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        attack = (attack or self.default_attack).normalised_by(*normalisation_of(model, mean, std))
        self.attack = attack.against(self.criterion)
        use_main_norms(model)
        self.announce()

    @classmethod
    def arguments(cls, settings: RegimeSettings) -> Dict[str, Any]:
        return dict(attack=one_attack(cls, settings))


class MadryTask(_OneNormTask):
    """Train on adversarial images only, through one norm; the first half of adversarial pre-training.

    Args:
        model: The model to train. Of a model with split norms, the main norms are used and the auxiliary ones frozen.
        criterion: Maps (logits, target) to a scalar. Cross-entropy by default.
        attack: The attack, by default PGD-5 away from the true label, with a random start for every sample.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.
    """
    name = 'madry'
    default_attack = Attack(target='none', random_start=1.)
    no_use_for = {'adv_weight': '', **_OF_AUX_NORMS}

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
        adversarial, target = self.attack(self.unwrapped_module, input, target)
        output = self.trainable_module(adversarial)
        loss = self.criterion(output, target)
        # a copy: timm's script divides the loss in place
        return {'loss': loss, 'output': output, 'adv_loss': loss.detach().clone(), 'adv_top1': top1(output, target)}


class JointTask(_OneNormTask):
    """Train on clean and adversarial images through the same norm, with summed losses.

    The two kinds of images share the norm's statistics: the mismatch that AdvProp's auxiliary norms remove.

    Args:
        model: The model to train. Of a model with split norms, the main norms are used and the auxiliary ones frozen.
        criterion: Maps (logits, target) to a scalar, for both losses. Cross-entropy by default.
        attack: The attack, by default PGD-5 towards a random wrong label.
        weight: Weight of the adversarial loss.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.

    Raises:
        ValueError: An argument is out of range.
    """
    name = 'joint'
    no_use_for = _OF_AUX_NORMS

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            attack: Optional[Attack] = None,
            *,
            weight: Optional[float] = None,
            **kwargs: Any,
    ):
        self.weight = check_weight(weight, self.default_weight)
        super().__init__(model, criterion, attack, **kwargs)

    @classmethod
    def arguments(cls, settings: RegimeSettings) -> Dict[str, Any]:
        return dict(super().arguments(settings), weight=settings.weight)

    def describe(self) -> str:
        return f'{self.name}, {self.attack.describe()}, adversarial loss × {self.weight:g}'

    def relative_cost(self) -> float:
        return 2 + self.attack.relative_cost()

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attack a batch and compute both losses.

        Args:
            input: Clean images [N, C, H, W], normalised by mean and std.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'` (clean loss + weight × adversarial loss), `'output'` (clean logits [N, classes]), `'clean_loss'`
            and `'adv_loss'` (detached), `'clean_top1'` and `'adv_top1'` (percent).
        """
        adversarial, _ = self.attack(self.unwrapped_module, input, target)
        outputs = self.trainable_module(torch.cat([input, adversarial])).chunk(2)
        losses = [self.criterion(output, target) for output in outputs]
        return {
            'loss': losses[0] + self.weight * losses[1],
            'output': outputs[0],
            **part_metrics(('clean', 'adv'), losses, outputs, (target, target)),
        }
