"""The results file of a robustness run: what it may be, and whose it is."""
import os
import subprocess
import sys

import pytest

from timm_advprop.cli.validate import main
from timm_advprop.errors import InputError
from timm_advprop.robustness.kept_results import KeptResults, open_results

ROW = dict(model='m', checkpoint='', route='main', suite='clean', condition='', severity='', top1=50., cell='1')


@pytest.mark.parametrize('text', [
    'model,top1\nm,1\n', 'model,top1,suite\nm,1,mine\n', 'model,top1,suite,cell\nm,1,mine,1\n',
    '[{"model": "m", "top1": 1, "suite": "mine"}]',
], ids=str)
def test_results_of_others_are_refused(tmp_path, text):
    path = tmp_path / 'r.csv'
    path.write_text(text)
    with pytest.raises(InputError, match='not of --suite'):
        KeptResults(str(path))


@pytest.mark.parametrize('format', ['csv', 'json'])
def test_rows_come_back_without_summaries(tmp_path, format):
    path = str(tmp_path / 'r')
    kept = KeptResults(path, format)
    kept.add([ROW])
    kept.write([*kept.rows, {**ROW, 'condition': 'mean', 'cell': ''}])
    again = KeptResults(path, format)
    assert again.rows == kept.rows and again.cells == {'1'}


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'r.csv')
    with pytest.raises(InputError, match='is no file'):
        open_results(str(tmp_path / 'r.csv')).__enter__()


def test_tables_do_not_take_the_place_of_the_results():
    with pytest.raises(InputError, match='tables are written to r.md'):
        open_results('r.md').__enter__()


def test_one_process_at_a_time_writes_a_file(tmp_path):
    os.symlink(tmp_path / 'r.csv', tmp_path / 'link.csv')
    other = f"""
from timm_advprop.robustness.kept_results import open_results
for name in 'r.csv', 'link.csv':
    try:
        open_results({str(tmp_path)!r} + '/' + name).__enter__()
    except Exception as error:
        print(error)
"""
    with open_results(str(tmp_path / 'r.csv')):
        said = subprocess.run([sys.executable, '-c', other], capture_output=True, text=True).stdout
    assert said.count('Another run is writing') == 2
    assert os.listdir(tmp_path) == ['link.csv']  # no lock stays


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path):
    with pytest.raises(InputError, match='Cannot write'):
        open_results(str(tmp_path / 'no' / 'r.csv')).__enter__()


@pytest.mark.parametrize('format', ['csv', 'json'])
def test_the_name_of_a_file_says_its_format(few_digits, tmp_path, monkeypatch, capsys, format):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f'robustness.{format}').mkdir()
    with pytest.raises(SystemExit):
        main(['--data-dir', str(few_digits), '--suite', 'attacks', '--results-format', format])
    assert capsys.readouterr().err.startswith(f'error: robustness.{format} is no file')
