"""The Hub program: `python -m timm_advprop.hub push CHECKPOINT user/name`, `… pull user/name`, `timm-advprop-hub`."""
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import parse_model_name

from ..engine.open_model import open_architecture
from ..engine.results_file import read_results
from ..errors import InputError, as_input_error, exits_on_input_error
from ..hub import push_to_hub
from ..hub.blending import BlendRequest
from ..hub.layout import CARD, check_replaceable, replace_folder, write_publication
from ..hub.release import open_release
from ..models import base_of
from ..output import replacing
from ..settings import Settings, setting
from ..weights import open_publication
from ..weights.downloads import check_repo_id
from .parser import ProgramParser, setup_logging

__all__ = ['main']


@dataclass(frozen=True)
class PushSettings(Settings):
    """What is published beside the weights, and where to."""
    title = 'options of a publication'
    private: bool = setting(False, 'make a new repository private')
    revision: Optional[str] = setting(None, 'branch, made where it is missing', metavar='BRANCH', default_help='main')
    message: Optional[str] = setting(None, 'commit message', metavar='TEXT')
    dry_run: bool = setting(False, 'write the folder and show the card, and send nothing')
    to: Optional[str] = setting(
        None, 'folder of --dry-run', metavar='DIR', default_help='output/hub/<name>')
    model: Optional[str] = setting(None, 'model of a checkpoint that does not say it', metavar='NAME')
    model_kwargs: Dict[str, Any] = setting({}, 'further arguments of that model, key=value')
    results: Tuple[str, ...] = setting(
        (), 'results files of validate.py, shown on the card', nargs='+', metavar='FILE')
    dataset: Optional[str] = setting(None, 'data set on the card', metavar='NAME', default_help='that of the run')
    label_names: Tuple[str, ...] = setting(
        (), 'names of the classes, in their order', nargs='+', metavar='NAME', default_help='those of the run')
    license: Optional[str] = setting(
        None, 'licence', metavar='NAME', default_help='that of the weights the run began with, else apache-2.0')
    no_images: bool = setting(False, 'no validation images on the card')
    route: Optional[str] = setting(
        None, 'publish the plain model of one route alone: main, aux, i for the i-th auxiliary norms, or a share such '
        'as 0.3 for a blend of main and first auxiliary norms', metavar='ROUTE', default_help='all norms')
    recalibrate: int = setting(
        0, 'take that model\'s running statistics from N images of the run\'s training split', low=0, metavar='N')
    data_dir: Optional[str] = setting(
        None, 'root folder of that data set', metavar='DIR', default_help='that of the run')


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the Hub program."""
    setup_logging()
    args = _create_parser().parse_args(argv)
    args.run(args)


def _create_parser() -> ProgramParser:
    parser = ProgramParser(prog='python -m timm_advprop.hub', description='Publish models on the Hugging Face Hub, and '
                           'fetch published ones. The token is that of `hf auth login`, or HF_TOKEN.')
    programs = parser.add_subparsers(required=True, metavar='{push,pull}')
    push = programs.add_parser('push', help='publish a checkpoint', description='Publish a checkpoint, as one commit.')
    push.set_defaults(run=lambda args: _push(args.checkpoint, args.repo_id, PushSettings.from_values(vars(args))))
    push.add_argument('checkpoint', metavar='CHECKPOINT',
                      help='checkpoint; the averaged weights are taken where there are any')
    push.add_argument('repo_id', metavar='user/name', help='repository, made where it is missing')
    push.add_settings(PushSettings.title, PushSettings.flags())
    pull = programs.add_parser('pull', help='fetch a published model', description='Write a published model, main and '
                               'auxiliary norms, as one file that --initial-checkpoint and load_checkpoint take.')
    pull.set_defaults(run=lambda args: _pull(args.repo_id, args.to))
    pull.add_argument('repo_id', metavar='user/name[@revision]', help='repository, or local-dir:FOLDER')
    pull.add_argument('--to', default=None, metavar='FILE', help='safetensors file (default: <name>.safetensors)')
    return parser


def _push(checkpoint: str, repo_id: str, settings: PushSettings) -> None:
    if settings.to and not settings.dry_run:
        raise InputError('--to is the folder of --dry-run.')
    results = [row for path in settings.results for row in read_results(path)]
    about: Dict[str, Any] = dict(
        model=settings.model, model_kwargs=settings.model_kwargs, results=results, dataset=settings.dataset,
        license=settings.license, label_names=settings.label_names or None)
    of_route: Dict[str, Any] = dict(route=settings.route, recalibrate=settings.recalibrate, data_dir=settings.data_dir)
    if settings.dry_run:
        folder = settings.to or os.path.join('output', 'hub', repo_id.split('/')[-1])
        return _write_folder(folder, checkpoint, repo_id, images=not settings.no_images,
                             blend=BlendRequest.of(**of_route), **about)
    url = push_to_hub(
        checkpoint, repo_id, message=settings.message, revision=settings.revision, private=settings.private or None,
        images=not settings.no_images, **of_route, **about)
    print(f'Published {repo_id}: {url}')


def _write_folder(folder: str, checkpoint: str, repo_id: str, images: bool, **about: Any) -> None:
    check_repo_id(repo_id)
    check_replaceable(folder)
    release = open_release(checkpoint, **about)
    with tempfile.TemporaryDirectory() as temporary:
        files = write_publication(release, temporary, repo_id, images=images)
        replace_folder(temporary, folder)
    print(Path(folder, CARD).read_text(encoding='utf-8'))
    print(f'Nothing was sent. {folder} has {", ".join(files)}.')


def _pull(repo_id: str, to: Optional[str]) -> None:
    source, location = 'hf-hub', repo_id
    if ':' in repo_id:
        source, location = as_input_error(parse_model_name, repo_id)
    path = to or f'{os.path.basename(os.path.normpath(location.partition("@")[0]))}.safetensors'
    _check_new_file(path)
    publication = open_publication(source, location)  # pyright: ignore[reportArgumentType]
    open_architecture(publication, pretrained=True)  # what is fetched can be loaded
    _write_weights(publication.load_state_dict(), path)
    norms = 'main and auxiliary norms' if publication.num_aux else 'no auxiliary norms'
    print(f'{path}: {base_of(publication.architecture)} of {publication.name}, {norms}.')


def _check_new_file(path: str) -> None:
    if not path.endswith('.safetensors'):
        raise InputError(f'--to {path}: the file is a safetensors file, give it that ending.')
    if os.path.exists(path):
        raise InputError(f'{path} exists: remove it, or give another file with --to.')
    if not os.path.isdir(os.path.dirname(path) or '.'):
        raise InputError(f'Cannot write {path}: there is no such folder.')


def _write_weights(state_dict: Dict[str, torch.Tensor], path: str) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path) or '.') as folder, replacing(path) as temporary:
            save_file(state_dict, os.path.join(folder, 'weights'), metadata={'format': 'pt'})
            shutil.copyfile(os.path.join(folder, 'weights'), temporary)  # others could not read safetensors' own
    except (OSError, SafetensorError) as error:
        raise InputError(f'Cannot write {path}: {error}.') from error
