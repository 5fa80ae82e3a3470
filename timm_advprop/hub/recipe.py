"""The training recipe of a publication: `args.yaml` without what belongs to one machine, and the command to run it."""
import os
import re
from typing import Any, Dict, Mapping

from ..weights.downloads import redact

__all__ = ['publishable_recipe', 'starting_point', 'training_command']

_OF_ONE_RUN = (
    'config', 'data', 'data_dir', 'device', 'device_modules', 'distributed', 'experiment', 'hub_private', 'local_rank',
    'log_wandb', 'no_resume_opt', 'output', 'prefetcher', 'push_to_hub', 'rank', 'resume', 'wandb_project',
    'wandb_resume_id', 'wandb_tags', 'world_size',
)
_FOLDERS = re.compile(r'(?<![\w/.])/(?!/)(?:[^/\s]+/)+')  # of an absolute path, as in local-dir:/home/me/model
_WITHOUT_FOLDER = ('hfds', 'hfids', 'wds', 'tfds')


def publishable_recipe(arguments: Mapping[str, Any]) -> Dict[str, Any]:
    """Arguments of a run that others can use: without folders, devices, accounts and tokens of the machine."""
    return {name: _publishable(value) for name, value in arguments.items() if name not in _OF_ONE_RUN}


def training_command(arguments: Mapping[str, Any]) -> str:
    """The command that trains with a published `args.yaml`, '' where its arguments are of another program."""
    if 'regime' not in arguments:  # of another program
        return ''
    processes = arguments.get('world_size') or 1
    program = 'timm-advprop-train'
    if processes > 1:
        program = f'torchrun --nproc_per_node {processes} -m timm_advprop.train'
    reader = (arguments.get('dataset') or '').partition('/')[0]
    data = '' if reader in _WITHOUT_FOLDER else ' --data-dir DATA'
    return f'{program} --config args.yaml{data}'


def starting_point(arguments: Mapping[str, Any]) -> str:
    """The file or folder of its own machine that a run began with, '' where it began with none."""
    model = str(arguments.get('model') or '')
    local = model if model.startswith('local-dir:') else ''
    return _publishable(arguments.get('initial_checkpoint') or arguments.get('pretrained_path') or local)


def _publishable(value: Any) -> Any:
    if isinstance(value, str):
        return redact(os.path.basename(os.path.normpath(value)) if os.path.isabs(value) else _FOLDERS.sub('', value))
    if isinstance(value, Mapping):
        return {str(key): _publishable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_publishable(entry) for entry in value]
    return value if isinstance(value, (int, float, bool, type(None))) else redact(str(value))
