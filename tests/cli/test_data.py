import subprocess
import sys

import numpy as np
import pytest

from timm_advprop.cli import data

from ..engine.idx_files import write_source


def test_program(tmp_path, capsys):
    source = write_source(tmp_path / 'source')
    data.main(['fashion-mnist', str(tmp_path / 'out'), '--source', str(source)])
    assert capsys.readouterr().out == f'{tmp_path / "out"}: 14 train, 10 validation images\n'
    data.main(['digits', str(tmp_path / 'digits')])
    assert '1438 train, 359 validation images' in capsys.readouterr().out


def test_program_takes_parts_of_the_training_set(tmp_path, capsys):
    source = write_source(tmp_path / 'source', labels=np.repeat(np.arange(10, dtype=np.uint8), 3))
    data.main(['fashion-mnist', str(tmp_path / 'out'), '--source', str(source), '--train', '10', '--holdout', '20'])
    assert capsys.readouterr().out == f'{tmp_path / "out"}: 10 train, 10 validation, 20 holdout images\n'


@pytest.mark.slow
def test_program_runs_as_a_module(tmp_path):
    command = [sys.executable, '-m', 'timm_advprop.data', 'fashion-mnist', str(tmp_path / 'out'), '--source',
               str(write_source(tmp_path / 'source'))]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == f'{tmp_path / "out"}: 14 train, 10 validation images\n'


@pytest.mark.parametrize('arguments, words', [
    (['fashion-mnist', 'OUT', '--source', 'nowhere'], 'No folder nowhere.'),
    (['digits'], 'DIR'),
    (['mnist', 'OUT'], 'mnist'),
    ([], 'digits,fashion-mnist,solar-cells'),
    (['solar-cells', 'OUT', '--source', 'nowhere'], 'No file nowhere/labels.csv.'),
    (['solar-cells', 'OUT', '--size', '0'], 'got 0'),
])
def test_program_ends_with_one_line_on_wrong_input(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as exit:
        data.main([argument.replace('OUT', str(tmp_path / 'out')) for argument in arguments])
    assert exit.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0]
