"""What is shown of a robustness run: tables, in Markdown, and pictures."""
import logging
import os
import re
from statistics import fmean
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from ..corruptions import ALL_CORRUPTIONS, SEVERITIES
from ..engine.results_file import Results, write_results
from ..engine.route_names import is_blend
from ..errors import InputError
from ..output import counted, markdown_table, replacing
from .blend_chart import Curves, blends_in, draw_blends, rows_of_blends
from .charts import draw_attacks, draw_corruptions
from .suites import SUITES
from .summary import evaluated, headline, is_summary, newest, number, place_in_overview

__all__ = ['names_of_evaluated', 'overview', 'write_report']

_logger = logging.getLogger(__name__)

_NOTES = {
    'corruptions': '`corruptions` are made of the validation split on the fly, after resizing and cropping. They '
                   'follow the definitions of ImageNet-C (Hendrycks & Dietterich, ICLR 2019) and are not its files. '
                   'The column `corruptions` is the mean over 15 corruptions and 5 severities, 100 minus the '
                   'unnormalised mean corruption error; `extra` are 4 more corruptions, which it leaves out.',
    'imagenet-c': '`imagenet-c` are the published files.',
    'attacks': 'An attack sees the norms that its images pass.',
    'autoattack': 'AutoAttack is the standard version (Croce & Hein, ICML 2020).',
}
_OF_SPLIT = ('clean', 'corruptions', 'attacks', 'autoattack')
_ATTACK = re.compile(r'\S+-(\d+)(?: \(L2\))?, eps [^,]+, alpha ([^,]+), (.+)')  # as an `Attack` describes itself
_OF_EVERY_RUN = re.compile(r'(last|model_best|checkpoint-\d+)\..+')  # names of checkpoints in run folders
_MCE = 'mCE is relative to AlexNet\'s published errors; lower is better.'


def write_report(rows: Sequence[Results], path: str) -> str:
    """Write tables and pictures beside a results file. Of a model under several settings they show the last.

    Args:
        rows: Rows of the results file, summaries among them.
        path: The results file: `results.md`, `results_corruptions.png` and `results_attacks.png` lie beside
            `results.csv`; where there are blends, their curve as `results_blend.csv` and `results_blend.png`.

    Returns:
        The overview and the names of the files, to print.
    """
    base, rows = os.path.splitext(path)[0], newest(rows)
    text = overview(rows)
    details = [_details(rows, suite) for suite in ('corruptions', 'imagenet-c')]
    curves = blends_in(rows)
    on_curves = {(*key, blend.route) for key, curve in curves.items() for blend in curve if is_blend(blend.route)}
    files = [path, f'{base}.md', *_draw([row for row in rows if evaluated(row) not in on_curves], base),
             *_write_blends(curves, rows, base)]
    with replacing(f'{base}.md') as temporary, open(temporary, 'w', encoding='utf-8') as file:
        file.write('\n\n'.join(filter(None, (f'# Robustness\n\n{text}', *details))) + '\n')
    return f'{text}\n\nWritten: {", ".join(files)}'


def overview(rows: Sequence[Results]) -> str:
    """A Markdown table of accuracies, a model on a route a row and a kind of images a column, with notes below."""
    named = [(evaluated(row), headline(row), row) for row in rows]
    suites = ['clean', *SUITES]  # whatever the order in which they were measured
    titles = list(dict.fromkeys(title for _, title, _ in sorted(named, key=lambda each: (
        suites.index(each[2]['suite']), *place_in_overview(each[2]))) if title))
    cells = {(key, title): f'{number(row, "top1"):.1f}' for key, title, row in named if title}
    relative = {(key, f'{row["suite"]} mCE'): f'{number(row, "mce"):.1f}' for key, _, row in named if row.get('mce')}
    columns = [*titles, *dict.fromkeys(title for _, title in relative)]
    cells.update(relative)
    table = [('top-1 (%)', *columns)]
    table += [(name, *(cells.get((key, column), '–') for column in columns))
              for key, name in names_of_evaluated(rows).items()]
    notes = [note for suite, note in _NOTES.items() if any(row['suite'] == suite for row in rows)]
    notes = [*dict.fromkeys(_images(rows)), *_steps_of_attacks(rows), *_numbers_of_images(rows), *notes,
             *([_MCE] if relative else [])]
    return '\n\n'.join([markdown_table(table), ' '.join(notes)]).rstrip()


def _images(rows: Sequence[Results]) -> Iterator[str]:
    for row in rows:
        if row['suite'] != 'imagenet-c' and row.get('num_images') and row.get('dataset'):
            split = f'split {row["split"]} of ' if row.get('split') else ''
            yield f'{counted(int(row["num_images"]), "image")} of {split}{row["dataset"]}.'


def _steps_of_attacks(rows: Sequence[Results]) -> Iterator[str]:
    columns: Dict[str, Dict[str, None]] = {}
    for row in rows:
        if row['suite'] == 'attacks' and row.get('adv_attack') and (title := headline(row)):
            columns.setdefault(_ATTACK.sub(_steps, row['adv_attack']), {})[title] = None
    for steps, titles in columns.items():
        yield f'{", ".join(titles)}: {steps}.'


