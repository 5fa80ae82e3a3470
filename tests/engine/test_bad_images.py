"""Images that cannot be read, data that vanish, loader processes that die: one line, and the checkpoint is kept."""
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import DataLoader, get_worker_info

from tests.engine.runs import eval_settings, load, run
from timm_advprop.engine.bad_images import CheckedImages, explained_data_loss
from timm_advprop.engine.saver import CheckpointKeeper
from timm_advprop.engine.validation import validate
from timm_advprop.errors import InputError, RunError


@pytest.fixture
def data(few_digits, tmp_path):
    shutil.copytree(few_digits, tmp_path / 'data')
    return tmp_path / 'data'


def damage(data, *numbers, split='train'):
    """Truncate images of a split, by their numbers in timm's order, and return their paths."""
    files = sorted((data / split).glob('*/*'), key=lambda file: (file.parent.name, file.name))
    for number in numbers:
        files[number].write_bytes(files[number].read_bytes()[:60])
    return [str(files[number]) for number in numbers]


def checked(data, most_bad, split='train'):
    dataset = CheckedImages(ImageDataset(str(data / split), input_img_mode='L'), most_bad)
    dataset.transform = lambda image: torch.tensor(image.getpixel((3, 3)))
    return dataset


def test_the_next_image_takes_the_place_of_one_that_cannot_be_read(data, caplog):
    expected = [checked(data, 0)[i] for i in range(64)]
    path, _ = damage(data, 5, 6)
    images = checked(data, 2)
    assert [images[i] for i in range(64)] == [*expected[:5], expected[7], expected[7], *expected[7:]]
    assert [images[i] for i in range(64)] and images.num_bad == 2  # each counts once, however often it is asked for
    assert caplog.text.count('Cannot read the image') == 2
    assert f'{path} (' in caplog.text and 'passed over, 2 of at most 2' in caplog.text


def test_the_last_image_is_followed_by_the_first(data):
    first = checked(data, 0)[0]
    damage(data, 63)
    assert checked(data, 1)[63] == first


@pytest.mark.parametrize('content', [b'', b'text', b'\x89PNG\r\n\x1a\n' + bytes(40)])
def test_whatever_is_wrong_with_a_file_it_is_named(data, content):
    path, = damage(data, 5)
    Path(path).write_bytes(content)
    with pytest.raises(InputError, match=f'Cannot read the image {path} .*: remove it, or pass over at most N such '):
        checked(data, 0)[5]
    os.remove(path)
    with pytest.raises(InputError, match=path):
        dataset = checked(data, 0)
        dataset.reader.samples.insert(5, (path, 0))
        dataset[5]


def test_what_is_no_image_is_named_once(data):
    path, = damage(data, 5)
    Path(path).write_text('text')
    with pytest.raises(InputError, match=r'\(no image that Pillow knows\): remove it') as error:
        checked(data, 0)[5]
    assert str(error.value).count(path) == 1


@pytest.mark.slow  # as are all where a loader process fails: the others wait for it for some seconds
def test_loader_processes_count_together(data):
    paths = damage(data, 1, 62)
    images = checked(data, 2)
    assert sum(len(target) for _, target in DataLoader(images, batch_size=8, num_workers=2)) == 64
    assert images.num_bad == 2
    with pytest.raises(InputError) as error, explained_data_loss(lambda: 'Go on.'):
        list(DataLoader(checked(data, 1), batch_size=32, num_workers=2))
    assert any(path in str(error.value) for path in paths)
    assert str(error.value).endswith('remove it, as more than 1 (--skip-bad-images). Go on.')
    assert '\n' not in str(error.value) and str(error.value).startswith('Cannot read the image')


def test_a_folder_of_bad_images_ends(data):
    damage(data, *range(64))
    with pytest.raises(InputError):
        checked(data, 1000)[0]


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_stops_at_a_bad_image_or_goes_on_without_it(data, tmp_path, workers):
    path, = damage(data, 9)
    with pytest.raises(InputError, match=f'^Cannot read the image {path} .*bad-images.\\.$'):  # no checkpoint is there
        run(str(data), tmp_path / 'stops', workers=workers)
    folder = run(str(data), tmp_path / 'goes_on', workers=workers, epochs=2, skip_bad_images=1)
    assert load(folder / 'last.pth.tar')['epoch'] == 1


def test_a_validation_stops_at_a_bad_image_or_counts_it(data, tmp_path):
    folder = run(str(data), tmp_path)
    settings = dict(data_dir=str(data), checkpoint=str(folder / 'last.pth.tar'))
    assert 'bad_images' not in validate(eval_settings(**settings))
    path, = damage(data, 9, split='validation')
    with pytest.raises(InputError, match=path):
        validate(eval_settings(**settings))
    assert validate(eval_settings(**settings, skip_bad_images=3))['bad_images'] == 1


@pytest.mark.parametrize('reader', ['', 'torch/image_folder'])
@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_data_that_vanish_leave_the_checkpoint(data, tmp_path, monkeypatch, reader, workers):
    save_checkpoint = CheckpointKeeper.save_checkpoint

    def save_and_lose(self, *args):
        saved = save_checkpoint(self, *args)
        shutil.rmtree(data)
        return saved
    monkeypatch.setattr(CheckpointKeeper, 'save_checkpoint', save_and_lose)
    with pytest.raises((InputError, RunError), match='.png.* Continue from the last checkpoint') as error:
        run(str(data), tmp_path, epochs=2, workers=workers, dataset=reader)
    assert '\n' not in str(error.value)
    assert load(tmp_path / 'run' / 'last.pth.tar')['epoch'] == 0


@pytest.mark.slow
def test_a_loader_process_that_is_killed_is_one_line(data, tmp_path, monkeypatch):
    def read(self, index):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.new('RGB', (8, 8)), 0

    monkeypatch.setattr(CheckedImages, '_read', read)
    with pytest.raises(RunError, match='^A loader process died .*: try fewer --workers.$') as error:
        run(str(data), tmp_path, workers=1)
    assert '\n' not in str(error.value)


def test_other_errors_are_no_loss_of_data():
    for wrong in (RuntimeError('Caught RuntimeError in DataLoader worker process 0.\nOriginal'), KeyError('a')):
        with pytest.raises(type(wrong)) as error, explained_data_loss():
            raise wrong
        assert error.value is wrong


def test_only_files_can_be_passed_over(data, tmp_path):
    with pytest.raises(InputError, match='--skip-bad-images is for folders, tar files and hfds/, not for torch/image_'):
        run(str(data), tmp_path, dataset='torch/image_folder', skip_bad_images=1)
