"""A study that is killed goes on: what was finished is in the table, what was not is trained anew."""
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from dataclasses import replace
from studies.comparison import program
from studies.comparison.measures import Measures
study = program.STUDIES['fashion-mnist'].only(('vanilla', 'advprop-1'), (0, 1))
program.STUDIES['fashion-mnist'] = replace(
    study, write_data=str, measures=Measures(num_corrupted=0, num_attacked=4, steps=1),
    flags=('--epochs', '1', '--warmup-epochs', '0', '--batch-size', '20'))
if __name__ == '__main__':
    program.main(sys.argv[1:])
"""


def _rows(table):
    if not table.is_file():
        return []
    with open(table, newline='') as file:
        return list(csv.DictReader(file))


def _finished(table):
    return {(row['row'], row['seed']) for row in _rows(table) if 'blend' not in row['row']}


@pytest.mark.slow
def test_a_killed_study_goes_on(data, tmp_path):
    command = [sys.executable, '-c', SCRIPT, 'fashion-mnist', '--output', str(tmp_path), '--results',
               str(tmp_path / 'results'), '--jobs', '2']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    table = tmp_path / 'results' / 'fashion_mnist.csv'
    first = subprocess.Popen(command, cwd=ROOT, env=environment)
    while not _finished(table):
        assert first.poll() is None
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)  # of itself alone: what it started may still be there
    first.wait()
    kept, done = _rows(table), _finished(table)
    assert len(done) < 4
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f'{len(done)} of 4 trainings are finished already' in again.stdout
    assert len(_finished(table)) == 4
    rows = _rows(table)  # which have more columns, where the first rows had no auxiliary norms
    assert all(any(row.items() <= other.items() for other in rows) for row in kept)
