"""args.yaml and summary.csv of a run."""
import csv

import pytest
import yaml

from timm_advprop.engine.run_log import RunLog
from timm_advprop.errors import InputError


def rows_of(folder):
    with open(folder / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


def test_arguments_are_yaml(tmp_path):
    RunLog(str(tmp_path), dict(model='a', scale=[.5, 1.], lr=None, opt_kwargs={}))
    assert yaml.safe_load((tmp_path / 'args.yaml').read_text()) == dict(
        model='a', scale=[.5, 1.], lr=None, opt_kwargs={})
    assert [file.name for file in tmp_path.iterdir()] == ['args.yaml']


def test_secrets_in_addresses_stay_out(tmp_path):
    RunLog(str(tmp_path), dict(push_to_hub='a/b', model='hf_' + 'a' * 34))
    assert 'a' * 34 not in (tmp_path / 'args.yaml').read_text()


def test_an_epoch_is_a_row(tmp_path):
    log = RunLog(str(tmp_path), {})
    log.add_epoch(0, dict(loss=1., adv_loss=2.), dict(top1=50.), lr=.1)
    log.add_epoch(1, dict(loss=.5, adv_loss=1.), None, lr=.2)
    assert rows_of(tmp_path) == [
        dict(epoch='0', train_loss='1.0', train_adv_loss='2.0', eval_top1='50.0', lr='0.1'),
        dict(epoch='1', train_loss='0.5', train_adv_loss='1.0', eval_top1='', lr='0.2'),
    ]


@pytest.mark.parametrize('first_epoch, epochs', [(0, ['0']), (1, ['0', '1']), (2, ['0', '1', '2'])])
def test_a_continued_run_keeps_the_rows_before_it(tmp_path, first_epoch, epochs):
    log = RunLog(str(tmp_path), {})
    for epoch in range(2):
        log.add_epoch(epoch, dict(loss=float(epoch)))
    RunLog(str(tmp_path), {}, first_epoch).add_epoch(first_epoch, dict(loss=9.))
    rows = rows_of(tmp_path)
    assert [row['epoch'] for row in rows] == epochs
    assert [row['train_loss'] for row in rows] == ['0.0', '1.0'][:first_epoch] + ['9.0']


@pytest.mark.parametrize('content', [b'name,top1\na,1\n', b'epoch,lr\n0,.1\n,\n', b'epoch,lr\n0,\xff\n'], ids=str)
def test_a_summary_that_is_none_is_left_alone(tmp_path, content):
    (tmp_path / 'summary.csv').write_bytes(content)
    with pytest.raises(InputError, match='summary.csv is not that of a run, or damaged: move it away, or give another'):
        RunLog(str(tmp_path), {})
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [('summary.csv', content)]


def test_a_kill_in_the_middle_of_a_row_leaves_the_former_rows(tmp_path, monkeypatch):
    log = RunLog(str(tmp_path), dict(model='a'))
    log.add_epoch(0, dict(loss=1.))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(csv.DictWriter, 'writerows', fail)
    with pytest.raises(KeyboardInterrupt):
        log.add_epoch(1, dict(loss=2.))
    monkeypatch.setattr(yaml, 'safe_dump', fail)
    with pytest.raises(KeyboardInterrupt):
        RunLog(str(tmp_path), dict(model='b'))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
