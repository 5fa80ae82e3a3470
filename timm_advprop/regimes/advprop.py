"""AdvProp: clean and adversarial images, each kind through its own norms.

Xie et al., *Adversarial Examples Improve Image Recognition*, CVPR 2020, arXiv:1911.09665, Algorithm 1.
"""
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn

from ..errors import InputError
from ..norms import has_split_norm, num_aux_norms, set_norm_route, train_aux
from .adversary import Adversary, normalisation_of
from .generators import Generator, count_generators, create_generators
from .task import RegimeTask, check_weight, top1

__all__ = ['AdvPropTask', 'num_aux_needed']


class AdvPropTask(RegimeTask):
    """Train on clean images through the main norms and on adversarial images through the auxiliary norms.

    Each step attacks the batch through the auxiliary norms, then sends [clean; adversarial] through the model in one
    forward pass and adds the losses. Takes the place of `timm.task.ClassificationTask` in timm's own training script.

    Several values of `eps` train one auxiliary norm for each strength. Fine-grained AdvProp has augmented images, too:
    with `aug_splits` of 2 a batch is [clean; augmented] as timm's `--aug-splits` delivers it, the augmented images pass
    the first auxiliary norm and the adversarial ones of the clean images the next. The model needs `num_aux_needed`
    auxiliary norms.

    Args:
        model: A model with split norms, which is put on route `'split'` and stays there.
        criterion: Maps (logits, target) to a scalar, for each of the losses. Cross-entropy by default.
        eps: Strength of the attack in 0–255 pixels, or several.
        alpha: Step size of the attack in 0–255 pixels.
        steps: Steps of the attack; by default the paper's rule, eps + 1, and 1 where eps is at most 1.
        attack: `'pgd'`, `'ifgsm'` or `'gd'`.
        target: `'random'`: the attack minimises the loss of a random wrong label. `'none'`: it maximises the true
            one's.
        random_start: Probability that a sample's attack starts from a random point of the ball.
        weight: Weight of the adversarial loss.
        norm: `'linf'` or `'l2'`; for the latter, `eps` and `alpha` are lengths of the whole image's perturbation.
        norm_stats: Statistics of the attack's own forward passes: `'eval'` for the running ones, `'train'` for the
            batch's.
        generator: Makes the images of the auxiliary norm in place of an attack: a callable from (images, target) to
            (images, target), `'package.module:name'` of one, or a name in `generators.GENERATORS`.
        aug_splits: Parts of a batch that show the same images: clean ones, then augmented ones.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        amp_dtype: Precision of the attack alone, `'float16'`, `'bfloat16'`, `'float32'` or a torch type.
        **kwargs: Arguments of `RegimeTask`.

    Raises:
        ValueError: The model has no split norms, or another number of auxiliary norms than it needs; or an argument is
            out of range.
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
            norm: str = 'linf',
            norm_stats: str = 'eval',
            generator: Optional[Union[str, Generator]] = None,
            aug_splits: int = 1,
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            amp_dtype: Optional[Union[str, torch.dtype]] = None,
            **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        self.weight = check_weight(weight)
        if aug_splits < 1:
            raise ValueError(f'aug_splits is at least 1, got {aug_splits}.')
        self.aug_splits = aug_splits
        mean, std = normalisation_of(model, mean, std)
        strengths = eps if isinstance(eps, Sequence) else (eps,)
        self.adversaries = nn.ModuleList(
            Adversary(
                eps=strength,
                alpha=alpha,
                steps=steps,
                attack=attack,
                target=target,
                random_start=random_start,
                norm=norm,
                norm_stats=norm_stats,
                mean=mean,
                std=std,
                amp_dtype=amp_dtype,
            ).to(self.device)
            for strength in (strengths if generator is None else ())
        )
        self.generators = [] if generator is None else create_generators(generator, strengths, mean, std)
        needed = num_aux_needed(eps, generator, aug_splits)
        if has_split_norm(model) and num_aux_norms(model) != needed:
            raise ValueError(f'{needed} kinds of images beside clean ones (augmented splits, attack strengths) need as '
                             f'many auxiliary norms, the model has {num_aux_norms(model)}. Create it with '
                             f'num_aux={needed}.')
        set_norm_route(model, 'split')  # raises where there are no split norms
        train_aux(model)
        self.announce()

    def describe(self) -> str:
        made_by = [adversary.describe() for adversary in self.adversaries] or [str(entry) for entry in self.generators]
        splits = ['augmented images'] * (self.aug_splits - 1)
        return f'advprop, {"; ".join(splits + made_by)}, adversarial loss × {self.weight:g}'

    def relative_cost(self) -> float:
        """Arithmetic of a step relative to a vanilla step on its clean images."""
        generated = len(self.generators) + sum(1 + adversary.relative_cost() for adversary in self.adversaries)
        return self.aug_splits + generated

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attack a batch and compute all losses.

        Args:
            input: Images [N, C, H, W], normalised by mean and std: clean ones, or equal parts of clean and augmented
                ones where `aug_splits` is above 1.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'` (clean loss + augmented loss + weight × adversarial loss), `'output'` (clean logits
            [N / aug_splits, classes]), `'clean_loss'` and `'adv_loss'` (detached; the adversarial losses of several
            strengths are added), `'clean_top1'` and `'adv_top1'` (percent, the mean of several strengths); with
            augmented images `'aug_loss'` and `'aug_top1'`.
        """
        parts = list(zip(input.chunk(self.aug_splits), target.chunk(self.aug_splits)))
        parts += [(images.detach().to(input.dtype), labels) for images, labels in self._generate(*parts[0])]
        outputs = self.trainable_module(torch.cat([images for images, _ in parts])).chunk(len(parts))
        losses = [self.criterion(output, labels) for output, (_, labels) in zip(outputs, parts)]
        accuracies = [top1(output, labels) for output, (_, labels) in zip(outputs, parts)]
        clean_loss, aug_loss, adv_loss = losses[0], sum(losses[1:self.aug_splits]), sum(losses[self.aug_splits:])
        result = {
            'loss': clean_loss + aug_loss + self.weight * adv_loss,
            'output': outputs[0],
            'clean_loss': clean_loss.detach(),
            'adv_loss': adv_loss.detach(),
            'clean_top1': accuracies[0],
            'adv_top1': _mean(accuracies[self.aug_splits:]),
        }
        if self.aug_splits > 1:
            result.update(aug_loss=aug_loss.detach(), aug_top1=_mean(accuracies[1:self.aug_splits]))
        return result

    def _generate(self, images: torch.Tensor, target: torch.Tensor) -> List[Tuple[torch.Tensor, torch.Tensor]]:
        if self.generators:
            return [_generated(generate, images, target) for generate in self.generators]
        return [
            (adversary(self.unwrapped_module, images, target, route), target)
            for route, adversary in enumerate(self.adversaries, self.aug_splits)
        ]


def _generated(generate: Generator, images: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    # Copies, as a generator may work in place.
    result = generate(images.clone(), target.clone())
    if not isinstance(result, tuple) or len(result) != 2 or any(len(values) != len(images) for values in result):
        raise InputError(f'The generator {generate} must return a pair of {len(images)} images and as many targets.')
    return result


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).mean()


def num_aux_needed(
        eps: Union[float, Sequence[float]] = 4,
        generator: Optional[Union[str, Generator]] = None,
        aug_splits: int = 1,
) -> int:
    """Number of auxiliary norms that `AdvPropTask` needs with these arguments: one for each kind of images but clean.

    Args:
        eps: See `AdvPropTask`.
        generator: See `AdvPropTask`.
        aug_splits: See `AdvPropTask`.
    """
    return aug_splits - 1 + count_generators(generator, eps)
