"""`python -m studies NAME`: run a study, or go on with it, and write its tables and pictures."""
import os
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Iterator, Optional, Sequence, Tuple

from timm_advprop.cli.parser import ProgramParser
from timm_advprop.engine.figures import new_figure
from timm_advprop.engine.locks import locked
from timm_advprop.errors import InputError, exits_on_input_error
from timm_advprop.output import replacing
from timm_advprop.settings import Settings, setting

from .. import fashion_mnist, solar_cells
from ..trained import check_root
from .charts import draw_study
from .costs import Costs, keep_costs, kept_costs
from .job import study_jobs
from .report import render_report
from .runner import run_jobs
from .study import Study
from .table import Table

__all__ = ['STUDIES', 'main']

STUDIES = {**fashion_mnist.STUDIES, **solar_cells.STUDIES}


@dataclass(frozen=True)
class StudySettings(Settings):
    """What is run, and where it is kept."""
    title = 'Study parameters'
    output: str = setting('output/studies', 'folder of the runs', metavar='DIR')
    results: str = setting('results', 'folder of the tables and pictures', metavar='DIR')
    rows: Tuple[str, ...] = setting((), 'train these rows alone', nargs='+', metavar='ROW', default_help='all')
    seeds: Tuple[int, ...] = setting(
        (), 'seeds', low=0, nargs='+', metavar='S', default_help='those of the study')
    jobs: int = setting(os.cpu_count(), 'trainings at a time', low=1, metavar='N', default_help='one for each CPU')
    report: bool = setting(False, 'train nothing: write tables and pictures of what is finished')
    source: Tuple[str, ...] = setting(
        (), 'folders of the data sets\' sources, that of pre-training last', nargs='+', metavar='FOLDER',
        default_help='where packages put them')


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run a study, or go on with it."""
    study, settings = _parse(argv)
    check_root('a study', 'train.py', *(part.recipe for part in study.with_pretraining))
    new_figure((1, 1))  # says now, not at the end, where matplotlib is missing
    path = os.path.join(settings.results, study.file_name)
    table = Table(f'{path}.csv')
    if not settings.report:
        with _alone_in(settings.output):
            _run(study, settings, table, f'{path}_costs.csv')
    _report(study, table, kept_costs(f'{path}_costs.csv', study), path)


def _run(study: Study, settings: StudySettings, table: Table, costs: str) -> None:
    _write_data(study, settings)
    chosen = study.only(settings.rows, settings.seeds)
    jobs = study_jobs(chosen, settings.output)
    try:
        run_jobs(jobs, table, settings.jobs)
    except KeyboardInterrupt:
        print('Interrupted. The same command goes on with what is not finished.', file=sys.stderr)
        sys.exit(130)
    keep_costs(costs, study, list(chosen.rows), jobs[0].data)  # after the trainings, which would disturb the clock


@contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    os.makedirs(folder, exist_ok=True)
    with ExitStack() as until_end:
        try:
            until_end.enter_context(locked(os.path.join(folder, '.lock')))
        except BlockingIOError as error:
            raise InputError(f'Another study is running in {folder}: wait for its end, or give another --output.'
                             ) from error
        yield


def _report(study: Study, table: Table, costs: Costs, path: str) -> None:
    results = table.results(study_jobs(study))
    if not results:
        raise InputError(f'{path}.csv has no results of {study.name}: run it without --report first.')
    text = render_report(study, results, costs)
    with replacing(f'{path}.md') as temporary, open(temporary, 'w', encoding='utf-8') as file:
        file.write(text)
    print(text)
    for picture in draw_study(path, study, results):
        print(f'Picture: {picture}')


def _write_data(study: Study, settings: StudySettings) -> None:
    studies = study.with_pretraining
    if len(settings.source) > len(studies):
        raise InputError(f'--source: {study.name} has {len(studies)} data set(s), got {len(settings.source)} folders.')
    for part, source in zip_longest(studies, settings.source):
        part.write_data(os.path.join(settings.output, part.data), **(dict(source=source) if source else {}))


def _parse(argv: Optional[Sequence[str]]) -> Tuple[Study, StudySettings]:
    parser = ProgramParser(
        prog='python -m studies',
        description='Train each row of a study with several seeds, measure, and compare by seed. What is finished is '
                    'kept in the results: the same command goes on where it was stopped.')
    parser.add_argument('study', choices=tuple(STUDIES), help='the study')
    parser.add_settings(StudySettings.title, StudySettings.flags())
    values = vars(parser.parse_args(argv))
    study, settings = STUDIES[values.pop('study')], StudySettings.from_values(values)
    unknown = [row for row in settings.rows if row not in study.rows]
    if unknown:
        raise InputError(f'{study.name} has no row {unknown[0]}: its rows are {", ".join(study.rows)}.')
    # what others have found stays in the tables and pictures
    return replace(study, seeds=tuple(dict.fromkeys([*study.seeds, *settings.seeds]))), settings
