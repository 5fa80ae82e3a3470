"""Trackers of a run: what they get, from a package in place of the real one, and from the real ones where they are."""
import importlib
import sys
import types

import pytest
import torch
import yaml
from PIL import Image

from tests.engine.runs import read_summary, run
from timm_advprop.engine import trackers
from timm_advprop.engine.run_log import RunLog
from timm_advprop.engine.trackers import TRACKERS, TrackedRun, Tracker, open_trackers
from timm_advprop.errors import InputError
from timm_advprop.regimes import Attack, MadeImages


class Recorder(Tracker):
    def __init__(self, run=None):
        self.rows, self.pictures, self.closed = [], [], 0

    def log_row(self, epoch, row):
        self.rows.append((epoch, dict(row)))

    def log_picture(self, epoch, path):
        self.pictures.append((epoch, path))

    def close(self):
        self.closed += 1


@pytest.fixture
def package(monkeypatch):
    """A function that puts a package with the interface of wandb in a place of its name."""
    started, logged = [], []

    def of_name(name):
        module = types.ModuleType(name)
        run = types.SimpleNamespace(log=logged.append, finish=lambda: logged.append('finished'))
        module.init = lambda **kwargs: started.append(kwargs) or run
        module.Image, module.__spec__ = lambda path: ('picture', path), types.SimpleNamespace(origin=name)
        monkeypatch.setitem(sys.modules, name, module)
        return started, logged
    return of_name


def test_weights_and_biases_get_settings_rows_and_pictures(few_digits, tmp_path, package):
    started, logged = package('wandb')
    values = dict(log_wandb=True, log_to=['wandb'], wandb_project='digits', wandb_tags=['a', 'b'], epochs=2)
    folder = run(few_digits, tmp_path, **values)
    (start,) = started  # once, though asked for twice
    assert start.pop('config') == yaml.safe_load((folder / 'args.yaml').read_text())
    assert {**start, 'tags': list(start['tags'])} == dict(
        project='digits', name='run', tags=['a', 'b'], resume=None, id=None)
    rows = [row for row in logged if 'train_loss' in row]
    for row, written in zip(rows, read_summary(folder), strict=True):
        assert row.pop('train_attack_success') == pytest.approx(100 - row['train_adv_top1'])
        assert {name: str(value) for name, value in row.items()} == written
        assert 0 < row['train_adv_px'] <= 1  # of an attack of strength 1
    assert [row['epoch'] for row in logged if 'attacked' in row] == [0, 1]
    assert logged[-1] == 'finished' and not (folder / 'curves.png').exists()
    run(few_digits, tmp_path / 'on', **{**values, 'wandb_resume_id': 'xyz', 'epochs': 1})
    assert (started[1]['resume'], started[1]['id']) == ('must', 'xyz')


@pytest.mark.parametrize('first_epoch, resume', [(0, 'never'), (2, 'allow')])
def test_trackio_has_a_project_of_its_own(tmp_path, package, first_epoch, resume):
    started, logged = package('trackio')
    (tracker,) = open_trackers(['trackio'], TrackedRun(str(tmp_path), 'run', dict(a=1), first_epoch))
    tracker.log_row(3, dict(loss=1.))
    tracker.close()
    assert started == [dict(name='run', config=dict(a=1), project='timm-advprop', resume=resume)]
    assert logged == [dict(epoch=3, loss=1.), 'finished']


@pytest.mark.parametrize('name', ['trackio', 'wandb'])
def test_secrets_stay_out_of_a_service(tmp_path, package, name):
    started, _ = package(name)
    arguments = dict(data_dir='wds/https://user:secret@host/data', tokens=('hf_' + 'a' * 34,), lr=.1, resume=None)
    open_trackers([name], TrackedRun(str(tmp_path), 'run', arguments))
    assert started[0]['config'] == dict(data_dir='wds/https://host/data', tokens=['<token>'], lr=.1, resume=None)


