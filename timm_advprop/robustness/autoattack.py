"""AutoAttack on tensors: the accuracy that is left after four strong attacks, each on what withstood those before."""
import logging
import re
import sys
import time
from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from itertools import chain
from types import ModuleType
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

import torch
import torch.nn as nn
from tqdm import tqdm

from ..attacks import NORMS
from ..engine.interrupts import stop_if_asked
from ..errors import InputError
from ..output import duration
from ..regimes import frozen

__all__ = ['Batch', 'autoattack', 'check_library']

_logger = logging.getLogger(__name__)

_NORMS: Dict[str, str] = dict(zip(NORMS, ('Linf', 'L2')))
_MAX_TARGETS = 9  # of the standard version
_MIN_CLASSES = 4  # the targeted DLR loss compares with the third and the fourth logit
_MIN_SIZE_L2 = 5  # Square starts from five by five tiles in L2
_TOLERANCE = 1e-6  # of a perturbation's length up to 1, relative above: the library computes in float32
_CHECKS_DOC = 'https://github.com/fra31/auto-attack/blob/master/flags_doc.md'
_PROGRESS_SECONDS = 2.

Batch = Tuple[torch.Tensor, torch.Tensor]  # images [N, C, H, W] and labels [N]
Sample = Tuple[torch.Tensor, torch.Tensor]  # an image [C, H, W] and its label


def autoattack(
        model: nn.Module,
        batches: Iterable[Tuple[torch.Tensor, torch.Tensor]],
        *,
        eps: float,
        norm: str = 'linf',
        seed: int = 0,
        show_progress: bool = True,
) -> Dict[str, float]:
    """Evaluate a model by the standard version of AutoAttack (Croce and Hein, ICML 2020, arXiv:2003.01690).

    APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB (9 targets, or classes − 1) and Square (5,000
    queries), as the authors' code carries them out, which the package `pyautoattack` holds. Each attack meets the
    images that withstood those before it, so its accuracy tells what is left, not how strong it is alone. An
    adversarial image counts only where it lies in the ball and in 0–1 and the model, asked again, takes it for another
    class. What the library's own checks warn of is logged, once for each kind.

    The model is in eval mode meanwhile; its modes, parameters and their gradients and torch's random generators are
    afterwards as they were. Rightly classified images wait in memory: 0.6 MB each at 224 × 224 pixels.

    Args:
        model: Maps images [N, C, H, W] in 0–1, float32, to logits [N, classes], of at least 4 classes: see `routed`.
            Autocast is off meanwhile, as reduced precision hides gradients.
        batches: Yields images [N, C, H, W] in 0–1 and labels [N], on any device. The attacks' batches are as large as
            the first of them.
        eps: Largest size of a perturbation, in the units of images (4/255 for 4 pixels), above 0: of each value for
            `linf`, the length of the whole image's perturbation for `l2`.
        norm: `'linf'` or `'l2'`.
        seed: Seed of the attacks. On one device and with the same batches, results are the same.
        show_progress: Show a bar for each attack. Its time left is an upper bound: fooled images drop out.

    Returns:
        Accuracies in percent of all images: `top1` (clean), then `apgd_ce_top1`, `apgd_t_top1`, `fab_t_top1` and
        `square_top1`, what is left after each attack, and `aa_top1`, what is left in the end. And `images`, their
        number.

    Raises:
        InputError: `pyautoattack` is missing, a setting is out of range, there are no images, they are not in 0–1, too
            small, or of too few classes.
    """
    _check_settings(eps, norm)
    library, ball = _library(), _Ball(eps, norm)
    with _leaving_no_trace(model):
        first, batches = _peek(batches)
        forward = _Forward(model, first[0], show_progress)
        attacks = _standard_attacks(library, forward, ball, first, seed)
        left, num_images = _classified_rightly(forward, batches)
        counts = OrderedDict(top1=len(left))
        for attack in attacks:
            start = time.monotonic()
            left = _withstanding(attack, forward, ball, left, batch_size=len(first[0]))
            counts[f'{attack.name}_top1'] = len(left)
            _logger.info(f'AutoAttack: {100 * len(left) / num_images:.2f}% of {num_images} images withstood '
                         f'{attack.title}, {duration(time.monotonic() - start)}')
    counts['aa_top1'] = len(left)
    _warn_of_square(library, counts, num_images)
    return OrderedDict([*((name, 100 * count / num_images) for name, count in counts.items()), ('images', num_images)])


