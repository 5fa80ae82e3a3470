"""AugMax, a source that asks the model which mixture of augmentations is hardest."""
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Optional, Tuple, Union

import torch
import torch.nn as nn

from ..attacks import Forward, Loss, cross_entropy, input_gradient
from ..norms import folded
from ..settings import setting
from .attack_loss import attack_loss_of
from .augmix import ChainSource, mixed
from .image_gradient import cheap_image_gradient
from .model_attack import frozen
from .source import Images

__all__ = ['AugMax']


@dataclass(frozen=True, kw_only=True)
class AugMax(ChainSource):
    """Mixes each image with a mixture of chains of augmentations, by weights that raise the model's loss.

    Wang et al., *AugMax: Adversarial Composition of Random Augmentations for Robust Training*, NeurIPS 2021,
    arXiv:2110.13771, Algorithm 1: the chains are those of AugMix; the weights of the chains, a softmax, and the weight
    of their mixture start at random and take steps up the sign of the loss's gradient. The authors' code stops with an
    image once it is misclassified, and adds a consistency loss; this does neither.

    The model is attacked as `Attack` does it: in eval mode with frozen parameters, on the route that it is on.

    Args:
        loss: Maps (logits, targets) to the loss to raise, see `Attack`.

    Raises:
        ValueError: A setting is out of its range.
    """
    steps: int = setting(5, 'steps of the weights', low=1)
    step_size: float = setting(0.1, 'size of a step of the weights', low=0)
    loss: Optional[Loss] = field(default=None, repr=False)

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Images:
        source = self.normalised_for(model)
        with torch.inference_mode(False), torch.enable_grad():  # autograd takes no tensors made in inference mode
            images, labels = (values.clone() if values.is_inference() else values for values in (images, target))
            chains = source.chains(images)
            with frozen(model), folded(model, images, self.steps), cheap_image_gradient(model):
                weights, share = self._hardest(model, images, chains, labels)
            return source.in_range_of(images, mixed(images, chains, weights, share)), target

    def _hardest(
            self,
            forward: Forward,
            images: torch.Tensor,
            chains: torch.Tensor,
            target: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        # Weights [N, width] and share [N] of the mixture.
        logits = torch.rand(chains.shape[:2], dtype=chains.dtype, device=chains.device)
        share = torch.rand(len(images), dtype=chains.dtype, device=chains.device)
        for _ in range(self.steps):
            logits, share = (values.detach().requires_grad_() for values in (logits, share))
            mixture = mixed(images, chains, logits.softmax(dim=1), share)
            of_images = input_gradient(
                forward, mixture.detach().to(images.dtype), target, self.loss or cross_entropy).to(mixture.dtype)
            gradients = torch.autograd.grad(mixture, (logits, share), of_images)
            steps = [self.step_size * gradient.sign() for gradient in gradients]  # 0 where an overflow made a NaN
            logits, share = logits.detach() + steps[0], (share.detach() + steps[1]).clamp(0, 1)
        return logits.softmax(dim=1), share

    def against(self, criterion: Union[nn.Module, Callable]) -> 'AugMax':
        return self if self.loss else replace(self, loss=attack_loss_of(criterion))

    def describe(self) -> str:
        return f'AugMax-{self.steps}, step size {self.step_size:g}, {self.describe_chains()}'

    def relative_cost(self) -> float:
        """Arithmetic relative to a vanilla step on the same images: a step is a forward and half a backward, 2/3."""
        return 2 / 3 * self.steps

    def facts(self) -> Dict[str, Any]:
        return dict(trained_on='augmax', **self.values())
