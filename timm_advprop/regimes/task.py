"""What the tasks of all regimes share, and what each regime says of itself."""
import logging
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type, Union

import torch
import torch.nn as nn
from timm.task import ClassificationTask
from torch.nn.parallel import DistributedDataParallel

from ..norms import has_split_norm, num_aux_norms, set_norm_route, train_aux, unsplit_batch_norms
from .attack import Attack
from .matched_masks import match_masks
from .pixels import PixelSource
from .regime_settings import RegimeSettings
from .source import Source

__all__ = [
    'MadeImages', 'NO_AUX_NORMS', 'RegimeTask', 'check_weight', 'one_attack', 'one_source', 'part_metrics', 'top1',
    'use_main_norms', 'use_split_norms',
]

_logger = logging.getLogger(__name__)

NO_AUX_NORMS = {  # what a regime of one norm has no use for
    **dict.fromkeys(('adv_bn_momentum', 'adv_share'), 'it has no auxiliary norms'),
    'split_bn': 'its images share one norm',
}
# Graphs of one kind of pass: for the first size of a batch, for any size, and on a CPU for fewer than 16 images, for
# which torch chooses other convolutions.
_GRAPHS_OF_A_PASS = 3
# The training step, a clean pass of its own (TRADES), evaluation, evaluation under attack, and both of the average.
_PASSES_OF_MAIN = 6
_PASSES_OF_AUX = 3  # of each auxiliary norm: the attack, evaluation, that of the average


class MadeImages(NamedTuple):
    """Images, and what a source made of each.

    Args:
        source: The source.
        images: Images [N, C, H, W], normalised.
        made: What it made of them [N, C, H, W].
    """
    source: PixelSource
    images: torch.Tensor
    made: torch.Tensor

    def in_pixels(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """Both as pixels in 0–1."""
        return self.source.in_pixels(self.images), self.source.in_pixels(self.made)

    def size_px(self) -> float:
        """Mean absolute difference, in 0–255 pixels."""
        images, made = self.in_pixels()
        return 255 * (made - images).abs().mean().item()


class RegimeTask(ClassificationTask):
    """A `timm.task.ClassificationTask` of a regime. Everything that programs need to know of a regime is said here.

    Attributes:
        name: The regime's name on the command line.
        default_attack: Its attack, where nothing else is asked for.
        default_weight: Weight of the losses of generated images.
        default_budget: `'epochs'`, or `'vanilla'` where `--epochs` counts epochs of vanilla training.
        smallest_batch: Fewest images in a batch.
        splits_plain_models: A plain model is given auxiliary norms where the regime has sources for them.
        takes_scripted: It trains a scripted model, too, which has its main route alone.
        no_use_for: Flags that it has no use for, such as `adv_steps`, and why, '' where that is clear.
        keeps_images: Keep what was made of the images of the last batch, for pictures: set by whoever wants it.
        made_images: What was made of them, None where nothing was or nothing is kept.

    Args:
        model: The model to train.
        criterion: Maps (logits, targets) to a scalar. Cross-entropy by default.
        device: Device of the task.
        dtype: Type of the task.
        verbose: Log what the task does and costs.
        criterion_kwargs: Arguments of timm's `create_classification_loss` where `criterion` is None (timm ≥ 1.0.31).
    """
    name = ''
    default_attack = Attack()
    default_weight = 1.
    default_budget = 'epochs'
    smallest_batch = 1
    splits_plain_models = True
    takes_scripted = False
    no_use_for: Mapping[str, str] = {}
    keeps_images = False
    made_images: Optional[MadeImages] = None
    if TYPE_CHECKING:  # a task of classification has one
        trainable_module: nn.Module
        def get_trainable_module(self, ema: bool = False) -> nn.Module: ...
        def get_eval_model(self, ema: bool = False) -> nn.Module: ...

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            *,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
            criterion_kwargs: Optional[Dict[str, Any]] = None,
    ):
        if criterion is None and criterion_kwargs is None:
            criterion = nn.CrossEntropyLoss()
        loss_kwargs = dict(criterion_kwargs=criterion_kwargs) if criterion_kwargs is not None else {}
        super().__init__(model, criterion, device=device, dtype=dtype, verbose=verbose, **loss_kwargs)
        match_masks(model, 1)  # of an earlier task

    @classmethod
    def arguments(cls, settings: RegimeSettings) -> Dict[str, Any]:
        """Keyword arguments of the task for what was asked for.

        Raises:
            ValueError: A setting is out of range.
        """
        raise NotImplementedError

    @classmethod
    def sources_of_aux_norms(cls, settings: RegimeSettings) -> Sequence[Source]:
        """The source of each auxiliary norm for what was asked for: their number is that of auxiliary norms."""
        return ()

    @classmethod
    def check(cls, settings: RegimeSettings) -> None:
        """Check that the regime has a use for all that was asked for.

        Raises:
            ValueError: It has not; the message names the flag.
        """
        for flag in sorted(settings.given & cls.no_use_for.keys()):
            why = cls.no_use_for[flag] and f' ({cls.no_use_for[flag]})'
            advice = 'leave it out' + ('' if settings.regime else ', or name another regime with --regime')
            raise ValueError(f'Regime {cls.name} has no use for --{flag.replace("_", "-")}{why}: {advice}.')
        if settings.bn_momentum is not None and settings.share not in (None, 'none'):
            raise ValueError(f'--adv-share {settings.share} leaves no statistics to the auxiliary norms that '
                             '--adv-bn-momentum could be of: leave one of them out.')

    def compile(self, backend: str = 'inductor', mode: Optional[str] = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the model; graphs of all routes find room.

        Args:
            backend: Backend of `torch.compile`.
            mode: Mode of `torch.compile`.
            **compile_kwargs: Further arguments of `torch.compile`.
        """
        num_passes = _PASSES_OF_MAIN + _PASSES_OF_AUX * num_aux_norms(self.trainable_module)
        _make_room_for_graphs(num_passes * _GRAPHS_OF_A_PASS)
        return super().compile(backend=backend, mode=mode, **compile_kwargs)

    @property
    def unwrapped_module(self) -> nn.Module:
        """The model without DDP: an attack's passes are no training passes, there is nothing to synchronise."""
        module = self.trainable_module
        return module.module if isinstance(module, DistributedDataParallel) else module

    def keep_made(self, source: Source, images: torch.Tensor, made: torch.Tensor) -> None:
        """Keep what a source made of the images of a batch, if that is asked for and can be compared with them.

        Args:
            source: The source.
            images: Images [N, C, H, W], normalised.
            made: What it made of each [N, C, H, W].
        """
        if self.keeps_images and isinstance(source, PixelSource) and source.shows_clean_images:
            self.made_images = MadeImages(source, images.detach(), made.detach())

    def describe(self) -> str:
        """The regime and its attack."""
        raise NotImplementedError

    def relative_cost(self) -> float:
        """Arithmetic of a step relative to a vanilla step on the same number of images."""
        raise NotImplementedError

    def announce(self) -> None:
        """Log what the task does and costs."""
        if self.verbose:
            _logger.info(f'{self.describe()}: {self.relative_cost():.1f} × the arithmetic of vanilla')


def _make_room_for_graphs(num_graphs: int) -> None:
    # Past its limit, 8, dynamo would run further passes of the model in eager mode: each route is a graph of its own.
    config = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, num_graphs)  # torch 2.6's name of recompile_limit


