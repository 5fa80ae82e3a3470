"""Measured results of a publication: from the run's own validation and from result files of the validation program."""
import csv
import io
import json
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

from ..errors import InputError
from ..models import base_of
from .release import Release

__all__ = ['Result', 'collect_results', 'read_results']


class Result(NamedTuple):
    """Accuracy on a kind of images, in percent.

    Args:
        images: `'clean'`, or the attack.
        norms: `'main'` or `'aux'`: the norms that images passed, and that the attack saw.
        top1: Top-1 accuracy.
        top5: Top-5 accuracy, None where there are no more than 5 classes to tell apart.
        dataset: Name of the data set.
        split: Its split.
        source: The program that measured it.
    """
    images: str
    norms: str
    top1: float
    top5: Optional[float]
    dataset: str
    split: str
    source: str


def collect_results(
        release: Release,
        rows: Iterable[Mapping[str, Any]] = (),
        dataset: Optional[str] = None,
) -> List[Result]:
    """All results of a release, each kind once.

    Args:
        release: What is published.
        rows: Results of the validation program.
        dataset: Name of the data set, by default the name in the rows or that of the training run.

    Raises:
        InputError: A row is of another model or of other weights.
    """
    results: Dict[Any, Result] = {}
    default = dataset or release.dataset
    if release.metrics:
        split = release.recipe.get('val_split') or 'validation'
        results['clean', 'main', default, split] = Result(
            'clean', 'main', **_accuracies(release, release.metrics), dataset=default, split=split, source='train.py')
    for row in rows:
        _check_row(release, row)
        norms = 'aux' if row.get('route') == 'aux' else 'main'
        about = dict(norms=norms, dataset=dataset or str(row.get('dataset') or default),
                     split=str(row.get('split') or 'validation'), source='validate.py')
        kinds = [('clean', {'top1': row.get('top1'), 'top5': row.get('top5')})]
        if row.get('adv_attack'):
            kinds.append((str(row['adv_attack']), {'top1': row.get('adv_top1'), 'top5': row.get('adv_top5')}))
        for images, metrics in kinds:
            result = Result(images, **_accuracies(release, metrics), **about)
            results[result.images, result.norms, result.dataset, result.split] = result
    return sorted(
        results.values(), key=lambda result: (result.images != 'clean', result.images, result.norms != 'main'))


def read_results(paths: Sequence[str]) -> List[Dict[str, Any]]:
    """Read result files of the validation program, CSV or JSON.

    Raises:
        InputError: A file is missing or is no such file.
    """
    rows: List[Dict[str, Any]] = []
    for path in paths:
        try:
            with open(path, newline='', encoding='utf-8') as file:
                text = file.read()
            content = json.loads(text) if text.lstrip()[:1] in ('[', '{') else list(csv.DictReader(io.StringIO(text)))
        except (OSError, RecursionError, ValueError) as error:
            raise InputError(f'Cannot read the results {path}: {error}.') from error
        content = content if isinstance(content, list) else [content]
        if not content or not all(isinstance(row, dict) and 'top1' in row and 'model' in row for row in content):
            raise InputError(f'{path} is not a results file of the validation program (--results-file).')
        rows += content
    return rows


def _check_row(release: Release, row: Mapping[str, Any]) -> None:
    name = str(row['model'])
    if ':' not in name and base_of(name.split('.')[0]) != release.architecture:
        raise InputError(f'The results are of {name}, the published model is {release.architecture}.')
    if not row.get('weights'):
        raise InputError(f'The results of {name} do not say which weights they are of: validate with the program of '
                         'this version.')
    if row['weights'] != release.digest(row.get('route') or 'main'):
        also = ' The averaged weights are published: validate with --use-ema.' if release.averaged else ''
        raise InputError(f'The results of {name} are of other weights than those that are published.{also}')


def _accuracies(release: Release, metrics: Mapping[str, Any]) -> Dict[str, Optional[float]]:
    try:
        top1 = float(metrics['top1'])
        top5 = None if metrics.get('top5') in (None, '') else float(metrics['top5'])
    except (TypeError, ValueError) as error:
        raise InputError(f'The results lack a number: {error}.') from error
    if not all(0 <= value <= 100 for value in (top1, top5 or 0)):
        raise InputError(f'The results are not accuracies in percent: {top1}, {top5}.')
    return dict(top1=top1, top5=top5 if release.model.num_classes > 5 else None)
