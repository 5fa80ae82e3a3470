"""What is measured of a trained model: clean accuracy, accuracy under corruptions, and under attack by route."""
import statistics
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset, Subset

from timm_advprop.corruptions import GROUPS
from timm_advprop.engine.datasets import channel_normalisation
from timm_advprop.engine.evaluation import evaluate
from timm_advprop.engine.placement import Placement
from timm_advprop.norms import blend_routes, one_route
from timm_advprop.regimes import Attack
from timm_advprop.robustness import autoattack, routed

from ..trained import Trained, open_trained
from .corrupted import corrupted_images, evenly
from .rows import Row
from .scores import SCORES, calibration_error, ranking_score

__all__ = ['Measured', 'Measures', 'autoattacked', 'pgd_attacked']

Measured = Dict[str, float]
_BATCH_SIZE = 250


def pgd_attacked(eps: float, route: str) -> str:
    """Name of the accuracy under PGD: of its strength in pixels and the route, `'main'` or `'aux'`."""
    return f'pgd{eps:g}_{route}'


def autoattacked(route: str) -> str:
    """Name of the accuracy under AutoAttack."""
    return f'autoattack_{route}'


@dataclass(frozen=True)
class Measures:
    """What is measured. All numbers are in percent.

    Args:
        split: The split of the images.
        score: One of `SCORES`, for all accuracies.
        num_corrupted: Number of images to corrupt, 0 for none.
        num_attacked: Number of images to attack by PGD.
        strengths: Strengths of PGD in pixels.
        steps: Steps of PGD, an eighth of the strength each; untargeted, from a random start.
        num_autoattacked: Number of images to attack by AutoAttack.
        autoattack_eps: Its strength in pixels.
    """
    split: str = 'validation'
    score: str = 'top1'
    num_corrupted: int = 1000
    num_attacked: int = 1000
    strengths: Tuple[float, ...] = (2, 4, 8)
    steps: int = 20
    num_autoattacked: int = 0
    autoattack_eps: float = 8

    def describe(self) -> str:
        """What is measured, in sentences."""
        what = dict(top1='Top-1 accuracy', balanced='Balanced accuracy')[self.score]
        images = 'test images' if self.split == 'validation' else 'held-out images'
        parts = [f'{what} on all {images}, through the main norms where a column does not say aux; expected '
                 'calibration error (ECE, 15 bins)']
        if self.num_corrupted:
            parts.append(f'15 corruptions × 5 severities of {self.num_corrupted} of them')
        if self.num_attacked:
            parts.append(self.describe_pgd())
        if self.num_autoattacked:
            parts.append(f'AutoAttack (standard, eps {self.autoattack_eps:g}/255) on {self.num_autoattacked}')
        return '; '.join(parts) + '.'

    def describe_pgd(self) -> str:
        """The attack by PGD, and on how many images."""
        return f'PGD-{self.steps} (untargeted, random start, step eps/8) on {self.num_attacked}'

    def __call__(self, checkpoint: str, data: str, row: Row, placement: Placement) -> Dict[str, Measured]:
        """Measure a model and its blends.

        Args:
            checkpoint: Checkpoint of the training program.
            data: Folder of the data set.
            row: How it was trained.
            placement: Where to evaluate.

        Returns:
            By what is added to the row's name: `''` for the model itself, `', blend 0.5'` for a plain model between its
            routes. Of each `clean`, `ece` and, where there are two classes, `auc`; `clean_aux` through the auxiliary
            norms; `corruption` and `corruption_noise` and so on, and for each strength and route what `pgd_attacked`
            and `autoattacked` name.
        """
        trained = open_trained(checkpoint)
        routes = dict(main=0, aux=row.aux) if row.aux else dict(main=0)
        blends = {f', blend {weight:g}': blend_routes(trained.model, weight) for weight in row.blends}
        return {'': self._measure(trained, trained.model, data, routes, placement),
                **{name: self._measure(trained, blend, data, dict(main=0), placement)
                   for name, blend in blends.items()}}

    def _measure(
            self,
            trained: Trained,
            model: nn.Module,
            data: str,
            routes: Dict[str, int],
            placement: Placement,
    ) -> Measured:
        model, images = placement.place(model), trained.images(data, self.split)
        logits, labels = _logits(model, images, placement)
        results = dict(clean=SCORES[self.score](logits, labels), ece=calibration_error(logits, labels),
                       **ranking_score(logits, labels))
        if self.num_corrupted:
            results.update(self._corrupted(trained, model, data, placement))
        for name, route in routes.items():
            with one_route(model, route):
                if route:
                    results[f'clean_{name}'] = SCORES[self.score](*_logits(model, images, placement))
                results.update(self._attacked(trained, model, images, name, placement))
                if self.num_autoattacked:
                    results.update(self._autoattacked(trained, model, data, name, route, placement))
        return results

    def _corrupted(self, trained: Trained, model: nn.Module, data: str, placement: Placement) -> Measured:
        found = {name: SCORES[self.score](*_logits(model, images, placement))
                 for name, images in corrupted_images(trained, data, self.split, self.num_corrupted).items()}
        groups = {f'corruption_{group}': [found[name] for name in names if name in found]
                  for group, names in GROUPS.items()}
        means = {name: statistics.mean(values) for name, values in groups.items() if values}
        return dict(corruption=statistics.mean(found.values()), **means)

    def _attacked(
            self,
            trained: Trained,
            model: nn.Module,
            images: Dataset,
            route: str,
            placement: Placement,
    ) -> Measured:
        chosen = Subset(images, evenly(len(images), self.num_attacked))
        results = {}
        for eps in self.strengths if self.num_attacked else ():
            attack = Attack(eps_px=eps, alpha_px=eps / 8, steps=self.steps, target='none', random_start=1.)
            torch.manual_seed(0)
            results[pgd_attacked(eps, route)] = SCORES[self.score](*_logits(
                model, chosen, placement, attack.normalised_by(*channel_normalisation(trained.config))))
        return results

    def _autoattacked(
            self,
            trained: Trained,
            model: nn.Module,
            data: str,
            name: str,
            route: int,
            placement: Placement,
    ) -> Measured:
        pixels = trained.images(data, self.split, normalise=False)
        chosen = DataLoader(Subset(pixels, evenly(len(pixels), self.num_autoattacked)), _BATCH_SIZE)
        forward = routed(model, route, *channel_normalisation(trained.config))
        found = autoattack(forward, chosen, eps=self.autoattack_eps / 255, show_progress=False)
        return {autoattacked(name): found['aa_top1']}


def _logits(
        model: nn.Module,
        images: Dataset,
        placement: Placement,
        attack: Optional[Attack] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    # Of clean images, or where there is an attack of the adversarial ones.
    kept: List[Tuple[torch.Tensor, torch.Tensor]] = []
    wanted = 'adv_' if attack else ''

    def keep(kind: str, output: torch.Tensor, target: torch.Tensor) -> None:
        if kind == wanted:
            kept.append((output.float().cpu(), target.cpu()))
    evaluate(model, DataLoader(images, _BATCH_SIZE), placement, attack=attack, on_output=keep, log_name=None)
    return tuple(map(torch.cat, zip(*kept)))
