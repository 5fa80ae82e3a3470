"""The training program: `train.py`, `timm-advprop-train`, `python -m timm_advprop.train`."""
import json
import logging
import os
import sys
from typing import Optional, Sequence

import torch
from timm.utils.distributed import world_info_from_env

from ..engine.plan import plan_run
from ..engine.run_settings import TrainSettings
from ..engine.training import train
from ..errors import InputError, exits_on_input_error
from ..hub import check_can_push, push_to_hub
from .parser import ProgramParser, parse_settings, read_recipe, settings_parser, setup_logging
from .recipes import find_recipe, images_per_update

__all__ = ['create_parser', 'main', 'parse_args']

_logger = logging.getLogger(__name__)

_DESCRIPTION = 'Train a timm model, with AdvProp or without.'
_REFUSED = {
    'NaFlex models are not in the zoo': (
        'naflex-loader', 'naflex-train-seq-lens', 'naflex-max-seq-len', 'naflex-patch-sizes',
        'naflex-patch-size-probs', 'naflex-loss-scale', 'naflex-patchify-channels-first',
    ),
    'distillation is a regime of its own, which cannot be combined with AdvProp here': (
        'kd-model-name', 'kd-distill-type', 'kd-loss-type', 'distill-loss-weight', 'task-loss-weight',
        'kd-temperature', 'kd-student-feature-dim', 'kd-teacher-feature-dim', 'kd-token-distill-type',
    ),
    'a scripted model has only its main route; use --torchcompile': ('torchscript',),
    'the fusers belong to TorchScript; use --torchcompile': ('fuser',),
    'timm\'s loaders do not repeat images, so it would average different ones': ('tta',),
    'scheduled resolutions are not built in; use timm\'s script through python -m timm_advprop.wrap': (
        'train-img-sizes', 'train-batch-sizes', 'train-size-probs', 'train-size-schedule',
        'train-size-schedule-spread', 'train-size-random-mix', 'train-batches-per-epoch', 'train-steps-per-epoch',
        'variable-batch-loss-scale',
    ),
}


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the training program."""
    setup_logging()
    settings = parse_args(argv)
    repo_id = settings.run.push_to_hub
    if repo_id and world_info_from_env()[1] == 0:  # what would spoil the end is told at the start
        check_can_push(repo_id, must_reach=False)
    try:
        _warn_of_batch(settings)
        if settings.run.dry_run:
            return _print_plan(settings)
        run = train(settings)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if run.primary:
        print(f'--result\n{json.dumps(run.results, indent=4)}')
    if run.stopped_by is not None:
        sys.exit(128 + run.stopped_by)
    if run.primary and repo_id:
        _publish_best(repo_id, run.folder, settings.run.hub_private)  # pyright: ignore[reportArgumentType]


def parse_args(argv: Optional[Sequence[str]] = None) -> TrainSettings:
    """Parse the command line and its YAML recipe.

    Raises:
        InputError: The recipe or a combination of flags is wrong.
    """
    return parse_settings(TrainSettings, _DESCRIPTION, _REFUSED, argv, takes_recipe=True)


def create_parser() -> ProgramParser:
    """The training program's parser."""
    return settings_parser(TrainSettings, _DESCRIPTION, _REFUSED, takes_recipe=True)


def _print_plan(settings: TrainSettings) -> None:
    plan = plan_run(settings)
    if plan is not None:
        print(f'--plan\n{plan}')


def _warn_of_batch(settings: TrainSettings) -> None:
    # A recipe's rate, or the statistics of its norms, may be of another batch.
    config, loader = settings.given.get('config'), settings.loader
    _, rank, processes = world_info_from_env()
    if not config or rank:
        return
    path = find_recipe(config)
    if not os.path.isfile(path):  # a pipe, which can be read once
        return
    stated = images_per_update(path, read_recipe(path))
    images = loader.batch_size * loader.grad_accum_steps * processes
    if stated in (None, images):
        return
    follows = 'does not follow: --lr is given' if settings.optimizer.lr is not None else 'follows'
    _logger.warning(f'{images:,} images for an update, where {config} has {stated:,} (--batch-size, '
                    f'--grad-accum-steps, processes): the rate {follows}.')


def _publish_best(repo_id: str, folder: str, private: bool) -> None:
    checkpoint = os.path.join(folder, 'model_best.pth.tar')
    try:
        url = push_to_hub(checkpoint, repo_id, private=private or None)
    except InputError as error:
        raise InputError(f'{error} The run is safe: python -m timm_advprop.hub push {checkpoint} {repo_id}') from None
    print(f'Published {repo_id}: {url}')
