"""The studies of solar cells: what their rows start from, and that pre-training is shared."""
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from studies.comparison import program, runner
from studies.comparison.job import Job
from studies.comparison.measures import Measures
from studies.comparison.rows import Rates, Row, rows_of_rates
from studies.comparison.table import Table
from studies.solar_cells import STUDIES
from studies.trained import open_trained
from timm_advprop.cli.train import parse_args
from timm_advprop.engine.datasets import resolve_image_config
from timm_advprop.engine.placement import Placement
from timm_advprop.engine.training import build_model, build_task, check_settings
from timm_advprop.errors import InputError

ROOT = Path(__file__).parents[2]
TUNED = STUDIES['solar-cells-fine-tuning']
STARTED = [row for row in TUNED.rows if TUNED.rows[row].start]
pytestmark = pytest.mark.usefixtures('one_thread', 'in_root')


def save_checkpoint(path, flags):
    """A checkpoint of an untrained model, as the training program leaves it."""
    settings, placement = parse_args(flags), Placement(torch.device('cpu'))
    model = build_model(settings, placement)
    build_task(settings, model, resolve_image_config(settings.image, model), placement)  # splits norms
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=model.state_dict(), args=Namespace(**settings.given), arch=settings.model.model,
                    epoch=0), path)


@pytest.fixture
def programs(monkeypatch):
    """Command lines of the training program, each of which leaves an untrained model. Nothing is measured."""
    commands = []

    def run(job, flags, folder):
        commands.append(list(flags))
        save_checkpoint(Path(folder, 'last.pth.tar'), flags)
        Path(folder, 'summary.csv').write_text('epoch,eval_top1\n0,70\n')

    monkeypatch.setattr(Job, '_run_program', run)
    monkeypatch.setattr(Measures, '__call__', lambda *args: {'': dict(clean=70.)})
    return commands


class _Now:
    # A pool that works at once, in this process.
    def __init__(self, *args):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def submit(self, work):
        future = runner.Future()
        future.set_result(work())
        return future


def test_rows_are_command_lines_of_the_training_program(data):
    for study in (*STUDIES.values(), TUNED.pretraining):
        for row in study.rows:
            for flags in study.commands(row):
                settings = parse_args([*flags, '--data-dir', data])
                check_settings(settings)
                assert settings.data.val_split == 'holdout'
        assert study.reference in study.rows
        assert all({claim.row, claim.other} <= study.rows.keys() for claim in study.claims)
        assert all({claim.column} <= study.columns.keys() for claim in study.claims)


def test_settings_are_chosen_on_held_out_images_with_seeds_of_their_own():
    choice, compared = STUDIES['solar-cells-choice'], STUDIES['solar-cells']
    assert choice.measures.split == 'holdout' and compared.measures.split == 'validation'
    assert not set(choice.seeds) & set(compared.seeds)


@pytest.mark.parametrize('row', TUNED.rows)
def test_routes_that_are_measured_are_trained(row):
    # Rows that measure a route through auxiliary norms are those whose last run trains them.
    *_, flags = TUNED.commands(row)
    assert (parse_args(flags).regime.regime == 'advprop') == bool(TUNED.rows[row].aux)


def test_pretraining_is_done_once_for_the_rows_that_start_from_it(tmp_path, programs, monkeypatch, capsys):
    monkeypatch.setattr(runner, 'ProcessPoolExecutor', _Now)
    jobs = [Job(TUNED, row, seed, str(tmp_path)) for seed in (0, 1) for row in STARTED]
    runner.run_jobs(jobs, Table(str(tmp_path / 'table.csv')), 1)
    recipes = [flags[flags.index('--config') + 1] for flags in programs]
    assert recipes == [TUNED.pretraining.recipe] * 4 + [TUNED.recipe] * 8
    assert capsys.readouterr().out.count('/4] pre-training, ') == 4
    runner.run_jobs(jobs, Table(str(tmp_path / 'table.csv')), 1)
    assert len(programs) == 12


def test_each_row_starts_from_weights_of_its_seed_with_a_new_classifier(tmp_path, programs):
    for row in STARTED:
        job = Job(TUNED, row, 0, str(tmp_path))
        start = open_trained(job.start.checkpoint()).model.state_dict()
        tuned = open_trained(job.checkpoint()).model.state_dict()
        kept = [name for name in start if '.aux_bn.' not in name and not name.startswith('fc.')]
        assert kept and all(torch.equal(tuned[name], start[name]) for name in kept)
        assert (len(start['fc.weight']), len(tuned['fc.weight'])) == (10, 2)
        path = programs[-1][programs[-1].index('--pretrained-path') + 1]
        assert path == job.start.checkpoint() and '-seed0-' in path


