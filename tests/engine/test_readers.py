"""Every reader of timm's that needs no download: training and validation of the same images."""
import json
import shutil
import sys
import tarfile

import pytest
import torch
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset
from timm.data.readers.reader import Reader

from tests.engine.runs import eval_settings, load, read_summary, run
from timm_advprop.engine import datasets
from timm_advprop.engine.datasets import dataset_name, has_split_folder
from timm_advprop.engine.run_settings import DataSettings
from timm_advprop.engine.validation import validate
from timm_advprop.errors import InputError

# Each returns the data folder and further settings, of training and of validation.

def as_tar(folder, to):
    for split in ('train', 'validation'):
        with tarfile.open(to / f'{split}.tar', 'w') as tar:
            for file in sorted((folder / split).glob('*/*')):
                tar.add(file, f'{file.parent.name}/{file.name}')
    return (str(to / 'train.tar'), dict(val_split='', eval_metric='loss')), (str(to / 'validation.tar'), {})


def as_tars_in_a_folder(folder, to):
    as_tar(folder, to)
    (to / 'validation.tar').rename(to / 'val.tar')
    return ((str(to), {}),) * 2


def as_one_tar(folder, to):
    with tarfile.open(to / 'digits.tar', 'w') as tar:
        for split in ('train', 'validation'):
            tar.add(folder / split, f'./digits/{split}')
    return ((str(to / 'digits.tar'), {}),) * 2


def as_tars_in_a_tar(folder, to):
    as_tar(folder, to)
    with tarfile.open(to / 'digits.tar', 'w') as tar:
        for split in ('train', 'validation'):
            tar.add(to / f'{split}.tar', f'{split}.tar')
    return ((str(to / 'digits.tar'), {}),) * 2


def as_torch_folder(folder, to):
    return ((str(folder), dict(dataset='torch/image_folder')),) * 2


def as_imagenet(folder, to):
    # as torchvision unpacks it: each class has one folder and several names
    shutil.copytree(folder / 'train', to / 'train')
    shutil.copytree(folder / 'validation', to / 'val')
    torch.save(({str(digit): (f'digit {digit}', f'number {digit}') for digit in range(10)}, []), to / 'meta.bin')
    return ((str(to), dict(dataset='torch/imagenet')),) * 2


def as_shards(folder, to):
    # both splits in one folder, as the tools of webdataset write them
    pytest.importorskip('webdataset')
    splits = {}
    for split in ('train', 'validation'):
        images = sorted((folder / split).glob('*/*'))
        with tarfile.open(to / f'{split}-0.tar', 'w') as tar:
            for i, image in enumerate(images):
                (to / 'label').write_text(image.parent.name)
                tar.add(image, f'{i:05d}.png')
                tar.add(to / 'label', f'{i:05d}.cls')
        splits[split] = dict(
            name=split, num_samples=len(images), filenames=[f'{split}-0.tar'], shard_lengths=[len(images)])
    (to / '_info.json').write_text(json.dumps(dict(splits=splits)))
    return ((str(to), dict(dataset='wds/digits')),) * 2


def as_hugging_face_dataset(folder, to):
    pytest.importorskip('datasets')
    return ((str(to), dict(dataset=f'hfds/{folder}')),) * 2


def as_hugging_face_stream(folder, to):
    pytest.importorskip('datasets')
    sizes = dict(train_num_samples=64, val_num_samples=40)
    return (str(to), dict(sizes, dataset=f'hfids/{folder}')), (str(to), dict(num_samples=40, dataset=f'hfids/{folder}'))


@pytest.fixture
def digits_folder(few_digits, tmp_path):
    return shutil.copytree(few_digits, tmp_path / 'digits')


@pytest.mark.parametrize('write', [
    as_tar, as_tars_in_a_folder, as_one_tar, as_tars_in_a_tar, as_torch_folder, as_imagenet, as_shards,
    as_hugging_face_dataset, as_hugging_face_stream])
