"""Accuracy of a model on a data set, clean and under attack."""
import logging
import time
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict, Iterable, Optional

import torch
import torch.nn as nn
from timm.utils import AverageMeter, accuracy, reduce_tensor

__all__ = ['evaluate']

_logger = logging.getLogger(__name__)


def evaluate(
        model: nn.Module,
        loader: Iterable,
        criterion: nn.Module,
        device: torch.device,
        *,
        dtype: Optional[torch.dtype] = None,
        autocast: Callable[[], ContextManager] = nullcontext,
        channels_last: bool = False,
        adversary: Optional[Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]] = None,
        world_size: int = 1,
        on_output: Optional[Callable[[torch.Tensor, torch.Tensor], Any]] = None,
        output_indices: Optional[torch.Tensor] = None,
        log_name: Optional[str] = 'Test',
        log_interval: int = 50,
) -> Dict[str, float]:
    """Evaluate a model in eval mode, on the route it is on.

    Args:
        model: Maps images [N, C, H, W] to logits [N, classes].
        loader: Yields images [N, C, H, W] and labels [N].
        criterion: Maps (logits, labels) to the mean loss of a batch.
        device: Where to evaluate.
        dtype: Type images are cast to, where the loader did not.
        autocast: Makes the context of each forward pass.
        channels_last: Send images in the channels-last memory format.
        adversary: Maps (model, images, labels) to adversarial images, which are evaluated beside the clean ones.
        world_size: Processes that hold a part of the data set each; results are averaged over them.
        on_output: Called with the clean logits and labels of each batch.
        output_indices: Logits to keep, for labels of a part of the model's classes.
        log_name: Name in the progress lines, None for no lines.
        log_interval: Batches between progress lines.

    Returns:
        `loss`, `top1`, `top5` (in percent), and with an adversary `adv_loss`, `adv_top1` and `adv_top5`.
    """
    meters: Dict[str, AverageMeter] = OrderedDict((name, AverageMeter()) for name in ('loss', 'top1', 'top5'))
    if adversary is not None:
        meters.update((f'adv_{name}', AverageMeter()) for name in ('loss', 'top1', 'top5'))

    def predict(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), autocast():
            output = model(images)
        output = output[0] if isinstance(output, (tuple, list)) else output
        return output if output_indices is None else output[:, output_indices]

    def update(prefix: str, output: torch.Tensor, target: torch.Tensor) -> None:
        top1, top5 = accuracy(output, target, topk=(1, 5))
        for name, value in (('loss', criterion(output, target)), ('top1', top1), ('top5', top5)):
            value = reduce_tensor(value, world_size) if world_size > 1 else value
            meters[prefix + name].update(value.item(), output.shape[0])

    model.eval()
    start = time.monotonic()
    num_batches = len(loader)
    for batch_idx, (images, target) in enumerate(loader):
        images, target = images.to(device=device, dtype=dtype), target.to(device=device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        output = predict(images)
        update('', output, target)
        if on_output is not None:
            on_output(output, target)
        if adversary is not None:
            with autocast():
                adversarial = adversary(model, images, target)
            update('adv_', predict(adversarial), target)
        last = batch_idx == num_batches - 1
        if log_name is not None and (last or batch_idx % log_interval == 0):
            _log_progress(log_name, batch_idx, num_batches, time.monotonic() - start, meters)
    return OrderedDict((name, meter.avg) for name, meter in meters.items())


def _log_progress(log_name, batch_idx, num_batches, elapsed, meters):
    left = elapsed / (batch_idx + 1) * (num_batches - batch_idx - 1)
    values = '  '.join(f'{name}: {meter.avg:.3f}' for name, meter in meters.items())
    _logger.info(f'{log_name}: [{batch_idx:>4d}/{num_batches - 1}]  {values}  ETA {left:.0f}s')
