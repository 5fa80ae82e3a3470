"""Validation of a model while it is trained: clean images, and where that is asked for auxiliary norms and attacks."""
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Dict, Iterable, Optional

import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError, as_input_error
from ..norms import has_split_norm, norm_route
from ..regimes import Attack
from .class_scores import ClassCounts
from .datasets import DataConfig, channel_normalisation
from .evaluation import evaluate
from .placement import Placement
from .route_names import norm_route_of
from .run_settings import TrainSettings
from .seeding import seed_at, seed_generators
from .validation_settings import ValidationSettings, prefix_of_route

__all__ = ['EpochValidation']


@dataclass(frozen=True)
class EpochValidation:
    """Validates a model as the settings of its run say.

    Args:
        settings: What is validated.
        loader: Yields images [N, C, H, W] and labels [N].
        placement: Where, and in which precision.
        attack: The settings' attack, for the images of the loader.
        seed: Seed of the run: the random starts of an attack are the same in each epoch.
        log_interval: Batches between progress lines.
    """
    settings: ValidationSettings
    loader: Optional[Iterable]
    placement: Placement
    attack: Optional[Attack] = None
    seed: int = 0
    log_interval: int = 50

    @classmethod
    def of(
            cls,
            settings: TrainSettings,
            loader: Optional[Iterable],
            config: DataConfig,
            placement: Placement,
    ) -> 'EpochValidation':
        """That of a run.

        Args:
            settings: The run's settings.
            loader: Its validation images, None for none.
            config: How they are normalised.
            placement: Where the run is.
        """
        attack = settings.validation.attack
        attack = attack and attack.normalised_by(*channel_normalisation(config))
        return cls(settings.validation, loader, placement, attack, settings.loader.seed, settings.run.log_interval)

    def check(self, model: nn.Module) -> None:
        """Check that a model has the norms that shall be validated.

        Raises:
            InputError: It has not.
        """
        routes = self.settings.routes
        if routes and not has_split_norm(model):
            raise InputError(f'--val-routes {" ".join(routes)} needs auxiliary norms, {type(model).__name__} has none '
                             'in this regime: leave it out, or give --val-routes main over a recipe that has it.')
        for route in routes:
            with ExitStack() as entered:
                as_input_error(entered.enter_context, norm_route(model, norm_route_of(route)))

    def __call__(self, model: nn.Module, name: str, extras: bool) -> Dict[str, float]:
        """Validate a model that is on its main norms.

        Args:
            model: The model.
            name: Its name in progress lines.
            extras: Validate the auxiliary norms and attacked images that the settings name, too.

        Returns:
            `METRICS`, and with extras the same of `aux_…`, `aux2_…` and of `adv_…`, in percent but for losses.
        """
        metrics = self._measure(model, name, self.attack if extras else None)
        for route in self.settings.routes if extras else ():
            with norm_route(model, norm_route_of(route)):
                found = self._measure(model, f'{name}, {route}')
            metrics.update({f'{prefix_of_route(route)}_{metric}': value for metric, value in found.items()})
        return metrics

    def _measure(self, model: nn.Module, name: str, attack: Optional[Attack] = None) -> Dict[str, float]:
        assert self.loader is not None
        counts = {kind: ClassCounts(kind) for kind in ('', 'adv_')[:1 if attack is None else 2]}
        if attack is not None:
            model = model.module if isinstance(model, DistributedDataParallel) else model  # nothing to synchronise
            seed_generators(seed_at(self.seed, self.placement.rank), self.placement.device)
        metrics = evaluate(
            model, self.loader, self.placement, attack=attack,
            on_output=lambda kind, *batch: counts[kind].add(kind, *batch),
            log_name=name if self.placement.primary else None, log_interval=self.log_interval)
        for kind, count in counts.items():
            scores = count.scores(placement=self.placement)
            metrics.update({f'{kind}macro_f1': scores['f1_score'],
                            f'{kind}balanced_accuracy': scores['balanced_accuracy']})
        return metrics
