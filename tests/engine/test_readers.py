"""Every reader of timm's that needs no download: training and validation of the same images."""
import json
import shutil
import tarfile

import pytest
from PIL import Image
from timm.data import IterableImageDataset
from timm.data.readers.reader import Reader

from tests.engine.runs import eval_settings, load, read_summary, run
from timm_advprop.engine import datasets
from timm_advprop.engine.validation import validate
from timm_advprop.errors import InputError

# Each returns the data folder and further settings, of training and of validation.

def as_tar(folder, to):
    for split in ('train', 'validation'):
        with tarfile.open(to / f'{split}.tar', 'w') as tar:
            for file in sorted((folder / split).glob('*/*')):
                tar.add(file, f'{file.parent.name}/{file.name}')
    return (str(to / 'train.tar'), dict(val_split='', eval_metric='loss')), (str(to / 'validation.tar'), {})


def as_torch_folder(folder, to):
    return ((str(folder), dict(dataset='torch/image_folder')),) * 2


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


@pytest.fixture
def digits_folder(few_digits, tmp_path):
    return shutil.copytree(few_digits, tmp_path / 'digits')


@pytest.mark.parametrize('write', [as_tar, as_torch_folder, as_shards, as_hugging_face_dataset])
def test_a_reader_delivers_the_same_images_to_both_programs(digits_folder, tmp_path, write):
    (tmp_path / 'written').mkdir()
    (train_dir, training), (eval_dir, validation) = write(digits_folder, tmp_path / 'written')
    folder = run(train_dir, tmp_path, **training)
    checkpoint = str(folder / 'last.pth.tar')
    assert load(checkpoint)['epoch'] == 0 and len(read_summary(folder)) == 1
    expected = validate(eval_settings(data_dir=str(digits_folder), checkpoint=checkpoint))
    results = validate(eval_settings(checkpoint=checkpoint, data_dir=eval_dir, **validation))
    assert {name: results[name] for name in ('top1', 'top5')} == {name: expected[name] for name in ('top1', 'top5')}


@pytest.mark.parametrize('write', [as_tar, as_torch_folder])
def test_one_part_is_not_both_splits(digits_folder, tmp_path, write):
    (part, settings), _ = write(digits_folder, tmp_path)
    part = f'{part}/train' if write is as_torch_folder else part
    with pytest.raises(InputError, match='Both splits are'):
        run(part, tmp_path, dataset=settings.get('dataset', ''))


def test_a_folder_of_torchvisions_has_the_split_that_is_asked_for(digits_folder, tmp_path):
    with pytest.raises(InputError, match="No split 'test' in"):
        run(str(digits_folder), tmp_path, dataset='torch/image_folder', val_split='test')


class Stream(Reader):
    """Images in the order of their files, as the readers of shards deliver them; root is that of all splits."""
    def __init__(self, root, split):
        super().__init__()
        self.root, self.files = root, sorted((root / split).glob('*/*'))

    def __iter__(self):
        return ((Image.open(file).convert('RGB'), int(file.parent.name)) for file in self.files)

    def __len__(self):
        return len(self.files)


def test_both_splits_may_stand_in_one_folder(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, 'create_dataset', lambda *args, split, **kwargs: IterableImageDataset(
        '', reader=Stream(digits_folder, split)))
    assert len(read_summary(run(str(tmp_path), tmp_path, dataset='wds/digits'))) == 1


def test_shards_are_somewhere():
    with pytest.raises(InputError, match='No data set: give its folder with --data-dir'):
        validate(eval_settings(dataset='wds/digits'))