def _check_settings(eps: float, norm: str) -> None:
    if norm not in _NORMS:
        raise InputError(f'Unknown norm {norm!r}: give one of {", ".join(_NORMS)}.')
    if not 0 < eps < float('inf') or norm == 'linf' and eps > 1:
        raise InputError(f'eps is in the units of images in 0–1 and above 0, such as 4/255; got {eps}.')


def check_library() -> None:
    """Check that AutoAttack can be run.

    Raises:
        InputError: `pyautoattack` is missing.
    """
    _library()


def _library() -> ModuleType:
    try:
        import pyautoattack
        import pyautoattack.checks
    except ImportError as error:
        raise InputError(
            'AutoAttack needs the package pyautoattack: pip install \'timm-advprop[robustness]\'.') from error
    return pyautoattack


@contextmanager
def _leaving_no_trace(model: nn.Module) -> Iterator[None]:
    # FAB writes .grad of parameters that are not frozen; every attack seeds torch.
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        stack.enter_context(frozen(model))
        for device_type in {'cpu', *(parameter.device.type for parameter in model.parameters())}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def _peek(batches: Iterable[Batch]) -> Tuple[Batch, Iterator[Batch]]:
    batches = iter(batches)
    first = next(batches, None)
    if first is None or not len(first[0]):
        raise InputError('AutoAttack needs images, got none.')
    return first, chain([first], batches)


