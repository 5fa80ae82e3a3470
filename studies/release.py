"""The study's best AdvProp model, published as a folder: `python -m studies.release`, in the root of the repository.

It is the one that was best on held-out images, of all strengths and seeds. The folder holds its plain weights, its
auxiliary norms and a card with what `validate.py` measures of both routes; beside it is a picture of test images that
one route gets right and the other wrong.
"""
import argparse
import os
from typing import Dict, List, NamedTuple, Optional, Sequence, Set

import torch
import torch.nn as nn

from timm_advprop.cli.hub import main as hub
from timm_advprop.cli.validate import main as validate
from timm_advprop.engine.figures import new_figure
from timm_advprop.errors import InputError, exits_on_input_error
from timm_advprop.norms import norm_route

from .comparison.job import Job
from .comparison.table import Table
from .fashion_mnist import STUDIES
from .trained import Trained, check_root, open_trained

__all__ = ['main']

_STUDY = STUDIES['fashion-mnist']
_ROWS = ('advprop-1', 'advprop-2', 'advprop-4')
_NAME = 'test_resnet_ap.fashion_mnist'
_SIZE = 7
_NUM_IMAGES = 10  # of each kind


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Choose, publish, measure and draw."""
    parser = argparse.ArgumentParser(prog='python -m studies.release', description=__doc__.splitlines()[0])
    parser.add_argument('--output', default='output/studies', metavar='DIR', help='folder of the study\'s runs')
    parser.add_argument('--results', default='results', metavar='DIR', help='folder of tables, and of the publication')
    args = parser.parse_args(argv)
    check_root('the release', 'train.py', _STUDY.recipe)
    job = _best(os.path.join(args.results, f'{_STUDY.file_name}.csv'), args.output)
    print(f'Best on held-out images: {job.title}.')
    checkpoint, folder = job.checkpoint(), os.path.join(args.results, _NAME)
    trained = open_trained(checkpoint)
    names = _class_names(trained, job.data)
    measured = os.path.join(args.output, f'{_NAME}.csv')
    _publish(checkpoint, folder, names, [])
    validate(['--model', f'local-dir:{folder}', '--data-dir', job.data, '--route', 'main', 'aux', '--suite', 'attacks',
              '--workers', '0', '--results-file', measured])
    _publish(checkpoint, folder, names, ['--results', measured])
    _draw_images(_what_routes_see(trained, job.data), names,
                 os.path.join(args.results, f'{_STUDY.file_name}_routes.png'))


def _best(table: str, output: str) -> Job:
    jobs = [Job(_STUDY, row, seed, output) for seed in _STUDY.seeds for row in _ROWS]
    holdout = {(result['row'], result['seed']): result['holdout'] for result in Table(table).results(jobs)}
    jobs = [job for job in jobs if (job.row, job.seed) in holdout]
    if not jobs:
        raise InputError(f'{table} has no AdvProp model: run python -m studies {_STUDY.name} first.')
    return max(jobs, key=lambda job: holdout[job.row, job.seed])


def _class_names(trained: Trained, data: str) -> List[str]:
    numbers = trained.images(data).reader.class_to_idx  # by names of folders, such as 0_t-shirt_top
    return [name.partition('_')[2].replace('_', ' ') for name in sorted(numbers, key=numbers.get)]


def _publish(checkpoint: str, folder: str, names: List[str], more: List[str]) -> None:
    hub(['push', checkpoint, f'timm-advprop/{_NAME}', '--dry-run', '--to', folder, '--dataset', 'fashion-mnist',
         '--label-names', *names, *more])


class _Seen(NamedTuple):
    image: torch.Tensor  # [C, H, W] in 0–1
    label: int
    predicted: Dict[str, int]  # by route

    @property
    def right(self) -> Set[str]:
        # The routes that are.
        return {route for route, label in self.predicted.items() if label == self.label}


def _draw_images(seen: Sequence[_Seen], names: Sequence[str], path: str) -> None:
    # A row of images that only the main norms get right, and one of those that only the auxiliary norms do.
    figure = new_figure((_NUM_IMAGES, 2.7))
    for route, axes in zip(('main', 'aux'), figure.subplots(2, _NUM_IMAGES)):
        chosen = [each for each in seen if each.right == {route}]
        axes[0].set_ylabel(f'only {route} is right\n({len(chosen)} of {len(seen)})', fontsize=_SIZE)
        for axis, each in zip(axes, chosen[::max(1, len(chosen) // _NUM_IMAGES)]):
            axis.imshow(each.image.permute(1, 2, 0).squeeze(-1), cmap='gray', vmin=0, vmax=1)
            axis.set_title('main: {}\naux: {}'.format(*(names[i] for i in each.predicted.values())), fontsize=_SIZE - 1)
        for axis in axes:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.savefig(path)


def _what_routes_see(trained: Trained, data: str) -> List[_Seen]:
    images, labels = zip(*trained.images(data))
    images, model = torch.stack(images), trained.model.eval()
    predicted = {route: _predict(model, route, images) for route in ('main', 'aux')}
    pixels = [image for image, _ in trained.images(data, normalise=False)]
    return [_Seen(pixels[i], label, {route: found[i] for route, found in predicted.items()})
            for i, label in enumerate(labels)]


@torch.inference_mode()
def _predict(model: nn.Module, route: str, images: torch.Tensor) -> List[int]:
    with norm_route(model, route):
        return [label for batch in images.split(500) for label in model(batch).argmax(dim=1).tolist()]


if __name__ == '__main__':
    main()
