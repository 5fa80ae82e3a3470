"""The study: what is kept and done again, what is measured, and what the report says."""
import csv
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch

import timm_advprop
from studies.fashion_mnist import charts, study
from studies.fashion_mnist import job as job_module
from studies.fashion_mnist.accuracy import STRENGTHS, measure_accuracy
from studies.fashion_mnist.beyond import BEYOND
from studies.fashion_mnist.costs import measure_costs
from studies.fashion_mnist.job import Job
from studies.fashion_mnist.report import write_report
from studies.fashion_mnist.rows import CANDIDATES, EPOCHS, RECIPE, ROWS, Row
from timm_advprop.cli.train import parse_args
from timm_advprop.engine.placement import Placement

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures('one_thread', 'in_root')


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def data(few_digits, tmp_path):
    # real digits under the study's names of splits
    folder = tmp_path / 'data'
    shutil.copytree(few_digits, folder)
    shutil.copytree(folder / 'validation', folder / 'holdout')
    return str(folder)


def _job(tmp_path, **changes):
    settings = dict(name='advprop', row=ROWS['advprop'], seed=0, output=str(tmp_path), data='data', num_attacked=10)
    return Job(**{**settings, **changes})


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Trainings and measurements of jobs, which take no time here."""
    calls = []

    def train(job):
        calls.append('train')
        (tmp_path / 'last.pth.tar').touch()
        return dict(training=job.training_digest(), checkpoint=str(tmp_path / 'last.pth.tar'), holdout_top1=80.)

    def measure(*args):
        calls.append('measure')
        if calls.count('measure') == 1 and 'fail' in calls:
            raise KeyboardInterrupt
        return dict(clean_top1=70.)

    monkeypatch.setattr(Job, '_train', train)
    monkeypatch.setattr(job_module, 'measure_accuracy', measure)
    return calls


def test_finished_work_is_kept(tmp_path, calls):
    job = _job(tmp_path)
    assert job.saved_result() is None
    assert job.run()['clean_top1'] == 70.
    assert _job(tmp_path).saved_result()['clean_top1'] == 70. and calls == ['train', 'measure']


def test_an_interrupted_measurement_does_not_train_again(tmp_path, calls):
    calls.append('fail')
    with pytest.raises(KeyboardInterrupt):
        _job(tmp_path).run()
    assert _job(tmp_path).saved_result() is None
    _job(tmp_path).run()
    assert calls == ['fail', 'train', 'measure', 'measure']


@pytest.mark.parametrize('changes, again', [
    (dict(row=Row((['--regime', 'advprop', '--adv-eps', '9'],), 'AdvProp', aux=1)), ['train', 'measure']),
    (dict(num_attacked=20), ['measure']),
])
def test_changed_settings_do_again_what_they_change(tmp_path, calls, changes, again):
    _job(tmp_path).run()
    calls.clear()
    changed = _job(tmp_path, **changes)
    assert changed.saved_result() is None
    changed.run()
    assert calls == again


def test_test_images_are_left_alone_where_settings_are_chosen(tmp_path, calls):
    assert 'clean_top1' not in _job(tmp_path, num_attacked=0).run() and calls == ['train']


@pytest.mark.parametrize('name, row', [*ROWS.items(), *CANDIDATES.items(), *BEYOND.items()])
def test_rows_are_command_lines_of_the_training_program_with_one_budget(name, row):
    parsed = [parse_args(['--config', RECIPE, *flags]) for flags in row.phases]
    assert sum(settings.schedule.epochs for settings in parsed) == EPOCHS
    assert {settings.data.val_split for settings in parsed} == {'holdout'}
    if name in ROWS:  # one attack for all
        assert {settings.regime.strengths for settings in parsed if settings.regime.regime in ('madry', 'joint')} <= {
            parse_args(ROWS['advprop'].phases[0]).regime.strengths}


def test_accuracy_is_measured_for_each_strength_and_route(data, tmp_path):
    torch.manual_seed(0)
    model = timm_advprop.convert_split_norm(timm.create_model('test_resnet', in_chans=1, num_classes=10)).eval()
    args = Namespace(**parse_args(['--config', RECIPE]).given)
    torch.save(dict(state_dict=model.state_dict(), args=args, arch='test_resnet', epoch=0), tmp_path / 'last.pth.tar')
    results = measure_accuracy(str(tmp_path / 'last.pth.tar'), data, 1, 8, Placement(torch.device('cpu')))
    groups = [f'{group}_top1' for group in ('noise', 'blur', 'weather', 'digital')]
    attacked = [f'pgd_eps{eps}_{route}_top1' for eps in STRENGTHS for route in ('main', 'aux')]
    assert set(results) == {'clean_top1', 'corruption_top1', *groups, *attacked}
    assert all(0 <= value <= 100 for value in results.values())


def test_costs_are_those_of_whole_trainings(data):
    rows = {name: ROWS[name] for name in ('vanilla', 'pretraining', 'fast-advprop')}
    costs = measure_costs(rows, data, rounds=1)
    assert costs['vanilla'] == dict(cost=1., arithmetic=1.)
    assert costs['pretraining']['arithmetic'] == pytest.approx((5 / 3 + 1) / 2)
    assert costs['fast-advprop']['arithmetic'] == pytest.approx(1.2 * round(EPOCHS / 1.2) / EPOCHS)
    assert all(cost['cost'] > 0 for cost in costs.values())


def _results(clean):
    results = []
    for name, row in ROWS.items():
        for seed, value in enumerate(clean.get(name, (80., 80.5, 81.))):
            result = dict(name=name, seed=seed, holdout_top1=82., clean_top1=value, checkpoint='run/last.pth.tar',
                          history=[dict(epoch=epoch, eval_top1=70. + epoch, train_adv_top1=60. + epoch)
                                   for epoch in range(3)])
            routes = ('main', 'aux') if row.aux else ('main',)
            result.update({f'pgd_eps{eps}_{route}_top1': value - eps for eps in STRENGTHS for route in routes})
            results.append(result)
    return results


def test_the_report_has_means_deviations_and_honest_claims(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('studies.fashion_mnist.report.draw_study', lambda folder, results: [])
    costs = {name: dict(cost=2.5, arithmetic=2.67) for name in ROWS}
    clean = dict(vanilla=(85., 86., 87.), madry=(70., 71., 72.), joint=(85.5, 86., 86.5), advprop=(70., 70.1, 70.2))
    write_report(str(tmp_path), _results(clean), costs, num_train=4000, num_attacked=1000)
    text = (tmp_path / 'fashion_mnist.md').read_text()
    assert text == capsys.readouterr().out
    assert '| vanilla | 86.0 ± 1.0 | 84.0 ± 1.0 | 78.0 ± 1.0 | – | – | 2.50 | 2.67 |' in text
    assert '| AdvProp | 70.1 ± 0.1 | 68.1 ± 0.1 | 62.1 ± 0.1 | 68.1 ± 0.1 | 62.1 ± 0.1 | 2.50 | 2.67 |' in text
    lines = {line.split(' | ')[0]: line for line in text.splitlines()}
    claim = '| Adversarial images alone lower clean accuracy'
    assert lines[claim].endswith('| +15.00 ± 0.82 | reproduced |')
    assert lines['| Adversarial images in the same norm lower clean accuracy'].endswith(
        '| +0.00 ± 0.65 | within noise |')
    assert lines['| AdvProp improves clean accuracy'].endswith('| -15.90 ± 0.58 | the opposite |')
    with open(tmp_path / 'fashion_mnist.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(ROWS)
    assert (rows[0]['regime'], rows[0]['seed'], rows[0]['clean_top1'], rows[0]['cost']) == (
        'vanilla', '0', '85.000', '2.500')
    assert rows[0]['pgd_eps2_aux_top1'] == ''


def test_the_pictures_are_drawn(tmp_path, monkeypatch):
    model = timm.create_model('test_resnet_ap')
    monkeypatch.setattr(charts, 'open_trained', lambda checkpoint: type('Trained', (), dict(model=model)))
    paths = charts.draw_study(str(tmp_path), _results({}))
    assert len(paths) == 4
    assert all(Path(path).read_bytes().startswith(b'\x89PNG') for path in paths)


def test_the_study_runs_in_the_root_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        study.main(['--output', str(tmp_path)])
    assert exit.value.code == 2
    assert capsys.readouterr().err == 'error: No train.py here: run the study in the root of the repository.\n'


@pytest.mark.slow
def test_a_job_trains_both_phases_and_measures(data, tmp_path):
    flags = ['--epochs', '1', '--batch-size', '16', '--warmup-epochs', '0']
    row = Row((['--regime', 'madry', *flags], ['--regime', 'vanilla', *flags]), 'pretraining')
    job = _job(tmp_path, row=row, data=data, num_attacked=10)
    result = job.run()
    assert len(result['history']) == 2 and 0 <= result['clean_top1'] <= 100
    assert job.saved_result()['clean_top1'] == result['clean_top1']
