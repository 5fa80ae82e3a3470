"""TRADES: clean accuracy, and what the model says of clean images said of adversarial ones, too.

Zhang et al., *Theoretically Principled Trade-off between Robustness and Accuracy*, ICML 2019, arXiv:1901.08573.
"""
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Callable, Dict, Optional, Sequence, Union

import torch
import torch.nn as nn

from ..norms import forward_parts, has_split_norm, norm_route, num_aux_norms
from .attack import Attack
from .matched_masks import match_masks as mask_parts
from .model_attack import frozen
from .pairing import distributions, kl
from .pixels import normalisation_of, warn_of_pixels
from .regime_settings import RegimeSettings
from .source import Source
from .task import RegimeTask, check_weight, one_attack, part_metrics, use_split_norms

__all__ = ['TradesTask']

_OWN_PAIRING = 'its loss is a pairing'


class TradesTask(RegimeTask):
    """Train on criterion(clean) + weight · KL(p_clean ‖ p_adversarial), where the attack maximises that KL.

    In a plain model both kinds of images pass the same norms, as in the paper. In one with split norms, clean images
    pass the main norms and adversarial ones the auxiliary norms, in the attack, too.

    The attack's objective is the cross-entropy of p_clean, which has the KL's gradient: their difference, the entropy
    of p_clean, does not depend on the adversarial image. p_clean is computed once, as the attack sees the model (in
    eval mode, or by the statistics of the batch). Every image starts from a random point: at the clean image the KL is
    smallest and has no gradient.

    In some details the authors' code (github.com/yaodongyu/TRADES) is not followed. There, an attack starts from normal
    noise of standard deviation 0.001; here from anywhere in the ball. There, clean and adversarial images pass the
    model in train mode one after the other; here in one forward pass, whose batch statistics they share where a norm is
    shared. There, strength and step are 0.031 and 0.007 in 0–1; here 8/255 and 2/255. The L2 attack is `pgd`'s.

    Args:
        model: The model to train. A split one has one auxiliary norm for each norm.
        criterion: Maps (logits, target) to a scalar. Cross-entropy by default. Where it is of no softmax (several
            labels, a single logit), the KL is that of each class's sigmoid, summed.
        attack: The attack, untargeted and with a random start for every image; by default PGD-10, eps 8/255, of steps
            of 2/255, the paper's on CIFAR-10.
        weight: Weight of the KL, 1/λ in the paper and `beta` in its code; by default 6.
        match_masks: Let dropout and stochastic depth treat both kinds of images alike, see `match_masks`.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.

    Raises:
        ValueError: The attack is of another kind, the model has several auxiliary norms, or an argument is out of
            range.
    """
    name = 'trades'
    default_attack = Attack(eps_px=8., alpha_px=2., steps=10, target='none', random_start=1.)
    default_weight = 6.
    splits_plain_models = False
    no_use_for = {
        'adv_target': 'its attack leads away from what the model says itself',
        'adv_random_start': 'every image starts from a random point',
        'adv_pairing': _OWN_PAIRING,
        'adv_pairing_weight': f'{_OWN_PAIRING}, weighted by --adv-weight',
        'adv_source': 'its loss needs its own attack',
        'split_bn': 'it trains on clean and adversarial images alone',
    }

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            attack: Optional[Attack] = None,
            *,
            weight: Optional[float] = None,
            match_masks: bool = False,
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        self.weight = check_weight(weight, self.default_weight)
        normalisation = normalisation_of(model, mean, std)
        warn_of_pixels(self, *normalisation)
        attack = _checked(attack or self.default_attack).normalised_by(*normalisation)
        self.attack = replace(attack, loss=_cross_entropy_of_answer)
        self.is_split = has_split_norm(model)
        if self.is_split:
            use_split_norms(model)
        if num_aux_norms(model) > 1:
            raise ValueError(f'trades trains one auxiliary norm for each norm, the model has {num_aux_norms(model)}.')
        if match_masks:
            mask_parts(model, 2)
        self.announce()

    @classmethod
    def arguments(cls, settings: RegimeSettings) -> Dict[str, Any]:
        attack = _checked(one_attack(cls, settings))
        return dict(attack=attack, weight=settings.weight, match_masks=settings.match_masks)

    @classmethod
    def sources_of_aux_norms(cls, settings: RegimeSettings) -> Sequence[Source]:
        return [one_attack(cls, settings)]

    def describe(self) -> str:
        return f'{self.name}, {self.attack.describe()}, KL × {self.weight:g}'

    def relative_cost(self) -> float:
        return 2 + 1 / 3 + self.attack.relative_cost()  # a third: the pass of p_clean

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attack a batch and compute both terms of the loss.

        Args:
            input: Clean images [N, C, H, W], normalised by mean and std.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'`, `'output'` (clean logits [N, classes]), `'clean_loss'` and `'adv_loss'` (the KL; both detached),
            `'clean_top1'` and `'adv_top1'` (percent).
        """
        parts = input, self._attacked(input, target)
        if self.is_split:
            outputs = forward_parts(self.trainable_module, parts)
        else:
            outputs = self.trainable_module(torch.cat(parts)).chunk(2)
        clean_loss = self.criterion(outputs[0], target)
        divergence = kl(*(distributions(output, target, self.criterion) for output in outputs), target)  # pyright: ignore[reportCallIssue]
        return {
            'loss': clean_loss + self.weight * divergence,
            'output': outputs[0],
            **part_metrics(('clean', 'adv'), (clean_loss, divergence), outputs, (target, target)),
        }

    def _attacked(self, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        model = self.unwrapped_module
        with frozen(model, self.attack.norm_stats), self.attack.autocast(images.device), torch.no_grad():
            answer = distributions(model(images), target, self.criterion).softmax(-1)
        with norm_route(model, 'aux') if self.is_split else nullcontext():
            made = self.attack(model, images, answer)[0].to(images.dtype)
        self.keep_made(self.attack, images, made)
        return made


def _checked(attack: Attack) -> Attack:
    if attack.is_targeted or attack.loss or attack.random_start < 1 or attack.kind == 'ifgsm':
        raise ValueError('trades attacks by its KL, from random points: its attack is untargeted (target none), has '
                         'random_start 1 and no other loss, and is not ifgsm.')
    return attack


def _cross_entropy_of_answer(output: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    # answer has two entries for each class where each class is a question of its own
    output = torch.stack([output, torch.zeros_like(output)], dim=-1) if answer.ndim > output.ndim else output
    return -(answer * output.log_softmax(-1)).sum()
