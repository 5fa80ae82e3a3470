"""`Attack`: the settings of an attack, in pixels, and the source that carries it out without a trace on the model."""
import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Callable, ContextManager, Dict, Iterator, Mapping, Optional, Union

import torch
import torch.nn as nn

from ..attacks import ATTACKS, NORMS, Forward, Gradient, Loss
from ..norms import batch_statistics
from ..settings import setting
from .attack_loss import RandomTargetLoss, attack_loss_of
from .pixels import PixelSource
from .source import Images

__all__ = ['Attack', 'frozen']

_PIXELS = dict(low=0, unit='in 0–255 pixels', metavar='PX')


@dataclass(frozen=True, kw_only=True)
class Attack(PixelSource):
    """An attack on a model with images as timm's loaders deliver them, and the source of such images.

    The attack sees the model in eval mode (no dropout, no stochastic depth) with frozen parameters, on the route that
    the model is on; every module's mode and every parameter's `requires_grad` is restored after it, also after an
    exception. The perturbation is always float32 or wider. For `'l2'`, `eps_px` and `alpha_px` are lengths of the whole
    image's perturbation.

    Args:
        loss: Maps (logits, target) to the loss to attack by, one a sample or a scalar. Cross-entropy by default; in a
            task whose targets are no classes of a softmax (several labels, a single logit) the task's criterion, see
            `attack_loss_of`. With a random target it is lowered for a wrong label: of several labels one that the image
            lacks, alone; of a single logit the other answer.

    Raises:
        ValueError: A setting is out of its range; the message names it.
    """
    kind: str = setting('pgd', 'attack', choices=tuple(ATTACKS), flags=('--adv-attack',))
    eps_px: float = setting(4., 'attack strength in 0-255 pixels', **_PIXELS, flags=('--adv-eps',))
    alpha_px: float = setting(1., 'size of an attack step in 0-255 pixels', **_PIXELS, flags=('--adv-alpha',))
    steps: Optional[int] = setting(
        None, 'attack steps', low=1, metavar='N', flags=('--adv-steps',),
        default_help='eps + 1, and 1 where eps is at most 1')  # the paper's rule
    target: str = setting(
        'random', 'random wrong label, or none: away from the true one', choices=('random', 'none'),
        flags=('--adv-target',))
    random_start: float = setting(
        0.8, 'probability of a random start, for each sample', low=0, high=1, metavar='P',
        flags=('--adv-random-start',))
    norm: str = setting(
        'linf', 'norm of the perturbation; for l2, strength and step size are lengths of a whole image\'s',
        choices=NORMS, flags=('--adv-norm',))
    norm_stats: str = setting(
        'eval', 'statistics the attack\'s forward uses: the running ones, or in train those of its batch',
        choices=('eval', 'train'), flags=('--adv-norm-stats',))
    amp_dtype: Optional[str] = setting(
        None, 'precision of the attack alone', choices=('float16', 'bfloat16', 'float32'), flags=('--adv-amp-dtype',),
        default_help='as the training step')
    loss: Optional[Loss] = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == 'linf' and self.eps_px > 255:
            raise ValueError(f'eps_px (--adv-eps) must be at most 255 in the L∞ norm, got {self.eps_px:g}.')
        if self.steps is None and self.eps_px > 255:  # of L2: the paper's rule would have hundreds
            raise ValueError(f'eps_px (--adv-eps) above 255 has no usual number of steps, got {self.eps_px:g}: give '
                             'steps (--adv-steps).')

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
        autocast = nullcontext() if self.amp_dtype is None else self._autocast(images.device)
        with frozen(model, self.norm_stats), autocast:
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
        return ATTACKS[self.kind](
            forward, images, target, eps=self.normalised(self.eps_px), alpha=self.normalised(self.alpha_px),
            steps=self.num_steps, bounds=self.bounds, random_start=self.random_start, targeted=self.is_targeted,
            loss=RandomTargetLoss(self.loss) if self.is_targeted else self.loss, norm=self.norm, gradient=gradient)

    def against(self, criterion: Union[nn.Module, Callable]) -> 'Attack':
        return self if self.loss else replace(self, loss=attack_loss_of(criterion))

    @property
    def num_steps(self) -> int:
        """Number of steps; where it is not set the paper's rule for steps of size 1: eps + 1, and 1 up to eps 1."""
        if self.steps is not None:
            return self.steps
        return 1 if self.eps_px <= 1 else math.ceil(self.eps_px) + 1

    @property
    def is_targeted(self) -> bool:
        """Whether it makes a random wrong label likely, and not the true one unlikely."""
        return self.target == 'random'

    def describe(self) -> str:
        """Name of the attack and its strength: `PGD-5, eps 4/255, alpha 1/255, untargeted`."""
        name = self.kind.upper().replace('IFGSM', 'I-FGSM')
        norm = ' (L2)' if self.norm == 'l2' else ''
        target = 'random target' if self.is_targeted else 'untargeted'
        return f'{name}-{self.num_steps}{norm}, eps {self.eps_px:g}/255, alpha {self.alpha_px:g}/255, {target}'

    def relative_cost(self) -> float:
        """Arithmetic relative to a vanilla step on the same images: a step is a forward and half a backward, 2/3."""
        return 2 / 3 * self.num_steps

    def facts(self) -> Dict[str, Any]:
        norm = dict(norm=self.norm) if self.norm != 'linf' else {}
        return dict(
            trained_on='adversarial images', attack=self.kind, target=self.target, random_start=self.random_start,
            alpha_px=self.alpha_px, eps_px=self.eps_px, steps=self.num_steps, **norm)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], **others: Any) -> 'Attack':
        """The attack that a model card tells of.

        Args:
            facts: What `facts` returned.
            **others: Settings that replace those.
        """
        known = {name: facts[name] for name in cls.declared() if name in facts}
        return cls(**{'kind': facts['attack'], **known, **others})

    @classmethod
    def names_of_flags(cls) -> Dict[str, str]:
        """For each setting the name of its flag, `adv_eps` for `eps_px`, in recipes and `args.yaml`."""
        return {name: about.flags[0].lstrip('-').replace('-', '_') for name, about in cls.declared().items()}

    def _autocast(self, device: torch.device) -> ContextManager:
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
