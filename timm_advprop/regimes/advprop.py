"""AdvProp: clean and adversarial images, each kind through its own norms.

Xie et al., *Adversarial Examples Improve Image Recognition*, CVPR 2020, arXiv:1911.09665, Algorithm 1.
"""
import logging
from typing import Any, Callable, Dict, Optional, Sequence, Union

import torch
import torch.nn as nn
from timm.task import ClassificationTask
from torch.nn.parallel import DistributedDataParallel

from ..norms import has_split_norm, num_aux_norms, set_norm_route
from .adversary import Adversary, normalisation_of

__all__ = ['AdvPropTask']

_logger = logging.getLogger(__name__)


class AdvPropTask(ClassificationTask):
    """Train on clean images through the main norms and on adversarial images through the auxiliary norms.

    Each step attacks the batch through the auxiliary norms, then sends [clean; adversarial] through the model in one
    forward pass and adds the two losses. Takes the place of `timm.task.ClassificationTask` in timm's own training
    script.

    Several values of `eps` train one auxiliary norm for each strength; the model needs as many auxiliary norms.

    Args:
        model: A model with split norms, which is put on route `'split'` and stays there.
        criterion: Maps (logits, target) to a scalar, for both losses. Cross-entropy by default.
        eps: Strength of the attack in 0–255 pixels, or several.
        alpha: Step size of the attack in 0–255 pixels.
        steps: Steps of the attack; by default the paper's rule, eps + 1, and 1 where eps is at most 1.
        attack: `'pgd'`, `'ifgsm'` or `'gd'`.
        target: `'random'`: the attack minimises the loss of a random wrong label. `'none'`: it maximises the true
            one's.
        random_start: Probability that a sample's attack starts from a random point of the ball.
        weight: Weight of the adversarial loss.
        norm_stats: Statistics of the attack's own forward passes: `'eval'` for the running ones, `'train'` for the
            batch's.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        amp_dtype: Precision of the attack alone, `'float16'`, `'bfloat16'`, `'float32'` or a torch type.
        device: Device of the task.
        dtype: Type of the task.
        verbose: Log what the task does.
        criterion_kwargs: Arguments of timm's `create_classification_loss` where `criterion` is None (timm ≥ 1.0.31).

    Raises:
        ValueError: The model has no split norms, or not one auxiliary norm for each `eps`; or an argument is out of
            range.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            *,
            eps: Union[float, Sequence[float]] = 4,
            alpha: float = 1,
            steps: Optional[int] = None,
            attack: str = 'pgd',
            target: str = 'random',
            random_start: float = 0.8,
            weight: float = 1.0,
            norm_stats: str = 'eval',
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            amp_dtype: Optional[Union[str, torch.dtype]] = None,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
            criterion_kwargs: Optional[Dict[str, Any]] = None,
    ):
        if criterion is None and criterion_kwargs is None:
            criterion = nn.CrossEntropyLoss()
        loss_kwargs = dict(criterion_kwargs=criterion_kwargs) if criterion_kwargs is not None else {}
        super().__init__(model, criterion, device=device, dtype=dtype, verbose=verbose, **loss_kwargs)
        if not weight >= 0:
            raise ValueError(f'weight of the adversarial loss must be at least 0, got {weight}.')
        self.weight = float(weight)
        mean, std = normalisation_of(model, mean, std)
        self.adversaries = nn.ModuleList(
            Adversary(
                eps=strength,
                alpha=alpha,
                steps=steps,
                attack=attack,
                target=target,
                random_start=random_start,
                norm_stats=norm_stats,
                mean=mean,
                std=std,
                amp_dtype=amp_dtype,
            ).to(self.device)
            for strength in (eps if isinstance(eps, Sequence) else (eps,))
        )
        if has_split_norm(model) and num_aux_norms(model) != len(self.adversaries):
            raise ValueError(f'{len(self.adversaries)} attack strengths need as many auxiliary norms, the model has '
                             f'{num_aux_norms(model)}. Create it with num_aux={len(self.adversaries)}.')
        set_norm_route(model, 'split')  # raises where there are no split norms
        if self.verbose:
            attacks = '; '.join(adversary.describe() for adversary in self.adversaries)
            _logger.info(f'AdvProp: {attacks}, target {target}, adversarial loss × {self.weight:g}; about '
                         f'{self.relative_cost():.1f} × the arithmetic of vanilla training')

    def relative_cost(self) -> float:
        """Arithmetic of a step relative to a vanilla step: an attack step is a forward and half a backward, 2/3."""
        return 1 + sum(1 + 2 / 3 * adversary.steps for adversary in self.adversaries)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attack a batch and compute both losses.

        Args:
            input: Clean images [N, C, H, W], normalised by mean and std.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'` (clean loss + weight × adversarial loss), `'output'` (clean logits [N, classes]), `'clean_loss'`
            and `'adv_loss'` (detached; the adversarial losses of several strengths are added).
        """
        model = self.trainable_module
        if isinstance(model, DistributedDataParallel):
            model = model.module  # the attack's passes are no training passes: no buffers or gradients to synchronise
        adversarial = [
            adversary(model, input, target, route=i).to(input.dtype) for i, adversary in enumerate(self.adversaries, 1)
        ]
        outputs = self.trainable_module(torch.cat([input, *adversarial])).chunk(1 + len(adversarial))
        clean_loss = self.criterion(outputs[0], target)
        adv_loss = sum(self.criterion(output, target) for output in outputs[1:])
        return {
            'loss': clean_loss + self.weight * adv_loss,
            'output': outputs[0],
            'clean_loss': clean_loss.detach(),
            'adv_loss': adv_loss.detach(),
        }
