"""The results file of a robustness run: what it may be, and whose it is."""
import os

import pytest

from timm_advprop.cli.validate import main
from timm_advprop.errors import InputError
from timm_advprop.robustness.kept_results import KeptResults

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
        KeptResults(str(tmp_path / 'r.csv'))


def test_tables_do_not_take_the_place_of_the_results():
    with pytest.raises(InputError, match='tables are written to r.md'):
        KeptResults('r.md')


@pytest.mark.parametrize('format', ['csv', 'json'])
def test_the_name_of_a_file_says_its_format(few_digits, tmp_path, monkeypatch, capsys, format):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f'robustness.{format}').mkdir()
    with pytest.raises(SystemExit):
        main(['--data-dir', str(few_digits), '--suite', 'attacks', '--results-format', format])
    assert capsys.readouterr().err.startswith(f'error: robustness.{format} is no file')
