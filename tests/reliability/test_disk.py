"""A disk that takes no more: one line that names the file, a status, and what was kept before is whole.

The kernel's limit for the size of a file stands for a full disk and for a quota: writes fail at the same places.
"""
import resource
from contextlib import contextmanager

import pytest

from tests.cli.programs import run_train, run_validate
from tests.engine.runs import load, read_summary


@contextmanager
def files_up_to(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fails(capsys, run, *args):
    """The one line of a program that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        run(*args)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(('error', 'Trace'))]
    assert exit.value.code == 1 and len(lines) == 1
    return lines[0]


@pytest.mark.parametrize('size, file', [(100, 'args.yaml'), (20_000, 'last.pth.tar')])
def test_a_run_that_cannot_be_written_keeps_the_former_checkpoint(few_digits, tmp_path, capsys, size, file):
    folder = run_train(few_digits, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with files_up_to(size):
        line = fails(capsys, run_train, few_digits, tmp_path, '--resume', str(folder / 'last.pth.tar'), '--epochs', '3')
    assert str(folder / file) in line and 'File too large' in line
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {'args.yaml', 'summary.csv'} and after.keys() == before.keys()
    assert load(folder / 'last.pth.tar')['epoch'] == 0


def test_a_recovery_checkpoint_that_cannot_be_written(few_digits, tmp_path, capsys):
    with files_up_to(20_000):
        line = fails(capsys, run_train, few_digits, tmp_path, '--recovery-interval', '2')
    assert 'recovery-0-1.pth.tar' in line and 'File too large' in line and '--resume' not in line
    assert not list((tmp_path / 'run').glob('*.tar*'))


def test_a_summary_that_cannot_be_written(few_digits, tmp_path, capsys):
    folder = run_train(few_digits, tmp_path)
    size = (folder / 'args.yaml').stat().st_size + 200
    (folder / 'summary.csv').write_text('epoch,note\n0,' + 'x' * size + '\n')
    with files_up_to(size):
        line = fails(capsys, run_train, few_digits, tmp_path, '--resume', str(folder / 'last.pth.tar'), '--epochs', '2')
    assert 'summary.csv' in line
    assert [row['epoch'] for row in read_summary(folder)] == ['0']


def test_results_that_cannot_be_written(few_digits, tmp_path, capsys):
    checkpoint = run_train(few_digits, tmp_path) / 'last.pth.tar'
    path = tmp_path / 'results.csv'
    path.write_text('before')
    with files_up_to(50), pytest.raises(SystemExit):
        run_validate(few_digits, capsys, '--checkpoint', str(checkpoint), '--results-file', str(path))
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == 'before'