def test_a_folder_of_its_name_is_no_package(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    (tmp_path / 'wandb').mkdir()  # wandb leaves one where it was
    with pytest.raises(InputError, match='--log-to wandb needs the package wandb'):
        trackers.check_trackers(['wandb'])


def test_a_new_tracker_is_a_class_and_a_line(few_digits, tmp_path, monkeypatch):
    module = types.ModuleType('timm_advprop.engine.new_tracker')
    recorder = Recorder()
    module.NewTracker = lambda run: recorder
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(TRACKERS, 'yaml', 'new_tracker:NewTracker')  # whose package is there
    log = RunLog(str(tmp_path), {}, trackers=open_trackers(['yaml'], TrackedRun(str(tmp_path), 'run')))
    images = torch.zeros(2, 3, 4, 4)
    made = MadeImages(Attack().normalised_by((.5,), (.5,)), images, images + .1)
    log.add_epoch(4, dict(loss=1., adv_top1=70.), None, .1, dict(aux_mean_distance=.5), made)
    log.close()
    assert recorder.rows == [(4, dict(
        train_loss=1., train_adv_top1=70., lr=.1, aux_mean_distance=.5, train_attack_success=30.))]
    ((epoch, picture),) = recorder.pictures
    assert epoch == 4 and recorder.closed == 1
    with Image.open(picture) as opened:
        assert opened.size == (2 * 5 + 1, 3 * 5 + 1)  # two images: as they were, made, the difference


def test_a_tracker_that_fails_ends_no_run(tmp_path, monkeypatch, caplog):
    def fail(*args):
        calls.append(args)
        raise ConnectionError('no network')

    calls, module = [], types.ModuleType('timm_advprop.engine.new_tracker')
    module.NewTracker = lambda run: types.SimpleNamespace(log_row=fail, log_picture=fail, close=fail)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(TRACKERS, 'yaml', 'new_tracker:NewTracker')
    log = RunLog(str(tmp_path), {}, trackers=trackers.open_trackers(['yaml'], TrackedRun(str(tmp_path), 'run')))
    for epoch in range(2):
        log.add_epoch(epoch, dict(loss=1.))
    log.close()
    assert len(calls) == 1 and caplog.text.count('--log-to yaml failed, the run goes on without it: no network') == 1


def test_tensorboard_has_what_summary_csv_has(few_digits, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder = run(few_digits, tmp_path, log_to=['tensorboard'], epochs=2)
    events = EventAccumulator(str(folder / 'tensorboard')).Reload()
    for row in read_summary(folder):
        for name in row.keys() - {'epoch'}:
            value = events.Scalars(name.replace('_', '/', 1))[int(row['epoch'])]
            assert (value.step, value.value) == (int(row['epoch']), pytest.approx(float(row[name]), rel=1e-5))
    assert [image.step for image in events.Images('attacked')] == [0, 1]


@pytest.mark.parametrize('first_epoch, values', [(0, [20.]), (1, [10., 20.])])
def test_tensorboard_drops_epochs_of_a_former_run_as_summary_csv_does(tmp_path, first_epoch, values):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for start, value, epochs in ((0, 10., range(3)), (first_epoch, 20., [first_epoch])):
        (tracker,) = open_trackers(['tensorboard'], TrackedRun(str(tmp_path), 'run', {}, start))
        for epoch in epochs:
            tracker.log_row(epoch, dict(train_loss=value))
        tracker.close()
    events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    assert [scalar.value for scalar in events.Scalars('train/loss')] == values


def test_channels_of_no_picture_are_tracked_without_one(few_digits, tmp_path, package):
    _, logged = package('wandb')
    run(few_digits, tmp_path, log_to=['wandb'], in_chans=4, input_img_mode='RGBA')
    assert any('train_loss' in row for row in logged) and not any('attacked' in row for row in logged)


def test_the_registry_names_classes_that_are_there():
    for path in TRACKERS.values():
        file, name = path.split(':')
        assert issubclass(getattr(importlib.import_module(f'timm_advprop.engine.{file}'), name), Tracker)
