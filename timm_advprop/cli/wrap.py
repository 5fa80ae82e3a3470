"""Runs timm's own unmodified train.py with AdvProp: `python -m timm_advprop.wrap PATH/TO/train.py …`.

The script keeps its flags, its log and its checkpoints. While it runs, the names it imports from timm lead here: its
`ClassificationTask` is the task of `--regime`, its `create_model` splits the norms where that regime needs it (before
the script builds an optimizer), its `convert_sync_batchnorm` knows split norms. The `--regime` and
`--adv-*` flags are taken off its command line, and they may stand in its `-c/--config` file.
"""
import argparse
import logging
import os
import runpy
import sys
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import timm.data
import timm.layers
import timm.models
import timm.task
import torch
import torch.nn as nn
from timm.layers import convert_splitbn_model
from timm.task import ClassificationTask, TrainingTask

from ..engine.cpu_precision import warn_of_emulation
from ..engine.datasets import channel_normalisation
from ..engine.open_model import base_name
from ..errors import InputError, as_input_error, exits_on_input_error, near_matches
from ..models import split_models
from ..norms import convert_sync_batchnorm, has_split_norm
from ..regimes import RegimeSettings, attacks_of, create_task, regime_flags, regime_of, split_for_regime
from .parser import ProgramParser, pass_over_unused, read_recipe, recipe_argv

__all__ = ['run_script']

_logger = logging.getLogger(__name__)

_OF_THE_SCHEDULE = '--adv-budget'  # which is the script's
_USAGE = 'python -m timm_advprop.wrap SCRIPT [flags of SCRIPT] [--regime …] [--adv-* …]'
_EPILOG = '''SCRIPT is timm's train.py, or one that builds a timm.task.ClassificationTask as it does.
Its own flags: python -m timm_advprop.wrap SCRIPT --help
On several devices: torchrun --nproc_per_node N -m timm_advprop.wrap SCRIPT …'''


def run_script(script: str, argv: Sequence[str]) -> None:
    """Run a training script with the task of a regime in place of `timm.task.ClassificationTask`.

    What is replaced in timm, `sys.argv` and `sys.path` are restored after the run, also after an exception.

    Args:
        script: Path of timm's train.py, or of a script of its kind.
        argv: The script's command line, with `--regime` and `--adv-*` flags among its own.

    Raises:
        InputError: There is no such script; a flag is wrong; the regime does not fit the model; or the script built
            another task or none, so that AdvProp was not used.
    """
    if not os.path.isfile(script):
        raise InputError(f'No script {script}. Give the path of timm\'s train.py.')
    settings, script_argv, normalisation = _parse(argv)
    factory = _TaskFactory(settings, normalisation)
    with _timm_replaced(factory), _started_as_program(script, script_argv):
        try:
            runpy.run_path(script, run_name='__main__')
        except SystemExit as exit:
            if exit.code or {'-h', '--help'} & set(script_argv):
                raise
    if not factory.used:
        raise InputError(f'AdvProp was not used: {script} ended without building a timm.task.ClassificationTask.')