def test_a_reader_delivers_the_same_images_to_both_programs(digits_folder, tmp_path, write):
    (tmp_path / 'written').mkdir()
    (train_dir, training), (eval_dir, validation) = write(digits_folder, tmp_path / 'written')
    folder = run(train_dir, tmp_path, **training)
    checkpoint = str(folder / 'last.pth.tar')
    assert load(checkpoint)['epoch'] == 0 and len(read_summary(folder)) == 1
    expected = validate(eval_settings(data_dir=str(digits_folder), checkpoint=checkpoint))
    results = validate(eval_settings(checkpoint=checkpoint, data_dir=eval_dir, **validation))
    assert {name: results[name] for name in ('top1', 'top5')} == {name: expected[name] for name in ('top1', 'top5')}
    assert '/' not in results['dataset']


@pytest.mark.parametrize('write', [as_tar, as_torch_folder])
def test_one_part_is_not_both_splits(digits_folder, tmp_path, write):
    (part, settings), _ = write(digits_folder, tmp_path)
    part = f'{part}/train' if write is as_torch_folder else part
    with pytest.raises(InputError, match='Both splits are'):
        run(part, tmp_path, dataset=settings.get('dataset', ''))


@pytest.mark.parametrize('write, values, words', [
    (as_tars_in_a_folder, dict(val_split='test'), "No split 'test' in .*written, it has train, val"),
    (as_one_tar, dict(val_split='test'), r"No split 'test' in .*digits\.tar, it has train, validation"),
    (as_one_tar, dict(val_split='train'), r'Both splits are .*digits\.tar, folder train: give a folder with both'),
    (as_tar, dict(val_split='validation'), r'Both splits are .*train\.tar: give a folder with both as --data-dir'),
    (as_imagenet, dict(val_split='train'), r'Both splits are .*written/train: give a folder with both'),
    (as_tar, dict(num_classes=11), "split 'train' has 10 classes, the model 11"),
], ids=lambda value: getattr(value, '__name__', str(value)))
def test_a_split_that_is_not_there_is_one_line(digits_folder, tmp_path, write, values, words):
    (tmp_path / 'written').mkdir()
    (root, settings), _ = write(digits_folder, tmp_path / 'written')
    with pytest.raises(InputError, match=words):
        run(root, tmp_path, **{**settings, **values})


@pytest.mark.parametrize('in_one', [True, False], ids=['one tar', 'a tar each'])
def test_a_split_may_have_any_name(digits_folder, tmp_path, in_one):
    (digits_folder / 'validation').rename(digits_folder / 'holdout')
    (tmp_path / 'tars').mkdir()
    for name in ('digits',) if in_one else ('train', 'holdout'):
        with tarfile.open(tmp_path / 'tars' / f'{name}.tar', 'w') as tar:
            tar.add(*(digits_folder, 'digits') if in_one else (digits_folder / name, '.'))
    data = DataSettings(data_dir=str(tmp_path / 'tars' / 'digits.tar' if in_one else tmp_path / 'tars'))
    dataset = datasets.open_split(data, 'holdout', dict(input_size=(3, 32, 32)))
    assert len(dataset) == len(list((digits_folder / 'holdout').glob('*/*')))
    assert datasets.has_split_folder(data, 'holdout') and not datasets.has_split_folder(data, 'test')


@pytest.mark.parametrize('write, there', [
    (as_tars_in_a_folder, True), (as_one_tar, True), (as_tar, False), (as_torch_folder, True)])
def test_a_split_has_a_place_of_its_own_or_not(digits_folder, tmp_path, write, there):
    (root, settings), _ = write(digits_folder, tmp_path)
    data = DataSettings(data_dir=root, dataset=settings.get('dataset', ''))
    assert has_split_folder(data, 'train') == there and not has_split_folder(data, 'test')


