"""The validation program: `validate.py`, `timm-advprop-validate`, `python -m timm_advprop.validate`."""
import csv
import glob
import json
import logging
import os
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from timm.models import is_model, list_models
from timm.utils import check_batch_size_retry, decay_batch_step, natural_key

from ..engine.eval_settings import EvalSettings
from ..engine.validation import validate
from ..errors import InputError, exits_on_input_error
from ..output import replacing
from .parser import ProgramParser, parse_settings, settings_parser, setup_logging

__all__ = ['create_parser', 'main', 'parse_args', 'write_results']

_logger = logging.getLogger(__name__)

_DESCRIPTION = 'Validate timm models, with AdvProp or without, clean and under attack.'
_REFUSED = {
    'NaFlex models are not in the zoo': ('naflex-loader', 'naflex-max-seq-len'),
    'the fusers belong to TorchScript; use --torchcompile': ('fuser',),
    'use --torchcompile': ('aot-autograd',),
    'images are read by torchvision; for TensorFlow\'s preprocessing use timm\'s own script': ('tf-preprocessing',),
}
_NOT_FOR_IMAGENET = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']

Results = Dict[str, Any]


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the validation program."""
    setup_logging()
    settings = parse_args(argv)
    path = settings.report.results_file
    if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise InputError(f'Cannot write {path}: there is no such folder.')
    runs = _list_runs(settings)
    results: Union[Results, List[Results]]
    if runs is None:
        results = _validate_retrying(settings) if settings.report.retry else validate(settings)
    else:
        results = _validate_all(settings, runs)
    print(f'--result\n{json.dumps(results, indent=4)}')
    if path:
        write_results(path, results, settings.report.results_format)


def parse_args(argv: Optional[Sequence[str]] = None) -> EvalSettings:
    """Parse the command line."""
    return parse_settings(EvalSettings, _DESCRIPTION, _REFUSED, argv)


def create_parser() -> ProgramParser:
    """The validation program's parser."""
    return settings_parser(EvalSettings, _DESCRIPTION, _REFUSED)


def write_results(path: str, results: Union[Results, List[Results]], format: str = 'csv') -> None:
    """Write results as timm does.

    Args:
        path: File to write.
        results: Results of one model or of several.
        format: `'csv'` or `'json'`.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with replacing(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
            if format == 'json':
                json.dump(results, file, indent=4)
                return
            rows = results if isinstance(results, list) else [results]
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f'Cannot write {path}: {error}.') from error


def _list_runs(settings: EvalSettings) -> Optional[List[Tuple[str, str]]]:
    # (model, checkpoint) pairs of a bulk validation, None for a single model.
    model, checkpoint = settings.model.model, settings.model.checkpoint
    if checkpoint and os.path.isdir(checkpoint):
        return [(model, file) for file in _checkpoints_in(checkpoint)]
    if model == 'all':
        return [(name, '') for name in list_models(pretrained=True, exclude_filters=_NOT_FOR_IMAGENET)]
    if os.path.isfile(model):
        with open(model, encoding='utf-8') as file:
            return [(line.strip(), '') for line in file if line.strip()]
    if ':' not in model and not is_model(model) and any(sign in model for sign in '*?['):
        names = list_models(model, pretrained=True)
        if not names:
            raise InputError(f'No model with published weights matches {model!r}.')
        return [(name, '') for name in names]
    return None


def _checkpoints_in(folder: str) -> List[str]:
    files = [file for ending in ('pth.tar', 'pth', 'safetensors')
             for file in glob.glob(os.path.join(folder, f'*.{ending}'))]
    if not files:
        raise InputError(f'No checkpoints (*.pth.tar, *.pth, *.safetensors) in {folder}.')
    return sorted(files, key=natural_key)


def _validate_all(settings: EvalSettings, runs: List[Tuple[str, str]]) -> List[Results]:
    _logger.info(f'Validating {len(runs)} models: {", ".join(checkpoint or model for model, checkpoint in runs)}')
    results = []
    for model, checkpoint in runs:
        run = replace(settings, model=replace(settings.model, model=model, checkpoint=checkpoint))
        try:
            result = _validate_retrying(run)
        except (InputError, RuntimeError) as error:
            _logger.error(f'{checkpoint or model} left out: {error}')
            continue
        except KeyboardInterrupt:
            break
        results.append(OrderedDict(result, checkpoint=checkpoint) if checkpoint else result)
    return sorted(results, key=lambda result: result['top1'], reverse=True)


def _validate_retrying(settings: EvalSettings) -> Results:
    while True:
        try:
            return validate(settings)
        except RuntimeError as error:
            batch_size = settings.loader.batch_size
            batch_size = decay_batch_step(batch_size) if check_batch_size_retry(str(error)) else 0
            if not batch_size:
                raise
            settings = replace(settings, loader=replace(settings.loader, batch_size=batch_size))
            _logger.warning(f'{error} Retrying with --batch-size {batch_size}.')
