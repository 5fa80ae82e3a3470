"""One image under attack: what a model says of it through each route, clean and attacked."""
from dataclasses import dataclass, replace
from typing import Callable, Dict, Optional, Sequence

import torch
import torch.nn as nn

from ..attacks import cross_entropy, random_target
from ..engine.route_names import canonical_route, route_problem
from ..errors import InputError
from ..regimes import Attack
from ..settings import Settings, setting

__all__ = ['AWAY', 'RANDOM', 'AttackedImage', 'ImageAttack', 'attack_image', 'shown_routes']

AWAY, RANDOM = 'none', 'random'
_SEED = 0  # the same class of chance each time, so that a picture changes by what was changed alone
_REACH = 2.5  # of all steps together, in strengths: from the image to the edge of the ball, and along it


def _target_problem(target: str) -> Optional[str]:
    if target in (AWAY, RANDOM) or isinstance(target, str) and target.isdecimal():
        return None
    return f'must be {AWAY}, {RANDOM}, or the number of a class'


def _route_problem(route: str) -> Optional[str]:
    return route_problem(route) if isinstance(route, str) else 'must be a text'


@dataclass(frozen=True)
class ImageAttack(Settings):
    """An attack on one image, without chance: I-FGSM, whose steps are as large as its strength and their number need.

    Raises:
        ValueError: A setting is out of its range; the message names it.
    """
    eps_px: float = setting(4., 'Strength', low=0, high=32, unit='in 0–255 pixels')
    steps: int = setting(5, 'Steps', low=1, high=50)
    target: str = setting(
        AWAY, f'Class to reach: its number, {RANDOM}, or {AWAY}: away from what the model says', check=_target_problem)
    route: str = setting('main', 'Route that is attacked', check=_route_problem)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, 'route', canonical_route(self.route))

    @property
    def alpha_px(self) -> float:
        """Size of a step in 0–255 pixels: that of the strength for one step."""
        return min(self.eps_px, _REACH * self.eps_px / self.steps)

    def goal(self, label: int, num_classes: int) -> Optional[int]:
        """The class to reach, None for an attack that leads away from a label.

        Raises:
            InputError: The model has no such class.
        """
        if self.target == AWAY:
            return None
        if self.target == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED)
                return int(random_target(torch.tensor([label]), num_classes))
        if int(self.target) >= num_classes:
            raise InputError(f'There is no class {self.target}: the model has {num_classes}, from 0.')
        return int(self.target)


@dataclass(frozen=True)
class AttackedImage:
    """An image and its adversarial twin.

    Args:
        clean: Pixels [C, H, W] in 0–1.
        attacked: Pixels [C, H, W] in 0–1.
        label: What the model says of the clean image through the attacked route.
        goal: The class that the attack was to reach, None where it led away from the label.
        probabilities: For each route those of the clean image and of the attacked one, [2, classes].
    """
    clean: torch.Tensor
    attacked: torch.Tensor
    label: int
    goal: Optional[int]
    probabilities: Dict[str, torch.Tensor]

    @property
    def perturbation(self) -> torch.Tensor:
        """What the attack added, [C, H, W] in −1–1."""
        return self.attacked - self.clean


def shown_routes(num_aux: int, attacked: str) -> Sequence[str]:
    """The routes to compare: main, aux where there is one, and that which is attacked."""
    return tuple(dict.fromkeys(('main', *(('aux',) if num_aux else ()), attacked)))


def attack_image(
        model_of: Callable[[str], nn.Module],
        pixels: torch.Tensor,
        asked: ImageAttack,
        routes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
) -> AttackedImage:
    """Attack an image through a route, and ask the model for both through several.

    Args:
        model_of: Maps a route to the plain model of it, in eval mode, from normalised images [N, C, H, W] to logits
            [N, classes].
        pixels: The image [C, H, W] in 0–1, on the models' device.
        asked: The attack.
        routes: Routes whose probabilities are wanted.
        mean: Mean of each channel that images are normalised by, in 0–1.
        std: Standard deviation of each channel, in 0–1.

    Raises:
        InputError: The model has no such class.
    """
    attack = Attack(
        kind='ifgsm', eps_px=asked.eps_px, alpha_px=asked.alpha_px, steps=asked.steps, target='none',
        mean=tuple(mean), std=tuple(std))
    model, clean = model_of(asked.route), attack.from_pixels(pixels.unsqueeze(0))
    with torch.no_grad():
        logits = model(clean)
    label = logits.argmax(dim=1)
    goal = asked.goal(label.item(), logits.shape[1])
    if goal is not None:
        attack = replace(attack, loss=_towards)
    adversarial, _ = attack(model, clean, label if goal is None else torch.full_like(label, goal))
    both = torch.cat([clean, adversarial])
    with torch.no_grad():
        probabilities = {route: model_of(route)(both).float().softmax(dim=1).cpu() for route in routes}
    return AttackedImage(pixels, attack.in_pixels(adversarial)[0], label.item(), goal, probabilities)


def _towards(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # An attack without a random target raises its loss.
    return -cross_entropy(logits, target)