def test_tar_files_that_are_no_splits_are_one_line(tmp_path):
    (tmp_path / 'n01440764.tar').touch()
    with pytest.raises(InputError, match=r'has tar files, but none that is a split: name them train\.tar and so on'):
        run(str(tmp_path), tmp_path / 'out')


def test_a_tar_file_that_is_damaged_is_one_line(tmp_path):
    (tmp_path / 'train.tar').write_bytes(b'no tar')
    with pytest.raises(InputError, match="Cannot read split 'train' of "):
        run(str(tmp_path), tmp_path / 'out', val_split='', eval_metric='loss')


def test_a_folder_of_torchvisions_has_the_split_that_is_asked_for(digits_folder, tmp_path):
    with pytest.raises(InputError, match="No split 'test' in"):
        run(str(digits_folder), tmp_path, dataset='torch/image_folder', val_split='test')


@pytest.mark.parametrize('dataset, name', [
    ('', 'cells'), ('torch/image_folder', 'cells'), ('torch/cifar10', 'cifar10'), ('hfds/user/set', 'user/set')])
def test_a_data_set_has_the_name_of_its_folder_or_of_itself(dataset, name):
    assert dataset_name(DataSettings(data_dir='/data/cells', dataset=dataset)) == name


class Stream(Reader):
    """Images in the order of their files, as the readers of shards deliver them; root is that of all splits."""
    def __init__(self, root, split):
        super().__init__()
        self.root, self.files = root, sorted((root / split).glob('*/*'))

    def __iter__(self):
        return ((Image.open(file).convert('RGB'), int(file.parent.name)) for file in self.files)

    def __len__(self):
        return len(self.files)


class Table(Reader):
    """Images by their number, as the reader of Hugging Face data sets delivers them; root is its cache."""
    def __init__(self, root, split):
        super().__init__()
        self.root, self.samples = root, [(file, int(file.parent.name)) for file in sorted((root / split).glob('*/*'))]

    def __getitem__(self, index):
        file, target = self.samples[index]
        return open(file, 'rb'), target

    def __len__(self):
        return len(self.samples)

    def _filename(self, index, basename=False, absolute=False):
        return str(self.samples[index][0])


@pytest.mark.parametrize('dataset, opened, reader', [
    ('wds/digits', IterableImageDataset, Stream), ('hfids/digits', IterableImageDataset, Stream),
    ('tfds/digits', IterableImageDataset, Stream), ('hfds/digits', ImageDataset, Table),
    ('HFDS//data/digits', ImageDataset, Table)])
def test_both_splits_may_stand_in_one_folder(digits_folder, tmp_path, monkeypatch, dataset, opened, reader):
    asked = []

    def create(name, root, split, **kwargs):
        asked.append((name, root, split))
        return opened('', reader=reader(digits_folder, split))

    monkeypatch.setattr(datasets, 'create_dataset', create)
    folder = run(str(tmp_path), tmp_path, dataset=dataset)
    assert len(read_summary(folder)) == 1
    assert asked == [(dataset, str(tmp_path), 'train'), (dataset, str(tmp_path), 'validation')]
    results = validate(eval_settings(checkpoint=str(folder / 'last.pth.tar'), data_dir=str(tmp_path), dataset=dataset))
    assert (results['dataset'], results['split']) == ('digits', 'validation')


@pytest.mark.parametrize('reader, package', [
    ('hfds', 'datasets'), ('hfids', 'datasets'), ('wds', 'webdataset'), ('tfds', 'tensorflow_datasets')])
def test_a_reader_without_its_package_is_one_line(tmp_path, monkeypatch, reader, package):
    for name in [name for name in sys.modules if name.startswith(f'timm.data.readers.reader_{reader}')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'Cannot read split .train. of {reader}/digits: .*({package}|tensor)'):
        run(str(tmp_path), tmp_path / 'out', dataset=f'{reader}/digits')


def test_shards_are_somewhere():
    with pytest.raises(InputError, match='No data set: give its folder with --data-dir'):
        validate(eval_settings(dataset='wds/digits'))
