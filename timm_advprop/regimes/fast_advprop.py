"""Fast AdvProp: AdvProp at the cost of vanilla training.

Mei et al., *Fast AdvProp*, ICLR 2022, arXiv:2204.09838.
"""
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ..attacks import LOSS_SCALE
from ..norms import norm_parameters, norm_route, num_aux_norms, set_norm_route, train_aux
from .adversary import Adversary, normalisation_of
from .task import RegimeTask, top1

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

    In two details the authors' code is not followed. There, one normal variate decides for a whole batch whether it
    starts from random points; here each image does with probability `random_start`. And there a random target may be
    the true label.

    The attack's weight gradients enter with the returned loss, whose backward pass adds them: loss scaling, gradient
    accumulation and DDP need to know nothing.

    Args:
        model: A model with one auxiliary norm for each norm, which is put on route `'split'` and stays there.
        criterion: Maps (logits, target) to a scalar, the mean over its images. Cross-entropy by default.
        eps: Strength of the attack in 0–255 pixels.
        alpha: Step size of the attack in 0–255 pixels.
        attack: `'pgd'`, `'ifgsm'` or `'gd'`, with a single step.
        target: `'none'`: the attack maximises the training loss, as in the paper. `'random'`: it minimises a random
            wrong label's loss; the reused gradients are the true label's, at the price of a second backward pass.
        random_start: Probability that an image's attack starts from a random point of the ball.
        weight: Weight of the loss in the attack's pass, and of the adversarial loss; above 0.
        ratio: Clean images for each adversarial one, at least 1.
        norm: `'linf'` or `'l2'`.
        mean: Mean of each channel that the inputs were normalised by, in 0–1. The model's `pretrained_cfg` by default.
        std: Standard deviation of each channel, in 0–1. The model's `pretrained_cfg` by default.
        **kwargs: Arguments of `RegimeTask`.

    Raises:
        ValueError: The model has no split norms, or several auxiliary ones; or an argument is out of range.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            *,
            eps: float = 1,
            alpha: float = 1,
            attack: str = 'pgd',
            target: str = 'none',
            random_start: float = 0.8,
            weight: float = 0.5,
            ratio: int = 4,
            norm: str = 'linf',
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        if not weight > 0:
            raise ValueError(f'fast-advprop reuses gradients of adversarial images: their weight must be above 0, got '
                             f'{weight}.')
        if ratio < 1:
            raise ValueError(f'ratio of clean to adversarial images must be at least 1, got {ratio}.')
        self.weight, self.ratio = float(weight), int(ratio)
        mean, std = normalisation_of(model, mean, std)
        self.adversary = Adversary(
            eps=eps,
            alpha=alpha,
            steps=1,
            attack=attack,
            target=target,
            random_start=random_start,
            norm=norm,
            mean=mean,
            std=std,
        ).to(self.device)
        set_norm_route(model, 'split')  # raises where there are no split norms
        if num_aux_norms(model) != 1:
            raise ValueError(f'fast-advprop trains one auxiliary norm for each norm, the model has '
                             f'{num_aux_norms(model)}.')
        train_aux(model)
        self._handles: List[RemovableHandle] = []
        self.announce()

    def describe(self) -> str:
        return f'fast-advprop {self.ratio}:1, {self.adversary.describe()}, adversarial losses × {self.weight:g}'

    def relative_cost(self) -> float:
        second_backward = 1 / 3 if self.adversary.target == 'random' else 0
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
            ValueError: The batch is too small to be divided.
        """
        num_adv = len(input) // (self.ratio + 1)
        num_clean = len(input) - num_adv
        if num_adv < 1:
            raise ValueError(f'fast-advprop needs a batch of at least {self.ratio + 1} images, got {len(input)}.')
        input, source = input.split([num_clean, num_adv])
        target, source_target = target.split([num_clean, num_adv])
        self._forget_scales()
        parameters = [parameter for parameter in self.trainable_module.parameters() if parameter.requires_grad]
        adversarial, attack_loss, gradients = self._attack(source, source_target, parameters)
        adversarial, adv_target = self._shuffle(adversarial, source_target)

        set_norm_route(self.trainable_module, 'split', sizes=(num_clean, num_adv))
        outputs = self.trainable_module(torch.cat([input, adversarial])).split([num_clean, num_adv])
        clean_loss, adv_loss = self.criterion(outputs[0], target), self.criterion(outputs[1], adv_target)
        adv_weight = self.weight * num_adv
        num_shared = num_clean + 2 * adv_weight
        loss = (num_clean * clean_loss + adv_weight * (adv_loss + attack_loss)) / num_shared
        loss = _AddGradients.apply(loss, self.weight / (LOSS_SCALE * num_shared), gradients, *parameters)
        self._scale_gradients(main=num_shared / num_clean, aux=num_shared / (2 * adv_weight))
        return {
            'loss': loss,
            'output': outputs[0],
            'clean_loss': clean_loss.detach(),
            'attack_loss': attack_loss,
            'adv_loss': adv_loss.detach(),
            'clean_top1': top1(outputs[0], target),
            'adv_top1': top1(outputs[1], adv_target),
        }

    def _attack(
            self,
            images: torch.Tensor,
            target: torch.Tensor,
            parameters: Sequence[nn.Parameter],
    ) -> Tuple[torch.Tensor, torch.Tensor, List[Optional[torch.Tensor]]]:
        # Adversarial images, the loss of the pass that made them, and LOSS_SCALE × the weight gradients of its sum.
        losses, gradients = [], []

        def gradient(forward, images, target, attack_loss):
            images = images.detach().requires_grad_()
            output = forward(images)
            loss = self.criterion(output, target)
            objective = loss * (LOSS_SCALE * len(images))  # fp16 needs the scale, see `attacks`
            if self.adversary.target == 'none':
                image_gradient, *found = torch.autograd.grad(objective, (images, *parameters), allow_unused=True)
            else:
                towards_wrong = attack_loss(output, target) * LOSS_SCALE
                image_gradient, = torch.autograd.grad(towards_wrong, images, retain_graph=True)
                found = torch.autograd.grad(objective, parameters, allow_unused=True)
            losses.append(loss.detach())
            if output.dtype == torch.float16:  # the scale is constant: an overflow must not stop all updates
                found = [value if value is None else value.nan_to_num_(0., 0., 0.) for value in found]
            gradients.extend(found)
            return image_gradient.nan_to_num()

        model = self.unwrapped_module
        with norm_route(model, 'aux'):
            adversarial = self.adversary.perturb(model, images, target, gradient)
        return adversarial.to(images.dtype), losses[0], gradients

    def _shuffle(self, images: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        # Over all processes: the batch statistics of the training pass are then not those of the attack's pass.
        module = self.trainable_module
        if not isinstance(module, DistributedDataParallel):
            order = torch.randperm(len(images), device=images.device)
            return images[order], target[order]
        group, rank = module.process_group, dist.get_rank(module.process_group)
        images, target = (_gather(values, group) for values in (images, target))
        order = torch.randperm(len(images), device=images.device)
        dist.broadcast(order, src=dist.get_global_rank(group, 0), group=group)  # every image goes to one process
        mine = order.chunk(dist.get_world_size(group))[rank]
        return images[mine], target[mine]

    def _scale_gradients(self, main: float, aux: float) -> None:
        # Factors on the next gradients of the norms' parameters.
        for factor, parameters in zip((main, aux), norm_parameters(self.unwrapped_module)):
            self._handles.extend(
                _scale_next_gradient(parameter, factor) for parameter in parameters if parameter.requires_grad)

    def _forget_scales(self) -> None:
        # Of a step whose loss had no backward pass.
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _AddGradients(torch.autograd.Function):
    # A loss whose backward pass adds gradients that are known already, times a weight, to those of parameters.
    @staticmethod
    def forward(ctx, loss, weight, gradients, *parameters):
        ctx.weight, ctx.gradients = weight, gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        # In place where that is safe, and without a reference that would make autograd copy them: together they are as
        # large as the model.
        factor = grad * ctx.weight
        known, seen = [], set()
        for value in ctx.gradients:
            if value is None or value.untyped_storage().data_ptr() in seen or 0 in value.stride():
                known.append(None if value is None else value.detach().clone())
            else:
                known.append(value)
                seen.add(value.untyped_storage().data_ptr())
        ctx.gradients = None
        for value in known:
            if value is not None:
                value.mul_(factor)
        return grad, None, None, *known


def _scale_next_gradient(parameter: nn.Parameter, factor: float) -> RemovableHandle:
    def scale(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient * factor
    handle = parameter.register_hook(scale)
    return handle


def _gather(values: torch.Tensor, group: Any) -> torch.Tensor:
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values.contiguous(), group=group)
    return torch.cat(parts)
