"""`Attack`: the settings of an attack inside of a ball, in pixels, and the source of such images."""
import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Dict, Mapping, Optional

import torch

from ..attacks import ATTACKS, NORMS, Forward, Gradient
from ..settings import setting
from .model_attack import ModelAttack

__all__ = ['Attack']

_logger = logging.getLogger(__name__)

_LEAST_PX = dict(linf=0.25, l2=4.)  # of an attack that does something; in the literature's units, 0–1, L2 is 0.5 to 3
_PIXELS = dict(low=0, unit='in 0–255 pixels', metavar='PX')


@dataclass(frozen=True, kw_only=True)
class Attack(ModelAttack):
    """PGD, I-FGSM or GD on a model with images as timm's loaders deliver them, and the source of such images.

    How it treats the model, and its loss, says `ModelAttack`. For `'l2'`, `eps_px` and `alpha_px` are lengths of the
    whole image's perturbation.

    Raises:
        ValueError: A setting is out of its range; the message names it.
    """
    kind: str = setting('pgd', 'attack', choices=tuple(ATTACKS), flags=('--adv-attack',))
    eps_px: float = setting(4., 'attack strength in 0-255 pixels', **_PIXELS, flags=('--adv-eps',))
    alpha_px: float = setting(1., 'size of an attack step in 0-255 pixels', **_PIXELS, flags=('--adv-alpha',))
    steps: Optional[int] = setting(
        None, 'attack steps', low=1, metavar='N', flags=('--adv-steps',),
        default_help='eps + 1, and 1 where eps is at most 1')  # the paper's rule
    random_start: float = setting(
        0.8, 'probability of a random start, for each sample', low=0, high=1, metavar='P',
        flags=('--adv-random-start',))
    norm: str = setting(
        'linf', 'norm of the perturbation; for l2, strength and step size are lengths of a whole image\'s',
        choices=NORMS, flags=('--adv-norm',))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == 'linf' and self.eps_px > 255:
            raise ValueError(f'eps_px (--adv-eps) must be at most 255 in the L∞ norm, got {self.eps_px:g}.')
        if self.steps is None and self.eps_px > 255:  # of L2: the paper's rule would have hundreds
            raise ValueError(f'eps_px (--adv-eps) above 255 has no usual number of steps, got {self.eps_px:g}: give '
                             'steps (--adv-steps).')
        if 0 < self.eps_px < _LEAST_PX[self.norm]:
            _warn_of_units(self.eps_px)

    def perturb(
            self,
            forward: Forward,
            images: torch.Tensor,
            target: torch.Tensor,
            gradient: Optional[Gradient] = None,
    ) -> torch.Tensor:
        return ATTACKS[self.kind](
            forward, images, target, eps=self.normalised(self.eps_px), alpha=self.normalised(self.alpha_px),
            steps=self.num_steps, bounds=self.bounds, random_start=self.random_start, targeted=self.is_targeted,
            loss=self.objective, norm=self.norm, gradient=gradient)

    @property
    def num_steps(self) -> int:
        """Number of steps; where it is not set the paper's rule for steps of size 1: eps + 1, and 1 up to eps 1."""
        if self.steps is not None:
            return self.steps
        return 1 if self.eps_px <= 1 else math.ceil(self.eps_px) + 1

    def describe(self) -> str:
        """Name of the attack and its strength: `PGD-5, eps 4/255, alpha 1/255, untargeted`."""
        name = self.kind.upper().replace('IFGSM', 'I-FGSM')
        norm = ' (L2)' if self.norm == 'l2' else ''
        target = 'random target' if self.is_targeted else 'untargeted'
        return f'{name}-{self.num_steps}{norm}, eps {self.eps_px:g}/255, alpha {self.alpha_px:g}/255, {target}'

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


@lru_cache(maxsize=None)  # once, however many copies of an attack are made
def _warn_of_units(eps_px: float) -> None:
    _logger.warning(f'eps_px (--adv-eps) {eps_px:g} is in 0–255 pixels, next to nothing: {eps_px:g} in 0–1 is '
                    f'{255 * eps_px:.4g} here.')
