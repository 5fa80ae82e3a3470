"""Accuracy of a model on a data set, clean and under attack."""
import time
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch
import torch.distributed as dist
import torch.nn as nn
from timm.data.distributed_sampler import OrderedDistributedSampler

from ..output import duration
from ..regimes import PixelSource
from .interrupts import stop_if_asked
from .placement import Placement
from .progress import show_progress

__all__ = ['evaluate']


def evaluate(
        model: nn.Module,
        loader: Iterable,
        placement: Placement,
        *,
        attack: Optional[Callable[..., Tuple[torch.Tensor, torch.Tensor]]] = None,
        on_output: Optional[Callable[[str, torch.Tensor, torch.Tensor], Any]] = None,
        output_indices: Optional[torch.Tensor] = None,
        log_name: Optional[str] = 'Test',
        log_interval: int = 50,
) -> Dict[str, float]:
    """Evaluate a model in eval mode, on the route it is on.

    Args:
        model: Maps images [N, C, H, W] to logits [N, classes].
        loader: Yields images [N, C, H, W] and labels [N]; has a length where there are progress lines.
        placement: Where to evaluate, and in which precision; results are of all images of its processes, which hold a
            part of the data set each. Images that timm's sampler repeats to make the parts even count once.
        attack: Makes adversarial images, which are evaluated beside the clean ones.
        on_output: Called with the kind of images (`''` for clean ones, `'adv_'`), logits and labels of each batch.
        output_indices: Logits to keep, for labels of a part of the model's classes; an attack sees these alone.
        log_name: Name in the progress lines, None for no lines.
        log_interval: Batches between progress lines.

    Returns:
        `loss` (cross-entropy), `top1`, `top5` (in percent), and with an attack `adv_loss`, `adv_top1` and `adv_top5`.
    """
    if isinstance(attack, PixelSource):
        attack = attack.normalised_for(model)
    on_output = on_output or _pass_over
    model = _Logits(model, output_indices).eval()
    meters: Dict[str, _Meter] = OrderedDict((kind, _Meter()) for kind in ('', 'adv_')[:1 if attack is None else 2])
    start, num_batches, left = time.monotonic(), len(loader) if log_name else 0, _num_own_images(loader)  # pyright: ignore[reportArgumentType]
    with show_progress(log_name or '', num_batches, shown=log_name is not None) as progress:
        for batch_idx, (images, target) in enumerate(loader):
            images = placement.in_memory_format(placement.images(images))
            target = target.to(device=placement.device)
            for kind, output in _outputs(model, images, target, placement, attack).items():
                own = output[:left], target[:left]  # padding comes last
                meters[kind].update(*own)
                on_output(kind, *own)
            stop_if_asked()
            progress.advance()
            left = left and max(0, left - len(target))
            if log_name is not None and (batch_idx == num_batches - 1 or batch_idx % log_interval == 0):
                values = '  '.join(f'{name}: {value:.3f}' for name, value in _means(meters).items())
                eta = (time.monotonic() - start) / (batch_idx + 1) * (num_batches - batch_idx - 1)
                progress.tell(f'{log_name}: [{batch_idx:>4d}/{num_batches - 1}]', values, f'ETA {duration(eta)}',
                              last=batch_idx == num_batches - 1)
    return _means(meters, placement)


def _pass_over(kind: str, output: torch.Tensor, target: torch.Tensor) -> None:
    pass


def _outputs(model, images, target, placement, attack) -> Dict[str, torch.Tensor]:
    # Logits by the kind of images.
    with torch.inference_mode(), placement.autocast():
        outputs = {'': model(images)}
    if attack is not None:
        with placement.autocast():
            adversarial, _ = attack(model, images, target)
        with torch.inference_mode(), placement.autocast():
            outputs['adv_'] = model(adversarial)
    return outputs


class _Logits(nn.Module):
    # What of a model's output is compared with labels; a module, so that an attack can freeze what is below.
    def __init__(self, model: nn.Module, indices: Optional[torch.Tensor]):
        super().__init__()
        self.model, self.indices = model, indices

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.model(images)
        output = output[0] if isinstance(output, (tuple, list)) else output
        return output if self.indices is None else output[:, self.indices]


class _Meter:
    # Sums over images. What batches add stays on the device until it is asked for.
    def __init__(self):
        self.count, self.sums = 0, torch.zeros(3, dtype=torch.float64)
        self.waiting: List[torch.Tensor] = []

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        hits = output.topk(min(5, output.shape[1])).indices == target.unsqueeze(1)
        loss = nn.functional.cross_entropy(output.float(), target, reduction='none')
        self.waiting.append(torch.stack([loss, hits[:, 0], hits.any(dim=1)]))
        self.count += len(target)

    def totals(self) -> torch.Tensor:
        if self.waiting:
            self.sums += torch.cat(self.waiting, dim=1).cpu().double().sum(dim=1)
            self.waiting.clear()
        return torch.cat([self.sums, torch.tensor([float(self.count)], dtype=torch.float64)])


def _means(meters: Dict[str, _Meter], placement: Optional[Placement] = None) -> Dict[str, float]:
    # Of this process, or of all processes of a placement.
    totals = torch.stack([meter.totals() for meter in meters.values()])
    if placement is not None and placement.world_size > 1:
        totals = totals.to(placement.device)
        dist.all_reduce(totals)
    values = totals[:, :3] / totals[:, 3:] * totals.new_tensor([1, 100, 100])
    names = [kind + name for kind in meters for name in ('loss', 'top1', 'top5')]
    return OrderedDict(zip(names, values.flatten().tolist()))


def _num_own_images(loader: Iterable) -> Optional[int]:
    # Images of this process without those that timm's sampler adds to make the parts even; None where all are.
    sampler = getattr(loader, 'sampler', None)
    if not isinstance(sampler, OrderedDistributedSampler):
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))
