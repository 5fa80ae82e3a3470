"""What attacks on a model share: they leave no trace on it, and know which loss to raise or lower."""
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Callable, Iterator, Optional, TypeVar, Union

import torch
import torch.nn as nn

from ..attacks import Forward, Gradient, Loss
from ..norms import batch_statistics, folded
from ..settings import setting
from .attack_loss import RandomTargetLoss, attack_loss_of
from .image_gradient import cheap_image_gradient
from .pixels import PixelSource
from .source import Images

__all__ = ['ModelAttack', 'frozen']

_Self = TypeVar('_Self', bound='ModelAttack')


@dataclass(frozen=True, kw_only=True)
class ModelAttack(PixelSource):
    """An attack on a model with images as timm's loaders deliver them, and the source of such images.

    The attack sees the model in eval mode (no dropout, no stochastic depth) with frozen parameters, on the route that
    the model is on; every module's mode and every parameter's `requires_grad` is restored after it, also after an
    exception. The perturbation is always float32 or wider. A subclass has the number of `steps`, and states `perturb`.

    Args:
        loss: Maps (logits, target) to the loss to attack by, one a sample or a scalar. Cross-entropy by default; in a
            task whose targets are no classes of a softmax (several labels, a single logit) the task's criterion, see
            `attack_loss_of`. With a random target it is lowered for a wrong label: of several labels one that the image
            lacks, alone; of a single logit the other answer.

    Raises:
        ValueError: A setting is out of its range; the message names it.
    """
    target: str = setting(
        'random', 'random wrong label, or none: away from the true one', choices=('random', 'none'),
        flags=('--adv-target',))
    norm_stats: str = setting(
        'eval', 'statistics the attack\'s forward uses: the running ones, or in train those of its batch',
        choices=('eval', 'train'), flags=('--adv-norm-stats',))
    amp_dtype: Optional[str] = setting(
        None, 'precision of the attack alone', choices=('float16', 'bfloat16', 'float32'), flags=('--adv-amp-dtype',),
        default_help='as the training step')
    loss: Optional[Loss] = field(default=None, repr=False)

    def check_classes(self, num_classes: int) -> None:
        """Check that there is a wrong label where the attack needs one.

        Raises:
            ValueError: There is none.
        """
        if self.is_targeted and self.loss is None and num_classes < 2:
            raise ValueError(f'--adv-target random needs a wrong label, the model has {num_classes} class: give '
                             '--adv-target none.')

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Images:
        """Attack images.

        Args:
            model: The model to fool, not wrapped in DDP, on the route to attack.
            images: Clean images [N, C, H, W], normalised by mean and std.
            target: True labels [N], class weights [N, classes], or what else the loss takes.

        Returns:
            Adversarial images [N, C, H, W], normalised, detached, of the type of `images`; and the target.
        """
        attack = self.normalised_for(model)
        with frozen(model, self.norm_stats), self.autocast(images.device), folded(
                model, images, self.num_steps), cheap_image_gradient(model):
            return attack.perturb(model, images, target), target

    def perturb(
            self,
            forward: Forward,
            images: torch.Tensor,
            target: torch.Tensor,
            gradient: Optional[Gradient] = None,
    ) -> torch.Tensor:
        """Attack images through a model in the state that it is in.

        Args:
            forward: Maps images [N, C, H, W] to logits [N, classes].
            images: Clean images [N, C, H, W], normalised by mean and std, which must be set.
            target: True labels [N], or class weights [N, classes].
            gradient: See `attacks.pgd`.
        """
        raise NotImplementedError

    def against(self: _Self, criterion: Union[nn.Module, Callable]) -> _Self:
        return self if self.loss else replace(self, loss=attack_loss_of(criterion))

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return self.steps  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def is_targeted(self) -> bool:
        """Whether it makes a random wrong label likely, and not the true one unlikely."""
        return self.target == 'random'

    @property
    def objective(self) -> Optional[Loss]:
        """The loss of one call, to raise, or to lower where it is targeted; None for cross-entropy."""
        return RandomTargetLoss(self.loss) if self.is_targeted else self.loss

    def relative_cost(self) -> float:
        """Arithmetic relative to a vanilla step on the same images: a step is a forward and half a backward, 2/3."""
        return 2 / 3 * self.num_steps

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The precision that its passes run in, as a context."""
        if self.amp_dtype is None:
            return nullcontext()
        reduced = self.amp_dtype != 'float32'
        return torch.autocast(device.type, dtype=getattr(torch, self.amp_dtype) if reduced else None, enabled=reduced)


@contextmanager
def frozen(model: nn.Module, norm_stats: str = 'eval') -> Iterator[None]:
    """Put a model into the state an attack needs and restore it, module by module, also after an exception.

    Frozen parameters cost less: nothing is kept for their gradients, and a compiled backward does not compute them.

    Args:
        model: The model under attack.
        norm_stats: `'eval'` normalises by the running statistics, `'train'` by those of the batch. Neither updates
            the running statistics.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        with batch_statistics(model) if norm_stats == 'train' else nullcontext():
            yield
    finally:
        # not model.train(): a user may have put single modules into eval mode
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
