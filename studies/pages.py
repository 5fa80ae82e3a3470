"""Writes what was measured into the pages: `python -m studies.pages`, in the root of the repository.

A page names what it wants: `<!-- measured: fashion-mnist: joint | advprop-2 -->` how these rows of a study differ from
its reference, `<!-- measured: fashion-mnist: claims -->` its claims. What stands between this line and
`<!-- /measured -->` is replaced.
"""
import argparse
import os
import re
from glob import glob
from typing import Optional, Sequence

from timm_advprop.errors import InputError, exits_on_input_error
from timm_advprop.output import replacing

from .comparison.costs import kept_costs
from .comparison.job import Job
from .comparison.program import STUDIES
from .comparison.report import claims_table, rows_in, summary_table
from .comparison.study import Study
from .comparison.table import Table
from .trained import check_root

__all__ = ['PAGES', 'fill_in', 'main']

PAGES = ('README.md', 'docs/*.md', 'docs/*/*.md')
_RESULTS = 'results'
_MEASURED = re.compile(r'(<!-- measured: (.+?) -->\n).*?(<!-- /measured -->)', re.DOTALL)


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
    def measured(match: re.Match) -> str:
        name, _, rows = match[2].partition(': ')
        if name not in STUDIES:
            raise InputError(f'{page} wants measurements of {name}, the studies are {", ".join(STUDIES)}.')
        return f'{match[1]}\n{_tables(STUDIES[name], rows.split(" | "), page)}\n\n{match[3]}'
    return _MEASURED.sub(measured, text)


def _tables(study: Study, rows: Sequence[str], page: str) -> str:
    path = os.path.join(_RESULTS, study.file_name)
    results = Table(f'{path}.csv').results([Job(study, row, seed, '') for seed in study.seeds for row in study.rows])
    if rows == ['claims']:
        return claims_table(study, results)
    missing = [row for row in rows if row not in rows_in(study, results)]
    if missing:
        raise InputError(f'{page} wants row {missing[0]!r} of {study.name}, of which {path}.csv has no results.')
    other = study.title(study.reference)
    table = summary_table(study, results, kept_costs(f'{path}_costs.csv', study), rows)
    return (f'{study.about}. Points more than {other}, paired by seed, with 95 % confidence intervals; **bold** where '
            f'that leaves out zero. Cost: relative to {other}.\n\n{table}')


if __name__ == '__main__':
    main()
