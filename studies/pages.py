"""Writes what was measured into the pages: `python -m studies.pages`, in the root of the repository.

A page names what it wants: `<!-- measured: fashion-mnist: joint | advprop-2 -->` how these rows of a study differ from
its reference, `<!-- measured: fashion-mnist: claims -->` its claims. What stands between this line and
`<!-- /measured -->` is replaced.

In running text a figure is replaced that stands right before where it is from: `+0.9 ± 0.3<!-- fashion-mnist / joint /
clean -->` is the difference to the reference and its 95 % interval, `86.2<!-- … -->` the mean, and the column may be
`cost`. A figure keeps its number of decimals.
"""
import argparse
import os
import re
from glob import glob
from statistics import fmean
from typing import List, Optional, Sequence, Tuple

from timm_advprop.errors import InputError, exits_on_input_error
from timm_advprop.output import replacing

from .comparison.costs import Costs, kept_costs
from .comparison.differences import difference, values_of
from .comparison.job import Result, study_jobs
from .comparison.program import STUDIES
from .comparison.report import claims_table, rows_in, summary_table
from .comparison.study import Study
from .comparison.table import Table
from .trained import check_root

__all__ = ['PAGES', 'fill_in', 'main']

PAGES = ('README.md', 'docs/*.md', 'docs/*/*.md')
_RESULTS = 'results'
_TABLES = re.compile(r'(<!-- measured: (.+?) -->\n).*?(<!-- /measured -->)', re.DOTALL)
_FIGURE = re.compile(r'([+−-])?\d+(?:\.(\d+))?( ± [\d.]+)?(<!-- ([\w-]+) / ([^/]+) / (\w+) -->)')


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Bring all pages up to date."""
    argparse.ArgumentParser(prog='python -m studies.pages', description=__doc__.splitlines()[0]).parse_args(argv)
    check_root('the pages', 'README.md')
    for page in sorted(page for pattern in PAGES for page in glob(pattern)):
        with open(page, encoding='utf-8') as file:
            text = file.read()
        filled = fill_in(text, page)
        if filled != text:
            with replacing(page) as temporary, open(temporary, 'w', encoding='utf-8') as file:
                file.write(filled)
            print(page)


def fill_in(text: str, page: str) -> str:
    """A page with what was measured.

    Args:
        text: The page.
        page: Its path.

    Raises:
        InputError: It names a study or a row that there is no result of.
    """
    def tables(match: re.Match) -> str:
        name, _, rows = match[2].partition(': ')
        return f'{match[1]}\n{_tables(name, rows.split(" | "), page)}\n\n{match[3]}'

    def figure(match: re.Match) -> str:
        sign, decimals, margin, source, name, row, column = match.groups()
        if sign and not margin:
            raise InputError(f'{page} has a difference without its interval: {match[0]}')
        return _figure(name, row, column, bool(margin), len(decimals or ''), page) + source
    return _FIGURE.sub(figure, _TABLES.sub(tables, text))


def _tables(name: str, rows: Sequence[str], page: str) -> str:
    study, results, costs = _measured(name, () if rows == ['claims'] else rows, page)
    if rows == ['claims']:
        return claims_table(study, results)
    other = study.title(study.reference)
    attack = f' {study.measures.describe_pgd()} images.' if study.measures.num_attacked else ''
    return (f'{study.about}.{attack} Points more than {other}, paired by seed, with 95 % confidence intervals; '
            f'**bold** where that leaves out zero. Cost: time of all training steps, relative to {other}.\n\n'
            f'{summary_table(study, results, costs, rows)}')


def _figure(name: str, row: str, column: str, is_difference: bool, decimals: int, page: str) -> str:
    study, results, costs = _measured(name, [row], page)
    values = [costs[row]] if column == 'cost' and row in costs else list(values_of(results, row, column).values())
    if column != 'cost' and 0 < len(values) < len(study.seeds):
        raise InputError(f'{page} wants {column} of row {row!r} of {name}, which is not finished.')
    found = difference(results, row, study.reference, column) if is_difference else None
    if not values or is_difference and found is None:
        raise InputError(f'{page} wants {column} of row {row!r} of {name}, which was not measured.')
    if found is None:
        return f'{fmean(values):.{decimals}f}'
    mean = f'{found.mean:+.{decimals}f}'.replace('-', '−')
    return f'{mean if float(mean[1:]) else mean[1:]} ± {found.margin():.{decimals}f}'


def _measured(name: str, rows: Sequence[str], page: str) -> Tuple[Study, List[Result], Costs]:
    if name not in STUDIES:
        raise InputError(f'{page} wants measurements of {name}, the studies are {", ".join(STUDIES)}.')
    study, path = STUDIES[name], os.path.join(_RESULTS, STUDIES[name].file_name)
    results = Table(f'{path}.csv').results(study_jobs(study))
    missing = [row for row in rows if row not in rows_in(study, results)]
    if missing:
        raise InputError(f'{page} wants row {missing[0]!r} of {name}, of which {path}.csv has no results.')
    return study, results, kept_costs(f'{path}_costs.csv', study)


if __name__ == '__main__':
    main()
