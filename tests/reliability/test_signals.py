"""Programs that are told to stop: what they finish, say and leave. Real processes, real signals."""
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.programs import FAST, ROOT, run_train
from tests.engine.runs import load, read_summary
from tests.reliability.stopped_runs import check_equal_runs
from timm_advprop.engine.run_folder import lock_folder

LONG = ['--epochs', '2', '--log-interval', '1', '--adv-steps', '1', '--model-ema', '--reprob', '.5']


def start(data, output, *flags, launcher=()):
    command = [sys.executable, *launcher, str(ROOT / 'train.py'), '--data-dir', data, '--output', str(output),
               '--experiment', 'run', *FAST, *LONG, *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'}, start_new_session=True)


def wait_for(process, words):
    """The output until a line with these words."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(''.join(lines))


def test_a_stopped_run_is_resumed_to_the_same_end(few_digits, tmp_path):
    with start(few_digits, tmp_path / 'parts', '--workers', '2') as process:
        wait_for(process, 'Train: 0 [   1/4')
        os.killpg(process.pid, signal.SIGTERM)  # its loaders' processes, too, as systemd and Slurm do
        output = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert 'Stopped by SIGTERM' in output and 'Traceback' not in output and '--result' in output
    assert list((tmp_path / 'parts/run').glob('recovery-0-*'))
    run_train(few_digits, tmp_path / 'parts', *LONG, '--resume', 'auto')
    run_train(few_digits, tmp_path / 'whole', *LONG)
    check_equal_runs(tmp_path / 'whole/run', tmp_path / 'parts/run')


@pytest.mark.slow
def test_loaders_processes_end_with_a_killed_run(few_digits, tmp_path):
    with start(few_digits, tmp_path, '--workers', '2', '--epochs', '500') as process:
        wait_for(process, 'Train: 0 [   1/4')
        process.kill()
        process.communicate(timeout=60)  # until the last of them has closed the output


def test_a_folder_is_one_runs_and_a_kill_gives_it_back(few_digits, tmp_path, capsys):
    def try_to_run():
        with pytest.raises(SystemExit) as exit:
            run_train(few_digits, tmp_path)
        assert exit.value.code == 2 and 'Another run is writing' in capsys.readouterr().err
        assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.lock']

    ready, go_on = os.pipe()
    other = os.fork()
    if other == 0:  # a run, as far as the folder sees it
        with lock_folder(str(tmp_path / 'run')):
            os.write(go_on, b'.')
            time.sleep(600)
    os.read(ready, 1)
    try_to_run()
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    run_train(few_digits, tmp_path)
    assert read_summary(tmp_path / 'run')


@pytest.mark.slow
def test_processes_stop_together_and_go_on_together(few_digits, tmp_path):
    two = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    for name, flags in (('whole', ()), ('parts', ())):
        with start(few_digits, tmp_path / name, *flags, '--batch-size', '4', launcher=two) as process:
            if name == 'parts':
                wait_for(process, 'Train: 0 [   1/8')
                process.send_signal(signal.SIGTERM)
            output = process.stdout.read()
        if name == 'whole':
            assert process.returncode == 0, output
    assert list((tmp_path / 'parts/run').glob('recovery-*')), output
    with start(few_digits, tmp_path / 'parts', '--batch-size', '4', '--resume', 'auto', launcher=two) as process:
        output = process.stdout.read()
    assert process.returncode == 0, output
    check_equal_runs(tmp_path / 'whole/run', tmp_path / 'parts/run')


@pytest.mark.slow
def test_a_lost_process_ends_the_others(few_digits, tmp_path):
    two = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    with start(few_digits, tmp_path, '--batch-size', '4', '--epochs', '500', launcher=two) as process:
        wait_for(process, 'Train: 1 [   1/8')
        children = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(children[-1]), signal.SIGKILL)
        began = time.monotonic()
        output = process.stdout.read()
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert 'error: ' in output
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] >= 0
