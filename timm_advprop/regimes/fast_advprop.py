"""Fast AdvProp: AdvProp at the cost of vanilla training.

Mei et al., *Fast AdvProp*, ICLR 2022, arXiv:2204.09838.
"""
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from ..attacks import LOSS_SCALE
from ..errors import InputError
from ..norms import forward_parts, norm_parameters, norm_route, num_aux_norms
from .attack import Attack
from .gradients import add_gradients, scale_gradients
from .image_gradient import cheap_image_gradient
from .pixels import normalisation_of, warn_of_pixels
from .regime_settings import RegimeSettings
from .source import Source
from .task import RegimeTask, check_weight, one_attack, part_metrics, use_split_norms

__all__ = ['FastAdvPropTask']


class FastAdvPropTask(RegimeTask):
    """Train on clean images through the main norms, and on other images, attacked, through the auxiliary norms.

    A batch is divided into clean images and, `ratio` times fewer, images to attack. The attack is a single step in
    train mode. Its backward pass also yields the gradients of the weights on the images it starts from, which count as
    training: nothing of the attack is lost. The adversarial images are shuffled, over all processes, and train the
    auxiliary norms in one forward pass with the clean images. The losses of the clean images, of the attack's pass and
    of the adversarial images weigh 1, `weight` and `weight`. The gradient of each group of parameters is the sum over
    the images it has seen, divided by the sum of their weights: all images for shared parameters, the clean ones for
    main norms, those of both other passes for auxiliary norms.

    In some details the authors' code is not followed. There, one normal variate decides for a whole batch whether it
    starts from random points; here each image does with probability `random_start`. There, random starts may leave the
    range of pixels in the attack's pass; here they are clamped to it. There, a step is at least the strength divided by
    the number of steps; here it is as long as set. And there a random target may be the true label.

    The attack's weight gradients enter with the returned loss, whose backward pass adds them, and its graph rescales
    those of norms: loss scaling, gradient accumulation, DDP and other terms of a loss need to know nothing. A further
    loss of the returned logits shares the graph, so its gradients of norms are rescaled, too.

    Args:
        model: A model with one auxiliary norm for each norm, and on route `'main'` outside of a step.
        criterion: Maps (logits, target) to a scalar, the mean over its images. Cross-entropy by default.
        attack: The attack, a single step. Untargeted, it maximises the training loss, as in the paper. With a random
            target it minimises that label's loss; the reused gradients are the true label's, at the price of a second
            backward pass.
        weight: Weight of the loss in the attack's pass, and of the adversarial loss; above 0.
        ratio: Clean images for each adversarial one, at least 1.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.

    Raises:
        ValueError: The model has no split norms, or several auxiliary ones; it is sharded (FSDP); or an argument is out
            of range.
    """
    name = 'fast-advprop'
    default_attack = Attack(eps_px=1., steps=1, target='none')
    default_weight = 0.5
    default_budget = 'vanilla'
    default_ratio = 4
    smallest_batch = default_ratio + 1
    no_use_for = {
        'adv_steps': 'its attack is a single step',
        'adv_norm_stats': 'its attack trains, by the statistics of the batch',
        'adv_amp_dtype': 'its attack trains, in the precision of the step',
        'adv_source': 'its images are made by the pass that trains',
        'aug_splits': 'it trains its routes on different images',
        'adv_pairing': 'it trains its routes on different images',
        'adv_pairing_weight': 'it trains its routes on different images',
        'adv_match_masks': 'it trains its routes on different images',
    }

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            attack: Optional[Attack] = None,
            *,
            weight: Optional[float] = None,
            ratio: int = default_ratio,
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        self.weight, self.ratio = check_weight(weight, self.default_weight), int(ratio)
        if not self.weight > 0:
            raise ValueError(f'fast-advprop reuses gradients of adversarial images: their weight must be above 0, got '
                             f'{weight}.')
        if ratio < 1 or ratio != self.ratio:
            raise ValueError(f'ratio of clean to adversarial images must be a whole number of at least 1, got {ratio}.')
        attack = attack or self.default_attack
        if attack.steps not in (None, 1) or (attack.amp_dtype, attack.norm_stats) != (None, Attack.norm_stats):
            raise ValueError('fast-advprop attacks in a single step that trains, by the statistics of the batch and in '
                             'the precision of the step: set no other steps, norm_stats or amp_dtype.')
        normalisation = normalisation_of(model, mean, std)
        warn_of_pixels(self, *normalisation)
        attack = replace(attack, steps=1).normalised_by(*normalisation)
        self.attack = attack.against(self.criterion)
        use_split_norms(model)  # raises where there are none
        if num_aux_norms(model) != 1:
            raise ValueError(f'fast-advprop trains one auxiliary norm for each norm, the model has '
                             f'{num_aux_norms(model)}.')
        self.announce()

    @classmethod
    def arguments(cls, settings: RegimeSettings) -> Dict[str, Any]:
        return dict(attack=one_attack(cls, settings), weight=settings.weight)

    @classmethod
    def sources_of_aux_norms(cls, settings: RegimeSettings) -> Sequence[Source]:
        return [one_attack(cls, settings)]

    def describe(self) -> str:
        return f'{self.name} {self.ratio}:1, {self.attack.describe()}, adversarial losses × {self.weight:g}'

    def relative_cost(self) -> float:
        second_backward = 1 / 3 if self.attack.is_targeted else 0
        return (self.ratio + 2 + second_backward) / (self.ratio + 1)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Attack a part of a batch and compute all losses.

        Args:
            input: Images [N, C, H, W], normalised by mean and std; N is at least ratio + 1. The first go through the
                main norms, the last N // (ratio + 1) are attacked.
            target: Labels [N], or class weights [N, classes].

        Returns:
            `'loss'` (the weighted mean of all losses, which carries the attack's gradients), `'output'` (logits of the
            clean images), `'clean_loss'`, `'attack_loss'` and `'adv_loss'` (detached), `'clean_top1'` and `'adv_top1'`
            (percent).

        Raises:
            ValueError: The batch is too small to be divided, or for the statistics of a norm; or the model is sharded.
        """
        num_adv = len(input) // (self.ratio + 1)
        if num_adv < 1:
            raise ValueError(f'fast-advprop needs a batch of at least {self.ratio + 1} images, got {len(input)}.')
        with _one_image_explained(num_adv, 2 * (self.ratio + 1), len(input)):
            return self._step(input, target, (len(input) - num_adv, num_adv))

    def _step(self, input: torch.Tensor, target: torch.Tensor, sizes: Tuple[int, int]) -> Dict[str, torch.Tensor]:
        (input, images), (target, adv_target), (num_clean, num_adv) = input.split(sizes), target.split(sizes), sizes
        parameters = _trained(self.trainable_module)
        adversarial, attack_loss, gradients = self._attack(images, adv_target, parameters)
        adversarial, adv_target = self._shuffle(adversarial, adv_target)

        outputs = forward_parts(self.trainable_module, (input, adversarial))
        clean_loss, adv_loss = self.criterion(outputs[0], target), self.criterion(outputs[1], adv_target)
        # Shared parameters have seen all images, main norms the clean ones, auxiliary norms those of the attack's pass
        # and of the adversarial one: the loss is the mean over what shared ones have seen, the others are rescaled.
        adv_weight = self.weight * num_adv
        num_shared = num_clean + 2 * adv_weight
        loss = (num_clean * clean_loss + adv_weight * (adv_loss + attack_loss)) / num_shared
        factors = self._factors(main=num_shared / num_clean, aux=num_shared / (2 * adv_weight))
        scale_gradients(loss, factors)
        weights = [self.weight / (LOSS_SCALE * num_shared) * factors.get(parameter, 1.) for parameter in parameters]
        loss = add_gradients(loss, parameters, gradients, weights)
        metrics = part_metrics(('clean', 'adv'), (clean_loss, adv_loss), outputs, (target, adv_target))
        return {'loss': loss, 'output': outputs[0], 'attack_loss': attack_loss, **metrics}

    def _factors(self, main: float, aux: float) -> Dict[nn.Parameter, float]:
        # On the gradients of the norms' parameters.
        return {parameter: factor for factor, parameters in zip((main, aux), norm_parameters(self.unwrapped_module))
                for parameter in parameters}

    def _attack(
            self,
            images: torch.Tensor,
            target: torch.Tensor,
            parameters: Sequence[nn.Parameter],
    ) -> Tuple[torch.Tensor, torch.Tensor, List[Optional[torch.Tensor]]]:
        # Adversarial images, the loss of the pass that made them, and LOSS_SCALE × the weight gradients of its sum: a
        # backward pass to the images goes by the weights anyway, so their gradients cost a third of it at most.
        loss: Any = None
        gradients = []

        def gradient(forward, images, target, attack_loss):
            nonlocal loss
            images = images.detach().requires_grad_()
            output = forward(images)
            loss = self.criterion(output, target)
            objective = loss * (LOSS_SCALE * len(images))  # fp16 needs the scale, see `attacks`
            towards_wrong = attack_loss(output, target).sum() * LOSS_SCALE if self.attack.is_targeted else None
            image_gradient, found = _gradients(objective, towards_wrong, images, parameters)
            if output.dtype == torch.float16:  # the scale is constant: an overflow must not stop all updates
                found = [value if value is None else value.nan_to_num_(0., 0., 0.) for value in found]
            gradients.extend(found)
            return image_gradient.nan_to_num()

        model = self.unwrapped_module
        with norm_route(model, 'aux'), cheap_image_gradient(model):
            adversarial = self.attack.perturb(model, images, target, gradient)
        self.keep_made(self.attack, images, adversarial)
        return adversarial.to(images.dtype), loss.detach(), gradients

    def _shuffle(self, images: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        # Over all processes: the batch statistics of the training pass are then not those of the attack's pass.
        module = self.trainable_module
        if not isinstance(module, DistributedDataParallel):
            order = torch.randperm(len(images), device=images.device)
            return images[order], target[order]
        group: Any = module.process_group
        rank = dist.get_rank(group)
        images, target = (_gather(values, group) for values in (images, target))
        order = torch.randperm(len(images), device=images.device)
        dist.broadcast(order, src=dist.get_global_rank(group, 0), group=group)  # every image goes to one process
        mine = order.chunk(dist.get_world_size(group))[rank]
        return images[mine], target[mine]


@contextmanager
def _one_image_explained(num_adv: int, enough: int, size: int) -> Iterator[None]:
    # A norm after global pooling sees one value for each channel of a single image. Dynamo wraps torch's ValueError.
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if num_adv > 1 or 'more than 1 value per channel' not in str(error):
            raise
        raise InputError(f'fast-advprop attacks 1 image of a batch of {size}, too few for the batch statistics of this '
                         f'model: give batches of at least {enough} images, or larger images.') from error


def _trained(module: nn.Module) -> List[nn.Parameter]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if any(hasattr(parameter, 'device_mesh') for parameter in parameters):  # the graph has others in their place
        raise InputError('fast-advprop reuses the gradients of whole parameters, these are sharded (FSDP): use '
                         'DistributedDataParallel, or regime advprop.')
    return parameters


def _gradients(objective, towards_wrong, images, parameters):
    # Of the images, along the attack's own objective where it has one, and of the parameters.
    if towards_wrong is None:
        image_gradient, *found = torch.autograd.grad(objective, (images, *parameters), allow_unused=True)
        return image_gradient, found
    image_gradient, = torch.autograd.grad(towards_wrong, images, retain_graph=True)
    return image_gradient, torch.autograd.grad(objective, parameters, allow_unused=True)


def _gather(values: torch.Tensor, group: Any) -> torch.Tensor:
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values.contiguous(), group=group)
    return torch.cat(parts)