def _steps(described: 're.Match[str]') -> str:
    number, size, target = described.groups()
    return f'{counted(int(number), "step")} of {size}, {target}'


def _numbers_of_images(rows: Sequence[Results]) -> Iterator[str]:
    # for suites of one split, whose figures are compared
    numbers: Dict[str, List[str]] = {}
    for row in rows:
        if row['suite'] in _OF_SPLIT and row.get('num_images'):
            numbers.setdefault(str(row['num_images']), []).append(row['suite'])
    if len(numbers) > 1:
        said = (f'{", ".join(dict.fromkeys(suites))}: {count}' for count, suites in numbers.items())
        yield f'**The numbers of images differ** ({"; ".join(said)}).'


def names_of_evaluated(rows: Sequence[Results]) -> Dict[Tuple[str, ...], str]:
    """A short name for each model on a route."""
    keys = list(dict.fromkeys(map(evaluated, rows)))
    models = _shortest(sorted({model for model, _, _ in keys}), drop_common=False)
    files = _shortest_of_files(sorted({checkpoint for _, checkpoint, _ in keys}))
    return {(model, checkpoint, route): ' '.join(filter(None, [
        models[model], checkpoint and files[checkpoint]])) + (f', {route}' if route != 'main' else '')
        for model, checkpoint, route in keys}


def _shortest_of_files(files: Sequence[str]) -> Dict[str, str]:
    # Names that files have in every run stand for their folders, where these tell the files apart.
    folders = {file: _folder_of_run(file) for file in files}
    if len(set(folders.values())) < len(folders):
        return _shortest(files)
    names = _shortest(list(folders.values()))
    return {file: names[folder] for file, folder in folders.items()}


def _folder_of_run(file: str) -> str:
    folder, name = os.path.split(file)
    return folder if folder.strip('./') and _OF_EVERY_RUN.fullmatch(name) else file


def _shortest(paths: Sequence[str], drop_common: bool = True) -> Dict[str, str]:
    # The part of each path that tells it from the others: `vanilla`, `advprop` of two files `last.pth.tar`.
    parts = {path: os.path.normpath(path).split(os.sep) for path in paths}
    of_all, same, length = list(parts.values()), 0, 1
    shortest = min(map(len, of_all))  # the same path may be spelt in two ways
    while drop_common and len(parts) > 1 and same < shortest and len({tuple(each[-same - 1:]) for each in of_all}) == 1:
        same += 1
    while len({_last(each, same, length) for each in of_all}) < len(parts) and length < max(map(len, of_all)):
        length += 1
    return {path: _last(each, same, length) for path, each in parts.items()}


def _last(parts: Sequence[str], same: int, length: int) -> str:
    return '/'.join((parts[:len(parts) - same] or parts)[-length:])


def _details(rows: Sequence[Results], suite: str) -> str:
    # Corruptions by severity, a table for each model on a route.
    names = names_of_evaluated(rows)
    tables = []
    for key, name in names.items():
        top1 = {(row['condition'], int(row['severity'])): number(row, 'top1') for row in rows
                if evaluated(row) == key and row['suite'] == suite and not is_summary(row)}
        if top1:
            tables.append(f'## {suite}: {name}\n\n{markdown_table(_by_severity(top1))}')
    return '\n\n'.join(tables)


def _by_severity(top1: Dict[Tuple[str, int], float]) -> List[Sequence[Any]]:
    table: List[Sequence[Any]] = [('top-1 (%) at severity', *SEVERITIES, 'mean')]
    for corruption in ALL_CORRUPTIONS:
        values = [top1[corruption, severity] for severity in SEVERITIES if (corruption, severity) in top1]
        if len(values) == len(SEVERITIES):
            table.append((corruption, *(f'{value:.1f}' for value in values), f'{fmean(values):.1f}'))
    return table


def _draw(rows: Sequence[Results], base: str) -> List[str]:
    names, files = names_of_evaluated(rows), []
    try:
        for suite, draw in (('corruptions', draw_corruptions), ('imagenet-c', draw_corruptions),
                            ('attacks', draw_attacks)):
            of_suite = [row for row in rows if row['suite'] in (suite, 'clean') and not is_summary(row)]
            if any(row['suite'] == suite for row in of_suite):
                file = f'{base}_{suite.replace("-", "_")}.png'
                draw(file, of_suite, names)
                files.append(file)
    except InputError as error:
        _logger.warning(f'Pictures are left out: {error}')
    return files


def _write_blends(curves: Curves, rows: Sequence[Results], base: str) -> List[str]:
    # The curves of blends, in a table and a picture of their own: the others have no room for them.
    files = [f'{base}_blend.csv', f'{base}_blend.png']
    if not curves:
        return []
    write_results(files[0], rows_of_blends(curves))
    try:
        draw_blends(files[1], curves, names_of_evaluated(rows))
    except InputError:  # matplotlib is missing, which was said
        return files[:1]
    return files