def test_auxiliary_norms_of_pretraining_are_kept(tmp_path, programs):
    job = Job(TUNED, 'advprop-advprop', 0, str(tmp_path))
    path = Path(job.start.checkpoint())
    checkpoint = torch.load(path, weights_only=False)
    for name, value in checkpoint['state_dict'].items():
        if '.aux_bn.' in name and name.endswith('weight'):
            value.fill_(3.)
    torch.save(checkpoint, path)
    tuned = open_trained(job.checkpoint()).model.state_dict()
    weights = [value for name, value in tuned.items() if '.aux_bn.' in name and name.endswith('weight')]
    assert weights and all((value == 3).all() for value in weights)


def test_results_depend_on_what_they_start_from(tmp_path):
    more = replace(TUNED, pretraining=replace(TUNED.pretraining, flags=('--epochs', '9')))
    for row in TUNED.rows:
        jobs = [Job(study, row, 0, str(tmp_path)) for study in (TUNED, more)]
        assert (jobs[0].settings != jobs[1].settings) == bool(TUNED.rows[row].start)


def test_rows_without_pretraining_are_trainings_of_the_other_study(tmp_path):
    for row in ('vanilla', 'advprop-2'):
        assert Job(TUNED, row, 0, str(tmp_path))._training() == Job(
            STUDIES['solar-cells'], row, 0, str(tmp_path))._training()


def test_later_runs_of_a_row_start_from_the_one_before(tmp_path, programs):
    row = Row('', tuple(['--regime', regime] for regime in ('vanilla', 'vanilla')), start='vanilla')
    Job(replace(TUNED, rows={'two': row}), 'two', 0, str(tmp_path)).checkpoint()
    _, first, second = programs
    assert '--pretrained-path' in first and '--initial-checkpoint' not in first
    assert '--pretrained-path' not in second and second[second.index('--initial-checkpoint') + 1].endswith(
        'two-seed0-0/last.pth.tar')


@pytest.fixture
def written(monkeypatch):
    """Folders that data sets are written to, and their sources. Nothing runs."""
    written = []

    def write(folder, source=None):
        written.append((folder, source))

    def interrupt(*args):
        raise KeyboardInterrupt

    for study in STUDIES.values():
        pretraining = study.pretraining and replace(study.pretraining, write_data=write)
        monkeypatch.setitem(program.STUDIES, study.name, replace(study, write_data=write, pretraining=pretraining))
    monkeypatch.setattr(program, 'run_jobs', interrupt)
    return written


@pytest.mark.parametrize('flags, sources', [((), (None, None)), (('--source', 'a', 'b'), ('a', 'b'))])
def test_both_data_sets_are_written(tmp_path, written, flags, sources):
    with pytest.raises(SystemExit) as stopped:
        program.main(['solar-cells-fine-tuning', '--output', str(tmp_path), *flags])
    assert stopped.value.code == 130
    folders = [str(tmp_path / name) for name in ('solar-cells-64', 'fashion-mnist-20000')]
    assert written == list(zip(folders, sources))


def test_more_sources_than_data_sets_are_refused(tmp_path, written, capsys):
    with pytest.raises(SystemExit):
        program.main(['solar-cells', '--output', str(tmp_path), '--source', 'a', 'b'])
    assert '--source: solar-cells has 1 data set(s), got 2 folders.' in capsys.readouterr().err


@pytest.mark.slow
def test_published_weights_that_cannot_be_had_end_the_study_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'cache'))
    data = tmp_path / STUDIES['solar-cells-published'].data
    for split in ('train', 'holdout'):
        (data / split / 'a').mkdir(parents=True)
    with pytest.raises(InputError, match=r'^model.safetensors of .*HF_HUB_OFFLINE.* failed with status 2: see '):
        Job(STUDIES['solar-cells-published'], 'advprop-vanilla', 0, str(tmp_path)).checkpoint()


def test_published_models_have_published_weights():
    for row in STUDIES['solar-cells-published'].rows.values():
        name = row.phases[0][row.phases[0].index('--model') + 1]
        assert timm.models.get_pretrained_cfg(name).has_weights


def test_rates_are_those_of_the_regime():
    rates = Rates(one_loss=('1', '2'), summed=('3', '4'))
    assert rates.flags('vanilla', '--a') == ['--regime', 'vanilla', '--lr', '1', '--weight-decay', '2', '--a']
    assert rates.advprop('title', start='x') == Row(
        'title', (['--regime', 'advprop', '--lr', '3', '--weight-decay', '4'],), aux=1, start='x')
    assert rows_of_rates('name', Row('Title', (['--a'],), start='x'), [('5', '6')]) == {
        'name-lr5-wd6': Row('Title, rate 5, decay 6', (['--a', '--lr', '5', '--weight-decay', '6'],), start='x')}
