"""The demonstration: which programs it runs, and what it prints and draws. The programs are not run here."""
import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch

from studies import digits
from timm_advprop.cli.train import parse_args
from timm_advprop.errors import InputError

pytestmark = pytest.mark.usefixtures('one_thread')
TOP1 = {('vanilla', 'main'): (98.91, 80.5), ('advprop', 'main'): (99.2, 95.26), ('advprop', 'aux'): (98., 96.1)}


@pytest.fixture
def commands(monkeypatch, few_digits):
    """The programs that are run. A training leaves an untrained model, a validation its results."""
    monkeypatch.chdir(Path(__file__).parents[2])
    commands = []

    def run(jobs, title, *command):
        commands.append(command)
        flags = dict(zip(command[1:-1], command[2:]))
        if command[0] == 'train.py':
            folder = Path(flags['--output'], flags['--experiment'])
            folder.mkdir(parents=True)
            model = timm.create_model('test_resnet_ap', num_classes=10)
            args = Namespace(**parse_args(command[1:]).given)
            torch.save(dict(state_dict=model.state_dict(), args=args, arch='test_resnet_ap', epoch=0),
                       folder / 'last.pth.tar')
        else:
            top1, adv_top1 = TOP1[Path(flags['--checkpoint']).parent.name, flags['--route']]
            Path(flags['--results-file']).write_text(json.dumps(dict(top1=top1, adv_top1=adv_top1)))

    monkeypatch.setattr(digits._Jobs, 'run', run)
    monkeypatch.setattr(digits, 'write_digits', lambda folder: shutil.copytree(few_digits, folder))
    return commands


def test_two_trainings_are_compared(tmp_path, commands, capsys):
    (tmp_path / 'vanilla').mkdir()
    (tmp_path / 'vanilla/last.pth.tar').write_text('of a former demonstration')
    digits.main(['--output', str(tmp_path)])
    assert [command[0] for command in commands] == ['train.py'] * 2 + ['validate.py'] * 3
    assert capsys.readouterr().out.startswith('\n'.join([
        '',
        '| regime | clean top-1, main norms | top-1 under PGD-10 (eps 8/255), main norms | the same, aux norms |',
        '|---|---|---|---|',
        '| vanilla | 98.9 | 80.5 | – |',
        '| advprop | 99.2 | 95.3 | 96.1 |',
        '',
        f'Picture of images that fool the vanilla model: {tmp_path}/adversarial.png',
        'Done in ',
    ]))
    assert (tmp_path / 'adversarial.png').read_bytes().startswith(b'\x89PNG')


def test_progress_is_shown_and_a_failure_tells_the_last_lines(tmp_path, capfd):
    program = tmp_path / 'program.py'
    program.write_text('print("Train: 0"); print("other"); raise SystemExit(3)')
    with pytest.raises(InputError, match='program.py failed:\nTrain: 0\nother'):
        digits._Jobs(total=2).run('Training', str(program))
    assert capfd.readouterr().out == '[1/2] Training  (0 s)\n      Train: 0\n'


def test_the_demonstration_runs_in_the_root_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        digits.main([])
    assert exit.value.code == 2
    assert capsys.readouterr().err == 'error: No train.py here: run the demonstration in the root of the repository.\n'
