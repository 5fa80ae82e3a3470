"""What rows of results come to: means over corruptions, and the words for each column of a table."""
from statistics import fmean
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..corruptions import ALEXNET_ERRORS, CORRUPTIONS, GROUPS, SEVERITIES
from ..engine.results_file import Results

__all__ = ['EVALUATED', 'evaluated', 'headline', 'is_summary', 'newest', 'number', 'place_in_overview', 'summary_rows']

EVALUATED = ('model', 'checkpoint', 'route')  # columns that say what was evaluated
_OF_CORRUPTIONS = ('corruptions', 'imagenet-c')
_MEAN = 'mean'


def evaluated(row: Mapping[str, Any]) -> Tuple[str, ...]:
    """What a row's figures are of: a model on a route."""
    return tuple(str(row[name]) for name in EVALUATED)


def number(row: Mapping[str, Any], column: str) -> float:
    """A number of a row, which is text where the row was read from a CSV file."""
    return float(row[column])


def is_summary(row: Mapping[str, Any]) -> bool:
    """Whether a row was made of others."""
    return str(row['condition']).startswith(_MEAN)


def newest(rows: Sequence[Results]) -> List[Results]:
    """Rows without those that a later one takes the place of, of the same images and model under other settings."""
    last: Dict[Any, Results] = {}
    for row in rows:
        key = evaluated(row), row['suite'], headline(row), row['condition'], str(row['severity'])
        if row['suite'] != 'clean' or key not in last or not _is_of_fewer_images(row, last[key]):
            last[key] = row
    return list(last.values())


def _is_of_fewer_images(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    # a suite on few images measures clean accuracy of the same weights on these
    counts = [int(each.get('num_images') or 0) for each in (row, other)]
    return row.get('weights') == other.get('weights') and counts[0] < counts[1]


def place_in_overview(row: Mapping[str, Any]) -> Tuple[Any, ...]:
    """Where the column of a row's images stands within its suite."""
    condition = str(row['condition']).removeprefix(f'{_MEAN}-')
    if row['suite'] in _OF_CORRUPTIONS:
        return ([_MEAN, *GROUPS].index(condition) if condition in (_MEAN, *GROUPS) else 0,)
    return (headline(row) or '').rpartition(' ')[0], float(row['severity'] or 0)


def summary_rows(rows: Sequence[Results]) -> List[Results]:
    """Means over corruptions, for each model on a route whose corruptions are complete.

    `top1_err` of condition `mean` is the mean corruption error over the paper's 15 corruptions (Hendrycks & Dietterich,
    ICLR 2019), unnormalised; `mce` is the mean of their errors relative to AlexNet's, in percent, for ImageNet's
    classes; `mean-noise` … are means of a group.
    """
    summaries = []
    for key in dict.fromkeys(map(_with_settings, rows)):
        of_key = [row for row in rows if row['suite'] in _OF_CORRUPTIONS and _with_settings(row) == key]
        means = {_MEAN: CORRUPTIONS, **{f'{_MEAN}-{group}': names for group, names in GROUPS.items()}}
        summaries += filter(None, (_mean_row(of_key, condition, names) for condition, names in means.items()))
    return summaries


def _with_settings(row: Mapping[str, Any]) -> Tuple[Any, ...]:
    # what was measured under other settings, or of other weights, has a mean of its own
    return evaluated(row), row['suite'], row.get('settings')


def _mean_row(rows: Sequence[Results], condition: str, names: Sequence[str]) -> Optional[Results]:
    last = {(row['condition'], str(row['severity'])): row for row in rows if row['condition'] in names}
    of_names = list(last.values())
    if len(of_names) < len(names) * len(SEVERITIES):
        return None
    row: Dict[str, Any] = {**of_names[0], 'condition': condition, 'severity': '', 'cell': ''}
    for column in filter(_is_averaged, of_names[0]):
        row[column] = round(fmean(number(each, column) for each in of_names), 4)
    if condition == _MEAN and row.get('imagenet_classes') in (True, 'True'):
        row['mce'] = round(fmean(_relative_error(of_names, name) for name in names), 4)
    return row


def _is_averaged(column: str) -> bool:
    return column in ('top1', 'top1_err', 'top5', 'top5_err') or column.endswith(('_precision', '_recall', '_f1_score'))


def _relative_error(rows: Sequence[Results], name: str) -> float:
    return fmean(number(row, 'top1_err') for row in rows if row['condition'] == name) / ALEXNET_ERRORS[name]


def headline(row: Mapping[str, Any]) -> Optional[str]:
    """The words for a row's images in a table that has one column for each kind; None for what is shown in detail."""
    suite, condition, severity = row['suite'], str(row['condition']), row['severity']
    if suite in _OF_CORRUPTIONS:
        of = suite if condition == _MEAN else condition.removeprefix(f'{_MEAN}-')
        return (of if suite == 'corruptions' or condition == _MEAN else f'{suite} {of}') if is_summary(row) else None
    norm = ' (L2)' if 'l2' in str(row.get('adv_attack')).lower() else ''
    if suite == 'attacks':
        return f'{condition.upper()}{norm} {number(row, "severity"):g}/255'
    if suite == 'autoattack':
        return f'AutoAttack{norm} {float(severity):g}/255' if condition == 'total' else None
    return suite