class _Ball(NamedTuple):
    # Where adversarial images may lie.
    eps: float
    norm: str

    def holds(self, adv: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        perturbation = (adv.double() - images.double()).flatten(1)
        length = perturbation.norm(dim=1, p=float('inf') if self.norm == 'linf' else 2)
        in_bounds = (adv.flatten(1) >= 0) & (adv.flatten(1) <= 1)
        return (length <= self.eps + _TOLERANCE * max(1., self.eps)) & in_bounds.all(dim=1)  # False of NaN


class _Forward:
    # The model as attacks ask it: each pass moves a progress bar.
    def __init__(self, model: nn.Module, images: torch.Tensor, show_progress: bool):
        self.model, self.show_progress = model, show_progress
        self.device = next((parameter.device for parameter in model.parameters()), images.device)
        self.bar, self.max_passes = None, 1  # for each image

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        stop_if_asked()
        if self.bar is not None:
            self.bar.update(len(images) / self.max_passes)
        return self.model(images)

    @torch.no_grad()
    def is_right(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.model(images).argmax(1) == labels

    def on_device(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        if not (images.min() >= 0 and images.max() <= 1):
            raise InputError(f'AutoAttack takes images in 0–1, got {images.min():g} to {images.max():g}: give them '
                             'without normalisation, and the model by timm_advprop.routed.')
        return images.to(self.device, torch.float32), labels.to(self.device)

    @contextmanager
    def progress(self, num_images: int, attack: '_Attack') -> Iterator[tqdm]:
        self.max_passes = attack.max_passes
        with tqdm(
                total=num_images, desc=attack.title, unit=' images', unit_scale=True, leave=False, mininterval=1,
                delay=_PROGRESS_SECONDS, disable=not self.show_progress,
        ) as self.bar:
            yield self.bar
        self.bar = None


class _Attack(NamedTuple):
    name: str
    title: str
    perturb: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    max_passes: int  # for each image; fewer where it falls early


def _standard_attacks(
        library: ModuleType,
        forward: _Forward,
        ball: _Ball,
        first: Batch,
        seed: int,
) -> Sequence[_Attack]:
    images, labels = forward.on_device(*first)
    num_classes = _num_classes(forward, images[:1], ball.norm)
    suite = library.AutoAttack(forward, eps=ball.eps, norm=_NORMS[ball.norm], seed=seed, device=forward.device)
    num_targets = suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = min(_MAX_TARGETS, num_classes - 1)
    suite.fab.targeted = True
    suite.apgd.logger = suite.apgd_targeted.logger = said = _Warnings(library)
    with torch.no_grad():
        library.checks.check_randomized(forward, images, labels, logger=said)
        library.checks.check_range_output(forward, images, logger=said)
        _check_dynamic(library, forward, images[:1], said)
    return (
        _Attack('apgd_ce', 'APGD-CE', suite.apgd.perturb, 102),
        _Attack('apgd_t', 'APGD-T', suite.apgd_targeted.perturb, 1 + 102 * num_targets),
        _Attack('fab_t', 'FAB-T', suite.fab.perturb, 1 + 203 * num_targets),
        _Attack('square', 'Square', suite.square.perturb, 5003),
    )


@torch.no_grad()
def _num_classes(forward: _Forward, images: torch.Tensor, norm: str) -> int:
    num_classes = forward(images).shape[1]
    if num_classes < _MIN_CLASSES:
        raise InputError(f'AutoAttack\'s targeted DLR loss needs at least {_MIN_CLASSES} classes, the model has '
                         f'{num_classes}: evaluate it by a PGD of many steps, timm_advprop.Attack.')
    if norm == 'l2' and min(images.shape[2:]) < _MIN_SIZE_L2:
        raise InputError(f'AutoAttack in L2 needs images of at least {_MIN_SIZE_L2} × {_MIN_SIZE_L2} pixels, got '
                         f'{" × ".join(map(str, images.shape[2:]))}.')
    return num_classes


def _check_dynamic(library: ModuleType, forward: _Forward, images: torch.Tensor, said: '_Warnings') -> None:
    # The library counts calls by a trace function, and puts back neither its counts nor the trace of a debugger.
    tracer, counts = sys.gettrace(), library.checks.funcs
    counts.update(dict.fromkeys(counts, 0))
    try:
        library.checks.check_dynamic(forward, images, logger=said)
    finally:
        sys.settrace(tracer)


class _Warnings:
    # A logger for the library's checks, some of which are made for each batch.
    def __init__(self, library: ModuleType):
        self.library, self.said = library, set()

    def warning(self, message: str) -> None:
        kind = re.sub(r'[\d.]+', '', message)
        if kind not in self.said:
            self.said.add(kind)
            _logger.warning(f'AutoAttack: {message.replace(self.library.checks.checks_doc_path, _CHECKS_DOC)}')


def _warn_of_square(library: ModuleType, counts: Mapping[str, int], num_images: int) -> None:
    # an attack without gradients that finds more than those with them: these were misled
    accuracies = {name.removesuffix('_top1'): count / num_images for name, count in counts.items() if name != 'aa_top1'}
    library.checks.check_square_sr(accuracies, logger=_Warnings(library))


def _classified_rightly(forward: _Forward, batches: Iterable[Batch]) -> Tuple[List[Sample], int]:
    right, num_images = [], 0
    for images, labels in batches:
        images, labels = forward.on_device(images, labels)
        keep = forward.is_right(images, labels)
        right.extend(zip(images[keep].cpu(), labels[keep].cpu()))
        num_images += len(labels)
    return right, num_images


def _withstanding(
        attack: _Attack,
        forward: _Forward,
        ball: _Ball,
        samples: Sequence[Sample],
        batch_size: int,
) -> List[Sample]:
    withstanding, num_outside = [], 0
    with forward.progress(len(samples), attack) as bar:
        for start in range(0, len(samples), batch_size):
            batch = samples[start:start + batch_size]
            images, labels = (torch.stack(values).to(forward.device) for values in zip(*batch))
            adv = attack.perturb(images.clone(), labels.clone())
            wrong, inside = ~forward.is_right(adv, labels), ball.holds(adv, images)
            withstanding += [sample for sample, fooled in zip(batch, (wrong & inside).tolist()) if not fooled]
            num_outside += int((wrong & ~inside).sum())
            bar.update(start + len(batch) - bar.n)
    if num_outside:
        _logger.warning(f'AutoAttack: {num_outside} images of {attack.title} leave the ball or 0–1 and do not count.')
    return withstanding
