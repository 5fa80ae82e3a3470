"""The start of a program: what importing the package adds to importing timm, and what `--help` does not do."""
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch.nn as nn

from timm_advprop.cli import app, benchmark, data, hub, models, train, validate

ROOT = Path(__file__).parents[1]
PROGRAMS = dict(app=app, benchmark=benchmark, data=data, hub=hub, models=models, train=train, validate=validate)
SURPLUS = '''
import json, sys, timm
before = {name.split('.')[0] for name in sys.modules}
import timm_advprop, timm_advprop.cli.train, timm_advprop.cli.validate
print(json.dumps(sorted({name.split('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names))))
'''


def cpu_seconds(*argv):
    # not those of a clock, which counts what else the machine does
    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    times = []
    for _ in range(3):
        before = used()
        subprocess.run([sys.executable, *argv], check=True, capture_output=True, cwd=ROOT)
        times.append(used() - before)
    return min(times)


def test_importing_takes_no_package_more_than_timm_does():
    # pandas, matplotlib, scipy, sklearn, cv2, datasets, wandb, onnx … are for those who use them
    printed = subprocess.run([sys.executable, '-c', SURPLUS], check=True, capture_output=True, text=True, cwd=ROOT)
    assert json.loads(printed.stdout) == ['timm_advprop']


@pytest.mark.parametrize('program', PROGRAMS)
def test_help_builds_no_model(program, monkeypatch, capsys):
    def build(*args, **kwargs):
        raise AssertionError('--help built a module')
    monkeypatch.setattr(nn.Module, '__init__', build)
    with pytest.raises(SystemExit) as exit:
        PROGRAMS[program].main(['--help'])
    assert not exit.value.code
    assert 'usage' in capsys.readouterr().out


@pytest.mark.slow
def test_importing_takes_at_most_300_ms_more_than_timm():
    script = 'import time, timm; start = time.process_time(); import timm_advprop; print(time.process_time() - start)'
    runs = [subprocess.run([sys.executable, '-c', script], check=True, capture_output=True, text=True, cwd=ROOT)
            for _ in range(3)]
    assert min(float(run.stdout) for run in runs) <= 0.3


@pytest.mark.slow
@pytest.mark.parametrize('program', ['train.py', 'validate.py'])
def test_help_takes_at_most_half_a_second_more_than_importing_timm(program):
    assert cpu_seconds(program, '--help') - cpu_seconds('-c', 'import timm') <= 0.5
