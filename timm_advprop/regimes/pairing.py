"""Losses between routes: what the model says of two images of the same content shall agree."""
import math
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F

from ..attacks import widened
from ..errors import InputError
from .attack_loss import attack_loss_of
from .source import Source

__all__ = ['PAIRINGS', 'Pairing', 'PairingLoss', 'alp', 'distributions', 'js', 'kl', 'pairing_of']

PairingLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def alp(main_logits: torch.Tensor, aux_logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Adversarial logit pairing: the mean squared difference of logits.

    Kannan et al., *Adversarial Logit Pairing*, 2018, arXiv:1803.06373. The mean is over images and classes, as in the
    authors' code (tensorflow/models, adversarial_logit_pairing).

    Args:
        main_logits: Logits of clean images through the main norms, [N, classes].
        aux_logits: Logits of other images of the same content, [N, classes].
        target: Not used.

    Returns:
        A scalar, at least 0. Gradients flow into both logits.
    """
    return F.mse_loss(aux_logits, main_logits)


def kl(main_logits: torch.Tensor, aux_logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(p_main ‖ p_aux), the mean over images.

    Zhang et al., *Theoretically Principled Trade-off between Robustness and Accuracy* (TRADES), ICML 2019,
    arXiv:1901.08573.

    Args:
        main_logits: Logits of clean images through the main norms, [N, classes], or [N, classes, answers], where each
            class has answers of its own.
        aux_logits: Logits of other images of the same content, of the same shape.
        target: Not used.

    Returns:
        A scalar, at least 0. Gradients flow into both logits.
    """
    return _kl(main_logits.log_softmax(-1), aux_logits.log_softmax(-1))


def js(main_logits: torch.Tensor, aux_logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The Jensen–Shannon divergence of p_main and p_aux, the mean over images.

    Hendrycks et al., *AugMix*, ICLR 2020, arXiv:1912.02781, of two kinds of images in place of three.

    Args:
        main_logits: As in `kl`.
        aux_logits: As in `kl`.
        target: Not used.

    Returns:
        A scalar, from 0 to log 2 (for each class where each has answers of its own). Gradients flow into both logits.
    """
    log_main, log_aux = main_logits.log_softmax(-1), aux_logits.log_softmax(-1)
    log_mean = torch.logaddexp(log_main, log_aux) - math.log(2)
    return (_kl(log_main, log_mean) + _kl(log_aux, log_mean)) / 2


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return F.kl_div(log_q, log_p, reduction='sum', log_target=True) / len(log_p)


# With the weights that their papers' code gives them: ALP's on ImageNet, TRADES' and AugMix' on CIFAR-10.
PAIRINGS: Dict[str, Tuple[PairingLoss, float]] = {'alp': (alp, 0.5), 'kl': (kl, 6.), 'js': (js, 12.)}
_OF_PROBABILITIES = (kl, js)


def distributions(logits: torch.Tensor, target: torch.Tensor, criterion: Callable) -> torch.Tensor:
    """Logits whose softmax along the last dimension is what the model says, in float32 or wider.

    Labels [N] name one class of several. Otherwise, where the criterion is not of a softmax (see `attack_loss_of`),
    each class is a question of its own (several labels, a single logit), and its probability a sigmoid: the softmax of
    its logit and 0.

    Args:
        logits: Logits [N, classes].
        target: Labels [N], or class weights [N, classes].
        criterion: The loss of the model's training.

    Returns:
        Logits [N, classes], or [N, classes, 2].

    Raises:
        InputError: The softmax is of a single logit, which is 1 for every image.
    """
    logits = _wide(logits)
    if (target.ndim > 1 or logits.shape[1] == 1) and attack_loss_of(criterion) is not None:
        return torch.stack([logits, torch.zeros_like(logits)], dim=-1)
    if logits.shape[1] < 2:
        raise InputError('The softmax of a single logit says the same of every image: train with a binary loss '
                         '(--bce-loss), or pair logits (alp).')
    return logits


class Pairing:
    """The term of a loss that pairs the logits of clean images with those of sources that show them, too.

    Args:
        loss: Maps (main_logits, aux_logits, target) to a scalar. `kl` and `js` get `distributions`.
        weight: Its weight, at least 0.
        parts: The sources that take part, by their place among a step's outputs.
        name: What it is called.
    """

    def __init__(self, loss: PairingLoss, weight: float, parts: Sequence[int], name: str):
        self.loss, self.weight, self.parts, self.name = loss, weight, tuple(parts), name

    def describe(self) -> str:
        """Name and weight, as the tail of a task's description."""
        return f', pairing {self.name} × {self.weight:g}'

    def added_to(
            self,
            result: Mapping[str, Any],
            outputs: Sequence[torch.Tensor],
            target: torch.Tensor,
            criterion: Callable,
    ) -> Dict[str, Any]:
        """A step's result with the pairing in its `'loss'`, and as `'pairing_loss'` (detached, without the weight).

        Args:
            result: The result so far.
            outputs: Logits [N, classes] of clean images, then of each source's.
            target: Target of the clean images.
            criterion: The loss of the model's training.
        """
        as_asked = distributions if self.loss in _OF_PROBABILITIES else _wide
        main, *others = (as_asked(outputs[i], target, criterion) for i in (0, *self.parts))
        term: Any = sum(self.loss(main, other, target) for other in others)
        return dict(result, loss=result['loss'] + self.weight * term, pairing_loss=term.detach())


def _wide(logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return widened(logits)


def pairing_of(
        pairing: Optional[Union[str, PairingLoss]],
        weight: Optional[float],
        sources: Sequence[Source],
) -> Optional[Pairing]:
    """The pairing that was asked for, with every source that shows the clean images; None for none.

    Args:
        pairing: A name in `PAIRINGS`, a function of (main_logits, aux_logits, target) to a scalar, or None.
        weight: Its weight, at least 0; None for the name's own, and 1 for a function.
        sources: The sources of a task, in the order of its outputs.

    Raises:
        ValueError: The name is unknown, the weight out of range or without a pairing, or no source shows the clean
            images.
    """
    if pairing is None:
        if weight is not None:
            raise ValueError('pairing_weight (--adv-pairing-weight) is the weight of a pairing: say of which '
                             '(--adv-pairing).')
        return None
    if not callable(pairing) and pairing not in PAIRINGS:
        raise ValueError(f'Unknown pairing {pairing!r}: give one of {", ".join(PAIRINGS)}.')
    loss, usual = (pairing, 1.) if callable(pairing) else PAIRINGS[pairing]
    weight = usual if weight is None else float(weight)
    if not 0 <= weight < float('inf'):
        raise ValueError(f'pairing_weight (--adv-pairing-weight) must be at least 0, got {weight}.')
    parts = [i for i, source in enumerate(sources, 1) if source.shows_clean_images]
    if not parts:
        made = ', '.join(source.describe() for source in sources)
        raise ValueError('A pairing (--adv-pairing) compares clean images with others that show the same, which is not '
                         f'known of {made}: leave it out, or set the source\'s shows_clean_images.')
    name = getattr(loss, '__name__', type(loss).__name__) if callable(pairing) else pairing
    return Pairing(loss, weight, parts, name)
