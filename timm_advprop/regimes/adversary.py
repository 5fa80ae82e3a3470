"""The adversary of a regime: an attack on a model, in pixel units, that leaves no trace on the model."""
import math
from contextlib import contextmanager, nullcontext
from typing import Dict, Iterator, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..attacks import ATTACKS, NORMS, Forward, Gradient, random_target
from ..norms import Route, batch_statistics, has_split_norm, norm_route

__all__ = ['Adversary', 'attack_mode', 'default_steps', 'normalisation_of', 'TARGETS', 'NORM_STATS', 'AMP_DTYPES']

TARGETS = ('random', 'none')
NORM_STATS = ('eval', 'train')
AMP_DTYPES = ('float16', 'bfloat16', 'float32')


def default_steps(eps: float) -> int:
    """The paper's number of attack steps of size 1: eps + 1, and 1 where eps is at most 1 (section 5.1).

    Args:
        eps: Strength of the attack in 0–255 pixels.
    """
    return 1 if eps <= 1 else math.ceil(eps) + 1


class Adversary(nn.Module):
    """Attacks a model with images as timm's loaders deliver them, normalised by mean and std.

    Strengths are given in 0–255 pixels and become normalised units here, once. The attack sees the model in eval mode
    (no dropout, no stochastic depth) with frozen parameters, on a route of its own; every module's mode, route and
    every parameter's `requires_grad` is restored after it, also after an exception.

    Args:
        eps: Radius of the ball in 0–255 pixels, at least 0.
        alpha: Step size in 0–255 pixels, at least 0.
        steps: Number of steps, at least 1; `default_steps(eps)` by default.
        attack: `'pgd'`, `'ifgsm'` or `'gd'`.
        target: `'random'` to reach a random wrong label, `'none'` to leave the true one.
        random_start: Probability that a sample starts from a random point of the ball.
        norm: `'linf'` or `'l2'`. For `'l2'`, `eps` and `alpha` are lengths of the whole image's perturbation.
        norm_stats: `'eval'` normalises by the running statistics, `'train'` by those of the batch. Neither updates
            the running statistics.
        mean: Mean of each channel that the images were normalised by, in 0–1.
        std: Standard deviation of each channel, in 0–1.
        amp_dtype: Precision of the attack's forward and backward: `'float16'`, `'bfloat16'`, `'float32'` (no
            autocast) or a torch type. The caller's by default. The perturbation is always float32 or wider.

    Raises:
        ValueError: An argument is out of its range; the message names it.
    """

    def __init__(
            self,
            eps: float = 4,
            alpha: float = 1,
            steps: Optional[int] = None,
            attack: str = 'pgd',
            target: str = 'random',
            random_start: float = 0.8,
            norm: str = 'linf',
            norm_stats: str = 'eval',
            mean: Sequence[float] = (0., 0., 0.),
            std: Sequence[float] = (1., 1., 1.),
            amp_dtype: Optional[Union[str, torch.dtype]] = None,
    ):
        super().__init__()
        for name, value, choices in (
                ('attack', attack, tuple(ATTACKS)),
                ('target', target, TARGETS),
                ('norm', norm, NORMS),
                ('norm_stats', norm_stats, NORM_STATS),
        ):
            if value not in choices:
                raise ValueError(f'{name} must be one of {", ".join(choices)}, got {value!r}.')
        for name, value in (('eps', eps), ('alpha', alpha)):
            if not value >= 0 or not math.isfinite(value):
                raise ValueError(f'{name} must be at least 0 (in 0–255 pixels), got {value}.')
        steps = default_steps(eps) if steps is None else steps
        if steps < 1:
            raise ValueError(f'An attack needs at least 1 step, got {steps}.')
        if not 0 <= random_start <= 1:
            raise ValueError(f'random_start is a probability, got {random_start}.')
        if not all(value > 0 for value in std) or len(mean) != len(std):
            raise ValueError(f'mean and std need one value for each channel, std above 0; got {mean} and {std}.')
        self.eps_px, self.alpha_px, self.steps = float(eps), float(alpha), int(steps)
        self.attack, self.target, self.norm, self.norm_stats = attack, target, norm, norm_stats
        self.random_start = float(random_start)
        self.amp_dtype = _resolve_amp_dtype(amp_dtype)
        # In normalised units, for each channel. Not buffers: a task that is moved to a lower precision must not round
        # the strength of its attack.
        self.units = dict(
            eps=[self.eps_px / 255 / s for s in std],
            alpha=[self.alpha_px / 255 / s for s in std],
            low=[(0 - m) / s for m, s in zip(mean, std)],
            high=[(1 - m) / s for m, s in zip(mean, std)],
        )
        self._tensors: Dict[Tuple[torch.device, torch.dtype], Dict[str, torch.Tensor]] = {}

    def forward(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor, route: Route) -> torch.Tensor:
        """Attack images.

        Args:
            model: The model to fool, not wrapped in DDP.
            images: Clean images [N, C, H, W], normalised.
            target: True labels [N], or class weights [N, classes].
            route: Route of the attack's forward and backward passes, `'aux'` in AdvProp (Algorithm 1, step 3).
                Ignored for a plain model.

        Returns:
            Adversarial images [N, C, H, W], normalised, detached, of the type of `images`.
        """
        autocast = nullcontext()
        if self.amp_dtype is not None:
            reduced = self.amp_dtype != torch.float32
            autocast = torch.autocast(
                images.device.type, dtype=self.amp_dtype if reduced else None, enabled=reduced)
        with attack_mode(model, route, self.norm_stats), autocast:
            return self.perturb(model, images, target)

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
            images: Clean images [N, C, H, W], normalised.
            target: True labels [N], or class weights [N, classes].
            gradient: See `attacks.pgd`.

        Returns:
            Adversarial images [N, C, H, W], normalised, detached, of the type of `images`.
        """
        units = self._units_on(images)
        targeted = self.target == 'random'
        return ATTACKS[self.attack](
            forward,
            images,
            target,
            eps=units['eps'],
            alpha=units['alpha'],
            steps=self.steps,
            bounds=(units['low'], units['high']),
            random_start=self.random_start,
            targeted=targeted,
            loss=_RandomTargetLoss() if targeted else None,
            norm=self.norm,
            gradient=gradient,
        )

    def describe(self) -> str:
        """Name of the attack and its strength: `PGD-5, eps 4/255, alpha 1/255, untargeted`."""
        name = self.attack.upper().replace('IFGSM', 'I-FGSM')
        norm = ' (L2)' if self.norm == 'l2' else ''
        target = 'random target' if self.target == 'random' else 'untargeted'
        return f'{name}-{self.steps}{norm}, eps {self.eps_px:g}/255, alpha {self.alpha_px:g}/255, {target}'

    def relative_cost(self) -> float:
        """Arithmetic relative to a vanilla step on the same images: a step is a forward and half a backward, 2/3."""
        return 2 / 3 * self.steps

    def _units_on(self, images: torch.Tensor) -> Dict[str, torch.Tensor]:
        # Kept on each device: a copy from the host in every step would make the device wait.
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        key = (images.device, dtype)
        if key not in self._tensors:
            self._tensors[key] = {
                name: torch.tensor(values, dtype=dtype, device=images.device) for name, values in self.units.items()
            }
        return self._tensors[key]


class _RandomTargetLoss:
    # Cross-entropy of a random wrong label, drawn when the first logits tell the number of classes.
    def __init__(self):
        self._target: Optional[torch.Tensor] = None

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self._target is None:
            self._target = random_target(target, output.shape[1])
        return F.cross_entropy(output, self._target, reduction='sum')


@contextmanager
def attack_mode(model: nn.Module, route: Route, norm_stats: str = 'eval') -> Iterator[None]:
    """Put a model into the state an attack needs and restore it, module by module, also after an exception.

    Frozen parameters cost less: nothing is kept for their gradients, and a compiled backward does not compute them.

    Args:
        model: The model under attack.
        route: Route of the attack, ignored for a model without split norms.
        norm_stats: `'eval'` or `'train'`, see `Adversary`.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    routed = norm_route(model, route) if has_split_norm(model) else nullcontext()
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        with routed, batch_statistics(model) if norm_stats == 'train' else nullcontext():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


