"""Studies: what is kept and done again, what is measured, and what the report says."""
import csv
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import timm_advprop
from studies.comparison import costs, program, runner
from studies.comparison import job as job_module
from studies.comparison.charts import draw_study
from studies.comparison.corrupted import corrupted_images, evenly
from studies.comparison.costs import keep_costs, kept_costs, measure_costs
from studies.comparison.job import Job, _last_epoch, asked_for
from studies.comparison.measures import Measures
from studies.comparison.program import STUDIES
from studies.comparison.report import render_report
from studies.comparison.rows import Row
from studies.comparison.scores import SCORES
from studies.comparison.table import Table
from studies.trained import open_trained
from timm_advprop.cli.train import parse_args
from timm_advprop.engine.placement import Placement
from timm_advprop.engine.training import check_settings
from timm_advprop.errors import InputError

ROOT = Path(__file__).parents[2]
CPU = Placement(torch.device('cpu'))
STUDY = STUDIES['fashion-mnist']
pytestmark = pytest.mark.usefixtures('one_thread', 'in_root')


@pytest.fixture
def checkpoint(tmp_path, randomize_norms):
    model = timm_advprop.convert_split_norm(timm.create_model('test_resnet', in_chans=1, num_classes=10)).eval()
    randomize_norms(model)
    args = Namespace(**parse_args(['--config', STUDY.recipe]).given)
    torch.save(dict(state_dict=model.state_dict(), args=args, arch='test_resnet', epoch=0), tmp_path / 'last.pth.tar')
    return str(tmp_path / 'last.pth.tar')


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Trainings and measurements of jobs, which take no time here."""
    calls = []

    def train(job):
        calls.append('train')
        (tmp_path / 'last.pth.tar').touch()
        return dict(training=job._training(), checkpoint=str(tmp_path / 'last.pth.tar'), holdout=80., epochs=40,
                    seconds=1, commit='abc', timm='1', torch='2', machine='CPU')

    def measure(*args):
        calls.append('measure')
        if calls.count('measure') == 1 and 'fail' in calls:
            raise KeyboardInterrupt
        return {'': dict(clean=70.), ', blend 0.5': dict(clean=71.)}

    monkeypatch.setattr(Job, '_train', train)
    monkeypatch.setattr(Measures, '__call__', measure)
    return calls


def _job(tmp_path, study=STUDY, row='advprop-2', seed=0):
    return Job(study, row, seed, str(tmp_path))


def test_a_result_says_what_made_it(tmp_path, calls):
    of_row, of_blend = _job(tmp_path).run()
    assert (of_row['row'], of_row['clean'], of_row['seed'], of_row['commit']) == ('advprop-2', 70., 0, 'abc')
    assert (of_blend['row'], of_blend['clean'], of_blend['holdout']) == ('advprop-2, blend 0.5', 71., 80.)


def test_an_interrupted_measurement_does_not_train_again(tmp_path, calls):
    calls.append('fail')
    with pytest.raises(KeyboardInterrupt):
        _job(tmp_path).run()
    _job(tmp_path).run()
    assert calls == ['fail', 'train', 'measure', 'measure']


def test_finished_work_is_read_from_the_table(tmp_path, calls):
    jobs = [_job(tmp_path), _job(tmp_path, row='vanilla')]
    table = Table(str(tmp_path / 'table.csv'))
    table.add(jobs[0].run())
    again = Table(str(tmp_path / 'table.csv'))
    assert again.rows == table.rows and len(again.results(jobs)) == 2
    again.add(jobs[0].run())
    assert len(Table(str(tmp_path / 'table.csv')).rows) == 2  # in place of the former ones


@pytest.mark.parametrize('change', [
    lambda study: replace(study, rows={'advprop-2': Row('', (['--regime', 'advprop', '--adv-eps', '9'],), aux=1)}),
    lambda study: replace(study, flags=('--epochs', '3')),
    lambda study: replace(study, measures=Measures(num_attacked=20)),
    lambda study: replace(study, rows={'advprop-2': replace(study.rows['advprop-2'], blends=(0.1,))}),
])
def test_results_of_other_settings_are_not_taken(tmp_path, calls, change):
    table = Table(str(tmp_path / 'table.csv'))
    table.add(_job(tmp_path).run())
    assert table.results([_job(tmp_path)])
    assert not table.results([_job(tmp_path, study=change(STUDY))])


def test_studies_of_the_same_trainings_share_them(tmp_path, calls):
    _job(tmp_path).run()
    _job(tmp_path, study=STUDIES['fashion-mnist-autoattack']).run()
    assert calls == ['train', 'measure', 'measure']


def test_a_file_that_is_no_table_is_left_alone(tmp_path):
    (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
    with pytest.raises(InputError, match='no table of a study'):
        Table(str(tmp_path / 'other.csv'))


def test_a_training_that_fails_names_its_log(tmp_path):
    with pytest.raises(InputError, match=r'failed with status 2: see .*\.log') as error:  # there is no data set
        _job(tmp_path, row='vanilla').run()
    assert 'No data folder' in Path(str(error.value).rpartition('see ')[2].rstrip('.')).read_text()


@pytest.mark.parametrize('study', STUDIES.values(), ids=STUDIES)
def test_rows_are_command_lines_of_the_training_program(study, data):
    for row in study.rows:
        for flags in study.commands(row):
            settings = parse_args([*flags, '--data-dir', data])
            check_settings(settings)
            assert settings.data.val_split == 'holdout'
    assert all({claim.row, claim.other} <= study.rows.keys() for claim in study.claims)


def test_what_is_compared_differs_in_what_the_claim_names():
    attacks = {row: parse_args(STUDY.commands(row)[0]).regime.strengths for row in ('joint', 'advprop-2', 'madry')}
    assert len(set(attacks.values())) == 1
    rates = {row: parse_args(STUDY.commands(row)[0]).optimizer for row in ('joint', 'advprop-2', 'fine-grained')}
    assert len({(rate.lr, rate.weight_decay) for rate in rates.values()}) == 1


def test_the_test_set_is_left_alone_where_settings_are_chosen():
    assert {STUDIES[name].measures.split for name in STUDIES if 'choice' in name or 'ablations' in name} == {'holdout'}
    reported = {seed for name, study in STUDIES.items() if 'choice' not in name for seed in study.seeds}
    assert not reported & {seed for name, study in STUDIES.items() if 'choice' in name for seed in study.seeds}


def test_accuracy_is_measured_for_each_strength_and_route(data, checkpoint):
    measures = Measures(num_corrupted=4, num_attacked=8, strengths=(2, 8), steps=2)
    found = measures(checkpoint, data, Row('', ([],), aux=1, blends=(0., 1.)), CPU)
    corruptions = ['corruption', *(f'corruption_{group}' for group in ('noise', 'blur', 'weather', 'digital'))]
    main = {'clean', 'ece', *corruptions, 'pgd2_main', 'pgd8_main'}
    assert found[''].keys() == main | {'clean_aux', 'pgd2_aux', 'pgd8_aux'}
    assert all(0 <= value <= 100 for value in found[''].values())
    assert found[', blend 0'] == {name: found[''][name] for name in main}  # the plain model of the main norms
    assert found[', blend 1']['pgd8_main'] == found['']['pgd8_aux']
    assert found[', blend 1']['ece'] != found['']['ece']


def test_clean_images_are_measured_through_both_routes(data, checkpoint, monkeypatch):
    monkeypatch.setitem(SCORES, 'top1', lambda logits, labels: logits.softmax(1).amax(1).mean().item())
    measures = Measures(num_corrupted=0, num_attacked=0)
    found = measures(checkpoint, data, Row('', ([],), aux=1, blends=(1.,)), CPU)
    assert found['']['clean_aux'] == pytest.approx(found[', blend 1']['clean']) != found['']['clean']


@pytest.mark.slow
def test_autoattack_is_measured_through_both_routes(data, checkpoint):
    measures = Measures(num_corrupted=0, num_attacked=0, num_autoattacked=4)
    found = measures(checkpoint, data, Row('', ([],), aux=1), CPU)['']
    assert found.keys() == {'clean', 'ece', 'clean_aux', 'autoattack_main', 'autoattack_aux'}


@pytest.mark.parametrize('num_images, num_chosen, expected', [(10, 5, [0, 2, 4, 6, 8]), (3, 5, [0, 1, 2]),
                                                              (5, 3, [0, 1, 3])])
def test_images_are_chosen_evenly(num_images, num_chosen, expected):
    assert evenly(num_images, num_chosen) == expected


def test_corrupted_images_are_made_once(data, checkpoint, monkeypatch):
    measures = Measures(num_corrupted=4, num_attacked=0)
    first = measures(checkpoint, data, Row('', ([],)), CPU)
    monkeypatch.setattr('studies.comparison.corrupted.Corruption', None)  # they are read, not made again
    assert measures(checkpoint, data, Row('', ([],)), CPU) == first
    trained = open_trained(checkpoint)
    larger = trained._replace(config={**trained.config, 'input_size': (1, 30, 30)})
    with pytest.raises(TypeError, match='NoneType'):  # others are
        corrupted_images(larger, data, 'validation', 4)


def test_costs_are_those_of_whole_trainings_and_kept(data, tmp_path, monkeypatch):
    def time_in_turn(cases, rounds, device):
        for step in cases.values():
            step()
        return {(row, phase): [2. if (row, phase) == ('pretraining', 0) else 1.] for row, phase in cases}
    monkeypatch.setattr('studies.comparison.costs.time_in_turn', time_in_turn)
    expected = {'vanilla': 1., 'vanilla-long': 107 / 40, 'pretraining': 1.5}
    assert measure_costs(STUDY, list(expected), data, rounds=1) == expected
    path = str(tmp_path / 'costs.csv')
    keep_costs(path, STUDY, ['pretraining'], data)
    assert kept_costs(path, STUDY) == {'pretraining': 1.5}  # relative to a reference that is not among them
    keep_costs(path, STUDY, list(expected), data)
    monkeypatch.setattr('studies.comparison.costs.measure_costs', None)
    keep_costs(path, STUDY, ['vanilla-long', 'vanilla'], data)
    assert kept_costs(path, STUDY) == pytest.approx(expected, abs=1e-3)
    changed = replace(STUDY, flags=('--epochs', '3'))
    assert kept_costs(path, changed) == {} and kept_costs(str(tmp_path / 'none.csv'), STUDY) == {}


def test_costs_are_those_of_the_recipe_as_it_was(tmp_path):
    recipe, path = tmp_path / 'recipe.yaml', tmp_path / 'costs.csv'
    recipe.write_text('epochs: 2\n')
    study = replace(STUDY, recipe=str(recipe))
    path.write_text(f'row,cost,settings\nmadry,2.0,{costs._settings(study, "madry")}\n')
    assert kept_costs(str(path), study) == {'madry': 2.}
    recipe.write_text('epochs: 3\n')
    asked_for.cache_clear()
    assert kept_costs(str(path), study) == {}


def _leave(*anything):
    pass


def _results(study, **gains):
    # Of each row and seed; a row is better by what `gains` says.
    results = []
    for row in study.rows:
        for seed in range(3):
            values = {column: 70. + seed + gains.get(row.replace('-', '_'), 0) + 0.01 * seed * len(row)
                      for column in (*study.columns, 'pgd2_main', 'pgd2_aux')}
            results.append(dict(row=row, seed=seed, holdout=80., commit='abc', machine='CPU', torch='2', timm='1',
                                **values))
            if study.rows[row].blends:
                results.append(dict(results[-1], row=f'{row}, blend 0.5'))
    return results


def test_the_report_has_all_rows_and_claims():
    text = render_report(STUDY, _results(STUDY, advprop_1=2.), {'vanilla': 1., 'advprop-1': 2.8})
    lines = {line.split('|')[1].strip(): line for line in text.splitlines() if line.startswith('|')}
    assert all(study_row.title in lines for study_row in STUDY.rows.values())
    assert '50% of aux blended in' in text and ' 3 seeds' in text and '2.80' in text
    assert all(claim.text in lines for claim in STUDY.claims)
    assert '| reproduced' in lines['AdvProp of eps 1 improves clean accuracy']


def test_a_report_of_what_is_there_so_far():
    results = [result for result in _results(STUDY) if result['row'] in ('vanilla', 'madry') and result['seed'] < 2]
    text = render_report(STUDY, results[:-1], {})
    assert '1 to 2 seeds' in text and 'not measured' in text


def test_pictures(tmp_path):
    paths = draw_study(str(tmp_path / 'a'), STUDY, _results(STUDY, advprop_1=2.))
    assert paths == [str(tmp_path / f'a_{name}.png') for name in ('differences', 'trade_off', 'strength')]
    assert all(Path(path).stat().st_size > 10_000 for path in paths)
    assert draw_study(str(tmp_path / 'b'), STUDIES['fashion-mnist-choice'], _results(STUDY)) == []


def test_an_unknown_row_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(['fashion-mnist', '--rows', 'advprop-9'])
    assert stop.value.code == 2 and 'no row advprop-9' in capsys.readouterr().err


def test_a_study_says_where_it_belongs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        program.main(['fashion-mnist'])
    assert stop.value.code == 2 and 'root of the repository' in capsys.readouterr().err


def test_a_folder_of_runs_is_for_one_study_at_a_time(tmp_path, capsys):
    holder = ('import sys, time; from studies.comparison.program import _alone_in\n'
              'with _alone_in(sys.argv[1]): print(flush=True); time.sleep(60)')
    with subprocess.Popen([sys.executable, '-c', holder, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as other:
        other.stdout.readline()
        with pytest.raises(SystemExit) as stop:
            program.main(['fashion-mnist', '--output', str(tmp_path), '--results', str(tmp_path / 'results')])
        other.kill()
    assert stop.value.code == 2 and 'Another study is running in' in capsys.readouterr().err


def test_a_part_of_a_study_leaves_the_rest_of_its_report(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(program, '_run', _leave)
    table = Table(str(tmp_path / 'fashion_mnist.csv'))
    for row, seed in (('vanilla', 0), ('madry', 0), ('madry', 9)):
        results, = _job(tmp_path, row=row, seed=seed).run()[:1]
        table.add([dict(results, **{column: 70. for column in STUDY.columns})])
    program.main(['fashion-mnist', '--output', str(tmp_path), '--results', str(tmp_path), '--rows', 'madry', '--seeds',
                  '9'])
    text = (tmp_path / 'fashion_mnist.md').read_text()
    assert '| vanilla |' in text and '| Madry, eps 2 |' in text and '1 to 2 seeds' in text


def test_a_report_of_what_is_finished_trains_nothing(tmp_path, calls, monkeypatch, capsys):
    arguments = ['fashion-mnist', '--results', str(tmp_path), '--output', str(tmp_path / 'none'), '--report']
    with pytest.raises(SystemExit) as stop:
        program.main(arguments)
    assert stop.value.code == 2 and 'has no results' in capsys.readouterr().err
    table = Table(str(tmp_path / 'fashion_mnist.csv'))
    for row in ('vanilla', 'madry'):
        results, = _job(tmp_path, row=row).run()[:1]
        table.add([dict(results, **{column: 70. for column in STUDY.columns})])
    calls.clear()
    program.main(arguments)
    assert not calls and not (tmp_path / 'none').exists()
    assert (tmp_path / 'fashion_mnist.md').read_text().strip() in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_runs_and_goes_on(data, tmp_path, monkeypatch, capsys):
    study = replace(STUDY.only(('vanilla', 'advprop-1'), (0, 1)), write_data=_leave,
                    measures=Measures(num_corrupted=0, num_attacked=4, steps=1),
                    flags=('--epochs', '1', '--warmup-epochs', '0', '--batch-size', '20'))
    monkeypatch.setitem(STUDIES, 'fashion-mnist', study)
    arguments = ['fashion-mnist', '--output', str(tmp_path), '--results', str(tmp_path / 'results'), '--jobs', '2']
    program.main([*arguments, '--seeds', '0', '--rows', 'advprop-1'])
    assert '0 of 1 trainings' in capsys.readouterr().out
    program.main(arguments)
    shown = capsys.readouterr().out
    assert '1 of 4 trainings are finished already' in shown and '| vanilla' in shown
    with open(tmp_path / 'results' / 'fashion_mnist.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert {(row['row'], row['seed']) for row in rows if 'blend' not in row['row']} == {
        (row, seed) for row in ('vanilla', 'advprop-1') for seed in '01'}
    assert all(row['commit'] and row['torch'] == torch.__version__ for row in rows)


def test_one_thread_by_default(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    runner.start_process()
    assert torch.get_num_threads() == 1 and job_module.os.environ['OMP_NUM_THREADS'] == '1'


def test_epochs_are_those_trained_not_those_validated(tmp_path):
    # of the only epoch that was validated, with columns that it leaves empty
    (tmp_path / 'summary.csv').write_text('epoch,eval_top1,eval_aux_top1\n39,85.5,\n')
    last = _last_epoch(str(tmp_path))
    assert (int(last['epoch']) + 1, float(last['eval_top1'])) == (40, 85.5)
