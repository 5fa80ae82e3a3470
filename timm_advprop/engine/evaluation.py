"""Accuracy of a model on a data set, clean and under attack."""
import logging
import time
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, Optional

import torch
import torch.nn as nn
from timm.utils import AverageMeter, accuracy, reduce_tensor

from ..output import duration
from ..regimes import Source
from .placement import Placement

__all__ = ['evaluate']

_logger = logging.getLogger(__name__)


def evaluate(
        model: nn.Module,
        loader: Iterable,
        placement: Placement,
        *,
        attack: Optional[Source] = None,
        on_output: Optional[Callable[[torch.Tensor, torch.Tensor], Any]] = None,
        output_indices: Optional[torch.Tensor] = None,
        log_name: Optional[str] = 'Test',
        log_interval: int = 50,
) -> Dict[str, float]:
    """Evaluate a model in eval mode, on the route it is on.

    Args:
        model: Maps images [N, C, H, W] to logits [N, classes].
        loader: Yields images [N, C, H, W] and labels [N].
        placement: Where to evaluate, and in which precision; results are averaged over its processes, which hold a part
            of the data set each.
        attack: Makes adversarial images, which are evaluated beside the clean ones.
        on_output: Called with the clean logits and labels of each batch.
        output_indices: Logits to keep, for labels of a part of the model's classes.
        log_name: Name in the progress lines, None for no lines.
        log_interval: Batches between progress lines.

    Returns:
        `loss` (cross-entropy), `top1`, `top5` (in percent), and with an attack `adv_loss`, `adv_top1` and `adv_top5`.
    """
    meters = _Meters(placement)
    model.eval()
    start, num_batches = time.monotonic(), len(loader)
    for batch_idx, (images, target) in enumerate(loader):
        images = placement.in_memory_format(placement.images(images))
        target = target.to(device=placement.device)
        output = _predict(model, images, placement, output_indices)
        meters.update('', output, target)
        if on_output is not None:
            on_output(output, target)
        if attack is not None:
            with placement.autocast():
                adversarial, _ = attack(model, images, target)
            meters.update('adv_', _predict(model, adversarial, placement, output_indices), target)
        if log_name is not None and (batch_idx == num_batches - 1 or batch_idx % log_interval == 0):
            left = (time.monotonic() - start) / (batch_idx + 1) * (num_batches - batch_idx - 1)
            _logger.info(f'{log_name}: [{batch_idx:>4d}/{num_batches - 1}]  {meters}  ETA {duration(left)}')
    return meters.averages()


class _Meters:
    # Averages of the loss and the accuracies, over batches and processes.
    def __init__(self, placement: Placement):
        self.placement = placement
        self.meters: Dict[str, AverageMeter] = OrderedDict()

    def update(self, prefix: str, output: torch.Tensor, target: torch.Tensor) -> None:
        top1, top5 = accuracy(output, target, topk=(1, 5))
        loss = nn.functional.cross_entropy(output, target)
        for name, value in (('loss', loss), ('top1', top1), ('top5', top5)):
            if self.placement.world_size > 1:
                value = reduce_tensor(value, self.placement.world_size)
            self.meters.setdefault(prefix + name, AverageMeter()).update(value.item(), output.shape[0])

    def averages(self) -> Dict[str, float]:
        return OrderedDict((name, meter.avg) for name, meter in self.meters.items())

    def __str__(self) -> str:
        return '  '.join(f'{name}: {meter.avg:.3f}' for name, meter in self.meters.items())


def _predict(model, images, placement, output_indices) -> torch.Tensor:
    with torch.inference_mode(), placement.autocast():
        output = model(images)
    output = output[0] if isinstance(output, (tuple, list)) else output
    return output if output_indices is None else output[:, output_indices]