def use_main_norms(model: nn.Module) -> None:
    """Let a model train as the plain one: images pass its main norms, auxiliary norms require no gradients.

    Args:
        model: Any model.
    """
    if has_split_norm(model):
        set_norm_route(model, 'main')
        train_aux(model, False)


def use_split_norms(model: nn.Module) -> None:
    """Let a model train its auxiliary norms beside its main norms.

    Args:
        model: Any model.

    Raises:
        ValueError: The model has no split norms, or batch norms beside them.
    """
    set_norm_route(model, 'main')  # raises where there are no split norms
    unsplit = list(unsplit_batch_norms(model))
    if unsplit:
        raise ValueError(f'{", ".join(unsplit[:3])} of {type(model).__name__} would mix clean and other images, as in '
                         'a head that came after the norms were split: call timm_advprop.convert_split_norm(model) '
                         'again, which splits the rest.')
    train_aux(model)


def one_attack(cls: Type[RegimeTask], settings: RegimeSettings) -> Attack:
    """The attack of a regime that takes one.

    Raises:
        ValueError: Several strengths were asked for.
    """
    attacks = settings.attacks(cls.default_attack)
    if len(attacks) > 1:
        raise ValueError(f'Regime {cls.name} takes one attack strength, got {list(settings.strengths)} (--adv-eps).')
    return attacks[0]


def one_source(cls: Type[RegimeTask], settings: RegimeSettings) -> Source:
    """The source of a regime that takes one: its attack, or what was asked for in place of it.

    Raises:
        ValueError: Several were asked for.
    """
    if not settings.named:
        return one_attack(cls, settings)
    sources = settings.sources(cls.default_attack)
    if len(sources) > 1:
        raise ValueError(f'Regime {cls.name} takes the images of one source, got '
                         f'{"; ".join(source.describe() for source in sources)} (--adv-source, --adv-eps).')
    return sources[0]


def check_weight(weight: Optional[float], default: float) -> float:
    """The weight of a loss, if it is one.

    Args:
        weight: The weight, at least 0; None for the default.
        default: The default.

    Raises:
        ValueError: It is not.
    """
    weight = default if weight is None else weight
    if not weight >= 0:
        raise ValueError(f'weight of the adversarial loss must be at least 0, got {weight}.')
    return float(weight)


def part_metrics(
        names: Sequence[str],
        losses: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        targets: Sequence[torch.Tensor],
) -> Dict[str, torch.Tensor]:
    """Losses and accuracies of the parts of a batch for the log; those of the same name are added and averaged.

    Args:
        names: Name of each part, such as `'clean'` and `'adv'`.
        losses: Loss of each part.
        outputs: Logits of each part, [N, classes].
        targets: Labels [N] of each part, or class weights [N, classes].

    Returns:
        `<name>_loss`, detached, and `<name>_top1` in percent.
    """
    parts: Dict[str, List[int]] = {}
    for i, name in enumerate(names):
        parts.setdefault(name, []).append(i)
    summed: Dict[str, Any] = {
        f'{name}_loss': sum(losses[i].detach() for i in members) for name, members in parts.items()}
    accuracies = {f'{name}_top1': torch.stack([top1(outputs[i], targets[i]) for i in members]).mean()
                  for name, members in parts.items()}
    return {**summed, **accuracies}


def top1(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Top-1 accuracy in percent, a scalar.

    Args:
        output: Logits [N, classes].
        target: Labels [N], or class weights [N, classes], of which the largest counts; of a single logit, 0 or 1.
    """
    if output.shape[1] == 1:
        return 100 * ((output > 0).flatten() == (target > 0.5).flatten()).float().mean()
    labels = target.argmax(dim=1) if target.ndim == 2 else target
    return 100 * (output.argmax(dim=1) == labels).float().mean()
