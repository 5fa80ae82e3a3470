"""What a study found, as Markdown: means, differences to the reference, claims."""
from statistics import fmean, stdev
from typing import Sequence

from timm_advprop.output import markdown_table

from .costs import Costs
from .differences import difference, test_claims, values_of
from .job import Result
from .study import Study

__all__ = ['claims_table', 'render_report', 'rows_in', 'summary_table']

_ABOUT_CLAIMS = (
    'Claims, tested together by Holm\'s method: the interval is that of the claim\'s test. *Reproduced*: the interval '
    'is above zero. *Not reproduced*: it is below what would be worth the cost. Else this study cannot tell.')


def rows_in(study: Study, results: Sequence[Result]) -> Sequence[str]:
    """Names of the rows that there are results of, those of blends behind all others."""
    present = dict.fromkeys(result['row'] for result in results)
    order = list(study.rows)
    return [*(row for row in order if row in present), *sorted(row for row in present if row not in order)]


def render_report(study: Study, results: Sequence[Result], costs: Costs) -> str:
    """The tables of a study.

    Args:
        study: The study.
        results: Its results.
        costs: Cost of each row, see `measure_costs`; of some rows or none.
    """
    seeds = {len(values_of(results, row, 'holdout')) for row in rows_in(study, results)}
    number = f'{min(seeds)} to {max(seeds)}' if len(seeds) > 1 else f'{max(seeds)}'
    commits = ', '.join(sorted({result['commit'] for result in results}))
    reference = study.title(study.reference)
    return '\n\n'.join([
        f'{study.about}. {number} seeds. {study.measures.describe()} Trained at {commits} on {_machines(results)}.',
        *([f'Cost: time of all training steps relative to {reference}, without loading of images.'] if costs else ()),
        f'Difference to {reference} in percentage points, paired by seed, with its 95 % confidence interval; **bold** '
        f'where that leaves out zero. {_by_chance(study, results)}',
        *([summary_table(study, results, costs)] if study.panels else ()),
        *([_ABOUT_CLAIMS, claims_table(study, results)] if study.claims else ()),
        'Means over seeds ± standard deviation, in percent.',
        _means(study, results),
        f'Differences to {reference} in all columns.',
        _differences(study, results),
    ]) + '\n'


def summary_table(study: Study, results: Sequence[Result], costs: Costs, rows: Sequence[str] = ()) -> str:
    """Differences to the reference in the columns that matter, with costs, as Markdown.

    Args:
        study: The study.
        results: Its results.
        costs: Cost of each row, of some rows or none.
        rows: These rows alone, in this order; all but the reference where none are given.
    """
    table = [['', *(study.columns[column] for column in study.panels), 'cost', 'seeds']]
    for row in rows or [row for row in rows_in(study, results) if row != study.reference]:
        cost = costs.get(row.partition(', blend ')[0])
        table.append([
            study.title(row), *(_difference(results, row, study.reference, column) for column in study.panels),
            f'{cost:.2f}' if cost else '–', str(len(values_of(results, row, 'holdout')))])
    return markdown_table(table)


def claims_table(study: Study, results: Sequence[Result]) -> str:
    """Claims of a study and what was found, as Markdown."""
    table = [['claim', 'difference', 'worth', 'here']]
    for tested in test_claims(results, study.claims):
        found = tested.difference
        text = '–' if found is None else f'{found.mean:+.2f} ± {found.margin(tested.level):.2f}'
        table.append([tested.claim.text, text, f'{tested.claim.margin:g}', tested.verdict])
    return markdown_table(table)


def _machines(results: Sequence[Result]) -> str:
    return ', '.join(sorted({f'{result["machine"]} (torch {result["torch"]}, timm {result["timm"]})'
                             for result in results}))


def _means(study: Study, results: Sequence[Result]) -> str:
    return markdown_table([['', *study.columns.values()], *(
        [study.title(row), *(_mean(list(values_of(results, row, column).values())) for column in study.columns)]
        for row in rows_in(study, results))])


def _mean(values: Sequence[float]) -> str:
    if not values:
        return '–'
    return f'{fmean(values):.1f} ± {stdev(values):.1f}' if len(values) > 1 else f'{values[0]:.1f}'


def _differences(study: Study, results: Sequence[Result]) -> str:
    table = [['', *study.columns.values()]]
    for row in rows_in(study, results):
        if row != study.reference:
            table.append([study.title(row), *(
                _difference(results, row, study.reference, column) for column in study.columns)])
    return markdown_table(table)


def _difference(results: Sequence[Result], row: str, other: str, column: str) -> str:
    found = difference(results, row, other, column)
    if found is None:
        return '–'
    text = f'{found.mean:+.2f} ± {found.margin():.2f}'
    return f'**{text}**' if abs(found.mean) > found.margin() else text


def _by_chance(study: Study, results: Sequence[Result]) -> str:
    number = sum(difference(results, row, study.reference, column) is not None for row in rows_in(study, results)
                 for column in study.columns if row != study.reference)
    return f'Of {number} differences, one in twenty would be bold by chance.'
