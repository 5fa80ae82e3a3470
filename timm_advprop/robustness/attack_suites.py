"""Suites of attacks on the validation split, through the route that is evaluated."""
from dataclasses import replace
from functools import partial
from typing import Iterator, List, Optional, Sequence

import torch

from ..engine.bad_images import explained_data_loss
from ..engine.datasets import channel_normalisation, dataset_name
from ..engine.eval_settings import EvalSettings
from ..engine.tested_model import TestedModel
from ..engine.validation import measure, open_test_images, read_valid_labels
from ..errors import InputError
from ..output import without_folders
from ..regimes import Attack
from .autoattack import Batch, autoattack, check_library
from .cells import QUIET_BATCHES, Cell, Measured
from .routed import routed

__all__ = ['attack_cells', 'autoattack_cells']

# Rows of AutoAttack: what is left after each attack, on what withstood those before it.
_AFTER = {'apgd-ce': 'apgd_ce_top1', 'apgd-t': 'apgd_t_top1', 'fab-t': 'fab_t_top1', 'square': 'square_top1',
          'total': 'aa_top1'}
STRENGTHS = (1., 2., 4., 8.)  # of a curve, in pixels, where none are given


def attack_cells(settings: EvalSettings, folder: str) -> List[Cell]:
    """The attack of the flags at several strengths."""
    strengths = settings.attack.strengths
    if 'adv_eps' not in settings.attack.given:
        strengths = [replace(strengths[0], eps_px=eps_px) for eps_px in STRENGTHS]
    batches = f'batches of {settings.loader.batch_size}'  # an attack by their statistics depends on them
    return [Cell('attacks', partial(_measure_attack, attack=attack), attack.kind, attack.eps_px,
                 about=repr(attack) if attack.norm_stats == 'eval' else f'{attack!r}, {batches}')
            for attack in strengths]


def autoattack_cells(settings: EvalSettings, folder: str) -> List[Cell]:
    """AutoAttack (Croce & Hein, ICML 2020), its standard version.

    Raises:
        InputError: `pyautoattack` is missing, or settings do not go with it.
    """
    check_library()
    if settings.device.model_dtype not in (None, 'float32'):
        raise InputError('Suite autoattack needs --model-dtype float32: reduced precision hides gradients.')
    if settings.data.real_labels:
        raise InputError('Suite autoattack goes by the labels of the data set: leave out --real-labels.')
    return [Cell('autoattack', partial(_measure_autoattack, attack=attack), '', attack.eps_px, about=attack.norm)
            for attack in settings.attack.strengths]


def _measure_attack(tested: TestedModel, attack: Attack) -> Measured:
    data = replace(tested.settings.data, metrics_avg=None)  # whose scores are of clean images
    results = measure(tested, data, attack=attack, quiet_batches=QUIET_BATCHES)
    accuracies = {name: results.pop(f'adv_{name}') for name in ('top1', 'top5')}
    errors = {f'{name}_err': round(100 - value, 4) for name, value in accuracies.items()}
    return [{**results, **accuracies, **errors}]


def _measure_autoattack(tested: TestedModel, attack: Attack) -> Measured:
    attack = attack.normalised_by(*channel_normalisation(tested.config))
    classes = read_valid_labels(tested.settings.data, tested.num_classes)
    model = routed(
        tested.model, tested.route, attack.mean, attack.std,
        output_indices=None if classes is None else torch.tensor(classes, device=tested.placement.device))
    found = autoattack(
        model, _pixel_batches(tested, attack, classes), eps=attack.eps_px / 255, norm=attack.norm,
        seed=tested.settings.loader.seed)
    data = tested.settings.data
    of_set = dict(
        adv_attack=f'AutoAttack, {attack.norm}, eps {attack.eps_px:g}/255', num_images=found['images'],
        param_count=tested.param_count, img_size=tested.config['input_size'][-1], crop_pct=tested.config['crop_pct'],
        interpolation=tested.config['interpolation'], dataset=dataset_name(data),
        split=without_folders(data.split))
    return [dict(condition=condition, top1=round(found[name], 4), top1_err=round(100 - found[name], 4), **of_set)
            for condition, name in _AFTER.items()]


def _pixel_batches(tested: TestedModel, attack: Attack, classes: Optional[Sequence[int]]) -> Iterator[Batch]:
    # Images of the split in 0–1, as the loader delivers them but not normalised.
    _, loader = open_test_images(tested, tested.settings.data, classes=classes)
    with explained_data_loss():
        for images, target in loader:
            yield attack.in_pixels(images.cpu()), target