class _TaskFactory:
    # Builds the regime's task from the arguments of ClassificationTask.
    def __init__(self, settings: RegimeSettings, normalisation: Dict[str, Any]):
        self.settings, self.normalisation = settings, normalisation
        self.used = False

    def __call__(self, model: nn.Module, criterion: Optional[Callable] = None, **kwargs: Any) -> TrainingTask:
        task_type = as_input_error(regime_of, self.settings, has_split_norm(model))
        needs_split = task_type.sources_of_aux_norms(self.settings) and task_type.splits_plain_models
        if needs_split and not has_split_norm(model):
            raise InputError(f'{type(model).__name__} has no split norms, as the script did not make it by '
                             'timm.create_model: call timm_advprop.convert_split_norm(model) before its optimizer is '
                             'built.')
        # scripted, a model does not tell whether its norms are split: the regime has to be named
        if isinstance(model, torch.jit.ScriptModule) and not (self.settings.regime and task_type.takes_scripted):
            raise InputError('A scripted model has only its main route. Use --torchcompile, not --torchscript.')
        task = as_input_error(create_task, self.settings, model, criterion, **self.normalisation, **kwargs)
        self.used = True
        if kwargs.get('verbose', True):
            self._warn_of_emulation(model)
            plain = self.settings.regime is None and not has_split_norm(model)
            hint = ', as the model has no split norms: see --regime' if plain else ''
            _logger.log(logging.WARNING if hint else logging.INFO, f'Training regime: {task_type.name}{hint}.')
        return task

    def _warn_of_emulation(self, model: nn.Module) -> None:
        dtypes = [attack.amp_dtype for attack in attacks_of(self.settings, has_split_norm(model))]
        warn_of_emulation(next(model.parameters()).device, [getattr(torch, name) for name in dtypes if name])

    def create_model(self, *args: Any, **kwargs: Any) -> nn.Module:
        # Not when the task is built: timm's scripts before 1.0.27 build the optimizer first, and it has to have the
        # parameters of auxiliary norms, too.
        if self.settings.share and base_name(str(args[0] if args else kwargs.get('model_name'))) in split_models():
            kwargs.setdefault('share', self.settings.share)
        return as_input_error(split_for_regime, self.settings, _create_model(*args, **kwargs))

    def resolve_data_config(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        # The script normalises its images by what this returns, whether flags, YAML or the model's own cfg said so.
        config = _resolve_data_config(*args, **kwargs)
        self.normalisation = dict(zip(('mean', 'std'), channel_normalisation(config)))
        return config


_create_model = timm.create_model
_resolve_data_config = timm.data.resolve_data_config


class _StandInType(type):
    # The type of a class that is built by a function and is otherwise the class it stands for: for isinstance, for
    # class attributes, for subclasses (which are built as usual).
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        build = vars(cls).get('build')
        return build(*args, **kwargs) if build else super().__call__(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.__base__) if 'build' in vars(cls) else super().__instancecheck__(instance)  # pyright: ignore[reportArgumentType]


def _stand_in(task_type: type, build: Callable[..., Any]) -> type:
    return _StandInType(task_type.__name__, (task_type,), {'build': staticmethod(build)})


@contextmanager
def _timm_replaced(factory: _TaskFactory) -> Iterator[None]:
    with ExitStack() as stack:
        for name, task_type in list(vars(timm.task).items()):
            if task_type is ClassificationTask:
                stack.enter_context(_replaced(timm.task, name, _stand_in(task_type, factory)))
            elif isinstance(task_type, type) and issubclass(task_type, TrainingTask) and task_type is not TrainingTask:
                stack.enter_context(_replaced(timm.task, name, _stand_in(task_type, _refusal(name))))
        for module in (timm, timm.models):
            stack.enter_context(_replaced(module, 'create_model', factory.create_model))
        stack.enter_context(_replaced(timm.layers, 'convert_sync_batchnorm', convert_sync_batchnorm))
        stack.enter_context(_replaced(timm.layers, 'convert_splitbn_model', _convert_plain_splitbn_model))
        stack.enter_context(_replaced(timm.data, 'resolve_data_config', factory.resolve_data_config))
        yield


def _convert_plain_splitbn_model(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    if has_split_norm(model):
        raise InputError('--split-bn of the script knows nothing of the norms that AdvProp has split. Leave it out, or '
                         'use timm_advprop.train, whose --aug-splits 2 --split-bn is fine-grained AdvProp.')
    return convert_splitbn_model(model, *args, **kwargs)


def _refusal(name: str) -> Callable[..., None]:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise InputError(f'AdvProp takes the place of timm\'s ClassificationTask, but these flags ask for {name}. '
                         f'Remove them (--kd-model-name asks for distillation), or run the script itself.')
    return refuse


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextmanager
def _started_as_program(script: str, argv: Sequence[str]) -> Iterator[None]:
    # As `python SCRIPT …` would: the script's own folder comes first among those that modules are looked for in.
    folder = os.path.dirname(os.path.abspath(script))
    with _replaced(sys, 'argv', [script, *argv]), _replaced(sys, 'path', [folder, *sys.path]):
        yield


def _parse(argv: Sequence[str]) -> Tuple[RegimeSettings, List[str], Dict[str, Any]]:
    # The script reads --config, --mean and --std too: they stay on its command line.
    config_parser = argparse.ArgumentParser(add_help=False)  # takes --conf for --config, as the script's own does
    config_parser.add_argument('-c', '--config', default='')
    config = config_parser.parse_known_args(argv)[0].config
    recipe = read_recipe(config) if os.path.isfile(config) else {}  # the script will say that it is missing
    normalisation_parser = ProgramParser(add_help=False)
    for key in ('mean', 'std'):
        normalisation_parser.add_argument(f'--{key}', type=float, nargs='+', default=recipe.get(key))
    normalisation = vars(normalisation_parser.parse_known_args(argv)[0])
    parser = _regime_parser(add_help=False)
    flags = parser.parse_args(recipe_argv(parser, _regime_entries(parser, recipe, config), config))
    flags, script_argv = parser.parse_known_args(argv, flags)
    pass_over_unused(parser, flags, argv, config)
    return RegimeSettings.from_values(vars(flags)), script_argv, normalisation


def _regime_parser(**kwargs: Any) -> ProgramParser:
    parser = ProgramParser(**kwargs)
    parser.add_settings('AdvProp parameters', {
        flag: about for flag, about in regime_flags().items() if flag != _OF_THE_SCHEDULE})
    return parser


def _regime_entries(parser: argparse.ArgumentParser, recipe: Mapping[str, Any], path: str) -> Dict[str, Any]:
    # The script takes no notice of keys that it does not know: ours are known by their beginning.
    known = list(vars(parser.parse_args([])))
    entries = {key: value for key, value in recipe.items()
               if (name := str(key).replace('-', '_')) == 'regime' or name.startswith('adv_')}
    for key in entries:
        if key not in known:
            raise InputError(f'{path}: unknown key {key!r}{near_matches(key.replace("-", "_"), known)}.')
    return entries


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the program."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith('-'):
        run_script(argv[0], argv[1:])
        return
    parser = _regime_parser(
        prog='python -m timm_advprop.wrap', usage=_USAGE, description='Run timm\'s own train.py with AdvProp.',
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    if {'-h', '--help'} & set(argv):
        parser.print_help()
        return
    parser.error(f'give the script first: {_USAGE}')