def _resolve_amp_dtype(amp_dtype: Optional[Union[str, torch.dtype]]) -> Optional[torch.dtype]:
    if isinstance(amp_dtype, str):
        if amp_dtype not in AMP_DTYPES:
            raise ValueError(f'amp_dtype must be one of {", ".join(AMP_DTYPES)}, got {amp_dtype!r}.')
        return getattr(torch, amp_dtype)
    return amp_dtype


def normalisation_of(
        model: nn.Module,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
) -> Tuple[Sequence[float], Sequence[float]]:
    """Mean and std of a model's inputs: those given, or the model's own `pretrained_cfg`.

    Args:
        model: The model.
        mean: Mean of each channel, in 0–1.
        std: Standard deviation of each channel, in 0–1.

    Raises:
        ValueError: Neither given nor known from the model.
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    channels = getattr(model, 'in_chans', None)
    mean = mean if mean is not None else _for_channels(cfg.get('mean'), channels)
    std = std if std is not None else _for_channels(cfg.get('std'), channels)
    if mean is None or std is None:
        raise ValueError(f'{type(model).__name__} does not say how its inputs are normalised: pass mean and std.')
    return tuple(mean), tuple(std)


def _for_channels(values: Optional[Sequence[float]], channels: Optional[int]) -> Optional[Sequence[float]]:
    # timm's loaders take the average where a cfg's number of values is not that of the model's channels
    if values is None or channels is None or len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels
