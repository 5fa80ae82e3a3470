"""The validation program: `validate.py`, `timm-advprop-validate`, `python -m timm_advprop.validate`."""
import glob
import json
import logging
import os
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, Callable, List, Optional, Sequence, Tuple

from timm.models import is_model, list_models
from timm.utils import check_batch_size_retry, decay_batch_step, natural_key

from ..engine.eval_settings import EvalModelsSettings, EvalSettings
from ..engine.results_file import Results, write_results
from ..engine.validation import validate
from ..errors import InputError, RunError, exits_on_input_error
from ..robustness.evaluate_suites import SuiteEvaluation
from ..robustness.kept_results import open_results
from ..robustness.report import write_report
from ..robustness.suites import SuiteSettings, check_attack_flags
from .parser import ProgramParser, parse_settings, settings_parser, setup_logging

__all__ = ['ValidateSettings', 'create_parser', 'list_runs', 'main', 'parse_args']

_logger = logging.getLogger(__name__)

_DESCRIPTION = 'Validate timm models, with AdvProp or without: clean, under attack, and beyond the clean test set.'
_REFUSED = {
    'NaFlex models are not in the zoo': ('naflex-loader', 'naflex-max-seq-len'),
    'the fusers belong to TorchScript; use --torchcompile': ('fuser',),
    'use --torchcompile': ('aot-autograd',),
    'images are read by torchvision; for TensorFlow\'s preprocessing use timm\'s own script': ('tf-preprocessing',),
}
_NOT_FOR_IMAGENET = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']

_SUITE_RESULTS = 'robustness'


@dataclass(frozen=True)
class ValidateSettings(EvalSettings):
    """All settings of the program: several models and routes, and suites."""
    model: EvalModelsSettings
    suite: SuiteSettings

    def check_attack(self) -> None:
        if self.suite.suite:
            check_attack_flags(self.suite.suite, self.attack)
        else:
            self.attack.check_asked()


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the validation program."""
    setup_logging()
    settings = parse_args(argv)
    path = settings.report.results_file
    if path:
        _make_folder_of(path)
    runs, several = list_runs(settings)
    if settings.suite.suite:
        return _evaluate_suites(settings, runs, several)
    if several:
        results: Any = sorted(_run_each(_validate_one, runs), key=lambda result: result['top1'], reverse=True)
        if not results:
            raise InputError('Nothing was validated: each model was left out.')
    else:
        results = _run(validate, runs[0])
    print(f'--result\n{json.dumps(results, indent=4)}')
    if path:
        write_results(path, results, settings.report.results_format)


def _make_folder_of(path: str) -> None:
    if os.path.isdir(path):
        raise InputError(f'--results-file {path} is a folder: give a file.')
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    except OSError as error:
        raise InputError(f'Cannot write {path}: its folder cannot be made ({error.strerror}).') from error


def parse_args(argv: Optional[Sequence[str]] = None) -> ValidateSettings:
    """Parse the command line."""
    return parse_settings(ValidateSettings, _DESCRIPTION, _REFUSED, argv)


def create_parser() -> ProgramParser:
    """The validation program's parser."""
    return settings_parser(ValidateSettings, _DESCRIPTION, _REFUSED)


def list_runs(settings: ValidateSettings) -> Tuple[List[EvalSettings], bool]:
    """The runs that settings ask for, a model on a route under an attack each, and whether they ask for several.

    Suites take all strengths of an attack in one run.

    Raises:
        InputError: A name stands for no model, a folder has no checkpoints, or models and checkpoints do not pair.
    """
    asked = settings.model
    models = [name for model in asked.model for name in _names_of(model)]
    checkpoints = [file for checkpoint in asked.checkpoint for file in _files_of(checkpoint)]
    groups = {name: getattr(settings, name) for name in ('data', 'image', 'device', 'loader', 'report')}
    attacks = [settings.attack] if settings.suite.suite else settings.attack.each_alone()
    runs = [EvalSettings(model=asked.one(model, checkpoint, route), attack=attack, **groups)
            for model, checkpoint in _pairs(models, checkpoints) for route in asked.route for attack in attacks]
    as_given = (tuple(models), tuple(checkpoints)) == (asked.model, asked.checkpoint)
    return runs, len(runs) > 1 or not as_given


def _names_of(model: str) -> List[str]:
    if model == 'all':
        return list_models(pretrained=True, exclude_filters=_NOT_FOR_IMAGENET)
    if os.path.isfile(model):
        try:
            with open(model, encoding='utf-8') as file:
                names = [line.strip() for line in file if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f'--model {model} is no file of names: give a checkpoint as --checkpoint {model}.'
                             ) from error
        if not names:
            raise InputError(f'--model {model} is a file without names.')
        return names
    if ':' not in model and not is_model(model) and any(sign in model for sign in '*?['):
        names = list_models(model, pretrained=True)
        if not names:
            raise InputError(f'No model with published weights matches {model!r}.')
        return names
    return [model]


def _files_of(checkpoint: str) -> List[str]:
    if not os.path.isdir(checkpoint):
        return [checkpoint]
    files = [file for ending in ('pth.tar', 'pth', 'safetensors')
             for file in glob.glob(os.path.join(checkpoint, f'*.{ending}'))]
    if not files:
        raise InputError(f'No checkpoints (*.pth.tar, *.pth, *.safetensors) in {checkpoint}.')
    return sorted(files, key=natural_key)


def _pairs(models: List[str], checkpoints: List[str]) -> List[Tuple[str, str]]:
    if not checkpoints:
        return [(model, '') for model in models]
    if len(models) == 1:
        return [(models[0], checkpoint) for checkpoint in checkpoints]
    if len(models) != len(checkpoints):
        several = f'{len(checkpoints)} checkpoints (--checkpoint) are' if len(checkpoints) > 1 else (
            f'The checkpoint {checkpoints[0]} is')
        raise InputError(f'{several} not one for each of {len(models)} models (--model): give one model, or as many as '
                         'checkpoints.')
    return list(zip(models, checkpoints))


def _evaluate_suites(settings: ValidateSettings, runs: List[EvalSettings], several: bool) -> None:
    format = settings.report.results_format
    path = settings.report.results_file or f'{_SUITE_RESULTS}.{format}'
    with open_results(path, format) as kept:
        evaluation = SuiteEvaluation(settings.suite.suite, settings, kept, len(runs))
        try:
            finished = _run_each(evaluation, runs, stops=True) if several else [_run(evaluation, runs[0])]
        except KeyboardInterrupt:
            _logger.warning(f'{path} has {len(kept.cells)} finished conditions; the same command goes on.')
            raise
        if not finished:
            raise InputError('Nothing was evaluated: each model was left out.')
        print(write_report(kept.finish(), path))
    if len(finished) < len(runs):
        raise RunError(f'{len(runs) - len(finished)} of {len(runs)} models were left out, see above; the same command '
                       'tries them again.')


def _run_each(function: Callable[[EvalSettings], Any], runs: List[EvalSettings], stops: bool = False) -> List[Any]:
    # Ctrl-C ends it with the results that are there; with `stops` it ends the program.
    _logger.info(f'Validating {len(runs)} models: {", ".join(map(_title, runs))}')
    results = []
    for run in runs:
        try:
            results.append(_run(function, run))
        except (InputError, RuntimeError) as error:
            _logger.error(f'{_title(run)} left out: {error}')
        except KeyboardInterrupt:
            if stops:
                raise
            break
    return results


def _validate_one(run: EvalSettings) -> Results:
    result = validate(run)
    return OrderedDict(result, checkpoint=run.model.checkpoint) if run.model.checkpoint else result


def _run(function: Callable[[EvalSettings], Any], run: EvalSettings) -> Any:
    # with smaller batches where memory runs out, if that is asked for
    while True:
        try:
            return function(run)
        except RuntimeError as error:
            batch_size = run.loader.batch_size
            batch_size = decay_batch_step(batch_size) if check_batch_size_retry(str(error)) else 0
            if not batch_size or not run.report.retry:
                raise
            run = replace(run, loader=replace(run.loader, batch_size=batch_size))
            _logger.warning(f'{error} Retrying with --batch-size {batch_size}.')


def _title(run: EvalSettings) -> str:
    attack = run.attack.attack and f'{run.attack.attack.kind} {run.attack.attack.eps_px:g}'
    about = ', '.join(filter(None, ('' if run.model.route == 'main' else run.model.route, attack)))
    return f'{run.model.checkpoint or run.model.model}{about and f" ({about})"}'
