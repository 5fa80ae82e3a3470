"""The Hub program: `python -m timm_advprop.hub push CHECKPOINT user/name`, `… pull user/name`, `timm-advprop-hub`."""
import os
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import parse_model_name
from timm.utils import ParseKwargs

from ..engine.open_model import open_architecture
from ..errors import InputError, as_input_error, exits_on_input_error
from ..hub import push_to_hub
from ..hub.layout import CARD, check_replaceable, replace_folder, write_publication
from ..hub.release import open_release, read_results
from ..models import base_of
from ..output import replacing
from ..weights import open_publication
from ..weights.downloads import check_repo_id
from .parser import ProgramParser, setup_logging

__all__ = ['main']


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
    push.set_defaults(run=_push)
    add = push.add_argument
    add('checkpoint', metavar='CHECKPOINT', help='checkpoint; the averaged weights are taken where there are any')
    add('repo_id', metavar='user/name', help='repository, made where it is missing')
    add('--private', action='store_true', help='make a new repository private')
    add('--revision', default=None, metavar='BRANCH', help='branch, made where it is missing (default: main)')
    add('--message', default=None, metavar='TEXT', help='commit message')
    add('--dry-run', action='store_true', help='write the folder and show the card, and send nothing')
    add('--to', default=None, metavar='DIR', help='folder of --dry-run (default: output/hub/<name>)')
    add('--model', default=None, metavar='NAME', help='model of a checkpoint that does not say it')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='further arguments of that model, key=value')
    add('--results', nargs='+', default=[], metavar='FILE', help='results files of validate.py, shown on the card')
    add('--dataset', default=None, metavar='NAME', help='data set on the card (default: that of the run)')
    add('--license', default=None, metavar='NAME',
        help='licence (default: that of the weights the run began with, else apache-2.0)')
    add('--no-images', action='store_true', help='no validation images on the card')
    pull = programs.add_parser('pull', help='fetch a published model', description='Write a published model, main and '
                               'auxiliary norms, as one file that --initial-checkpoint and load_checkpoint take.')
    pull.set_defaults(run=_pull)
    pull.add_argument('repo_id', metavar='user/name[@revision]', help='repository, or local-dir:FOLDER')
    pull.add_argument('--to', default=None, metavar='FILE', help='safetensors file (default: <name>.safetensors)')
    return parser


def _push(args: Namespace) -> None:
    if args.to and not args.dry_run:
        raise InputError('--to is the folder of --dry-run.')
    about = dict(model=args.model, model_kwargs=args.model_kwargs, results=read_results(args.results),
                 dataset=args.dataset, license=args.license)
    if args.dry_run:
        return _write_folder(args, about)
    url = push_to_hub(
        args.checkpoint, args.repo_id, message=args.message, revision=args.revision, private=args.private or None,
        images=not args.no_images, **about)
    print(f'Published {args.repo_id}: {url}')


def _write_folder(args: Namespace, about: Mapping[str, Any]) -> None:
    folder = args.to or os.path.join('output', 'hub', args.repo_id.split('/')[-1])
    check_repo_id(args.repo_id)
    check_replaceable(folder)
    release = open_release(args.checkpoint, **about)
    with tempfile.TemporaryDirectory() as temporary:
        files = write_publication(release, temporary, args.repo_id, images=not args.no_images)
        replace_folder(temporary, folder)
    print(Path(folder, CARD).read_text(encoding='utf-8'))
    print(f'Nothing was sent. {folder} has {", ".join(files)}.')


def _pull(args: Namespace) -> None:
    source, location = 'hf-hub', args.repo_id
    if ':' in args.repo_id:
        source, location = as_input_error(parse_model_name, args.repo_id)
    path = args.to or f'{os.path.basename(os.path.normpath(location.partition("@")[0]))}.safetensors'
    _check_new_file(path)
    publication = open_publication(source, location)
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
