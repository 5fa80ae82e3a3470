"""Adversarial training with one norm for all images: what AdvProp is compared with (Xie et al., CVPR 2020).

Only adversarial images: Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018,
arXiv:1706.06083. Clean and adversarial images together: Goodfellow et al., ICLR 2015, arXiv:1412.6572; Kurakin et al.,
ICLR 2017, arXiv:1611.01236.
"""
from typing import Any, Callable, Dict, Optional, Sequence, Union

import torch
import torch.nn as nn

from .adversary import Adversary, normalisation_of
from .task import RegimeTask, check_weight, top1, use_main_norms

__all__ = ['JointTask', 'MadryTask']


class _OneNormTask(RegimeTask):
    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]],
            mean: Optional[Sequence[float]],
            std: Optional[Sequence[float]],
            attack: Dict[str, Any],
            kwargs: Dict[str, Any],
    ):
        super().__init__(model, criterion, **kwargs)
        mean, std = normalisation_of(model, mean, std)
        self.adversary = Adversary(mean=mean, std=std, **attack).to(self.device)
        use_main_norms(model)

    def _attack(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.adversary(self.unwrapped_module, input, target, route='clean').to(input.dtype)


class MadryTask(_OneNormTask):
    """Train on adversarial images only, through one norm; the first half of adversarial pre-training.

    Args:
        model: The model to train. Of a model with split norms, the main norms are used and the auxiliary ones frozen.
        criterion: Maps (logits, target) to a scalar. Cross-entropy by default.
        target: `'none'`: the attack maximises the loss of the true label. `'random'`: it minimises a random wrong
            one's.
        random_start: Probability that a sample's attack starts from a random point of the ball.
        eps, alpha, steps, attack, norm, norm_stats, mean, std, amp_dtype: The attack, see `Adversary`; mean and std are
            those of the model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            *,
            eps: float = 4,
            alpha: float = 1,
            steps: Optional[int] = None,
            attack: str = 'pgd',
            target: str = 'none',
            random_start: float = 1.,
            norm: str = 'linf',
            norm_stats: str = 'eval',
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            amp_dtype: Optional[Union[str, torch.dtype]] = None,
            **kwargs: Any,
    ):
        settings = dict(
            eps=eps, alpha=alpha, steps=steps, attack=attack, target=target, random_start=random_start, norm=norm,
            norm_stats=norm_stats, amp_dtype=amp_dtype)
        super().__init__(model, criterion, mean, std, settings, kwargs)
        self.announce()

    def describe(self) -> str:
        return f'madry, {self.adversary.describe()}'

    def relative_cost(self) -> float:
        return 1 + self.adversary.relative_cost()

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attack a batch and compute the adversarial loss.

        Args:
            input: Clean images [N, C, H, W], normalised by mean and std.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'`, `'output'` (logits of the adversarial images [N, classes]), `'adv_loss'` (detached) and
            `'adv_top1'` (percent).
        """
        output = self.trainable_module(self._attack(input, target))
        loss = self.criterion(output, target)
        return {'loss': loss, 'output': output, 'adv_loss': loss.detach(), 'adv_top1': top1(output, target)}


class JointTask(_OneNormTask):
    """Train on clean and adversarial images through the same norm, with summed losses.

    The two kinds of images share the norm's statistics: the mismatch that AdvProp's auxiliary norms remove.

    Args:
        model: The model to train. Of a model with split norms, the main norms are used and the auxiliary ones frozen.
        criterion: Maps (logits, target) to a scalar, for both losses. Cross-entropy by default.
        target: `'random'`: the attack minimises the loss of a random wrong label. `'none'`: it maximises the true
            one's.
        random_start: Probability that a sample's attack starts from a random point of the ball.
        weight: Weight of the adversarial loss.
        eps, alpha, steps, attack, norm, norm_stats, mean, std, amp_dtype: The attack, see `Adversary`; mean and std are
            those of the model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            *,
            eps: float = 4,
            alpha: float = 1,
            steps: Optional[int] = None,
            attack: str = 'pgd',
            target: str = 'random',
            random_start: float = 0.8,
            weight: float = 1.0,
            norm: str = 'linf',
            norm_stats: str = 'eval',
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            amp_dtype: Optional[Union[str, torch.dtype]] = None,
            **kwargs: Any,
    ):
        settings = dict(
            eps=eps, alpha=alpha, steps=steps, attack=attack, target=target, random_start=random_start, norm=norm,
            norm_stats=norm_stats, amp_dtype=amp_dtype)
        super().__init__(model, criterion, mean, std, settings, kwargs)
        self.weight = check_weight(weight)
        self.announce()

    def describe(self) -> str:
        return f'joint, {self.adversary.describe()}, adversarial loss × {self.weight:g}'

    def relative_cost(self) -> float:
        return 2 + self.adversary.relative_cost()

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attack a batch and compute both losses.

        Args:
            input: Clean images [N, C, H, W], normalised by mean and std.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'` (clean loss + weight × adversarial loss), `'output'` (clean logits [N, classes]), `'clean_loss'`
            and `'adv_loss'` (detached), `'clean_top1'` and `'adv_top1'` (percent).
        """
        adversarial = self._attack(input, target)
        output, adv_output = self.trainable_module(torch.cat([input, adversarial])).chunk(2)
        clean_loss, adv_loss = self.criterion(output, target), self.criterion(adv_output, target)
        return {
            'loss': clean_loss + self.weight * adv_loss,
            'output': output,
            'clean_loss': clean_loss.detach(),
            'adv_loss': adv_loss.detach(),
            'clean_top1': top1(output, target),
            'adv_top1': top1(adv_output, target),
        }
