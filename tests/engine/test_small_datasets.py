import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from timm.data import RandomResizedCropAndInterpolation, create_dataset

from timm_advprop.engine import image_folder
from timm_advprop.engine.small_datasets import write_digits, write_fashion_mnist
from timm_advprop.errors import InputError

from .idx_files import LABELS, gzip_bytes, idx_bytes, images_like, write_source


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / 'source')


def read_back(folder, split):
    # Pixels and labels by position in the source, as timm's training script reads them.
    dataset = create_dataset('', root=str(folder), split=split)
    images = {}
    for i in range(len(dataset)):
        image, label = dataset[i]
        assert image.mode == 'RGB'
        pixels = np.asarray(image)
        assert (pixels == pixels[..., :1]).all()
        images[int(Path(dataset.filename(i)).stem)] = (pixels[..., 0], label)
    return images


def files_below(folder):
    return sorted(path for path in folder.rglob('*') if path.is_file())


def test_digits_read_back_as_scikit_learn_has_them(tmp_path):
    from sklearn.datasets import load_digits
    digits = load_digits()
    counts = write_digits(tmp_path / 'digits')
    train, validation = read_back(tmp_path / 'digits', 'train'), read_back(tmp_path / 'digits', 'validation')
    assert counts == {'train': len(train), 'validation': len(validation)} == {'train': 1438, 'validation': 359}
    assert not train.keys() & validation.keys()
    for position, (pixels, label) in {**train, **validation}.items():
        assert label == digits.target[position]
        assert pixels.shape == (8, 8)
        assert np.abs(pixels - digits.images[position] * 255 / 16).max() <= 0.5
    assert len(train) + len(validation) == len(digits.target)


def test_digits_validation_is_a_fifth_of_each_class(tmp_path):
    write_digits(tmp_path / 'digits')
    for name in '0123456789':
        train, validation = (len(files_below(tmp_path / 'digits' / split / name)) for split in ('train', 'validation'))
        assert abs(validation - (train + validation) / 5) <= 0.5


def test_digits_are_the_same_on_every_machine(tmp_path):
    write_digits(tmp_path / 'digits')
    digest = hashlib.sha256()
    for path in files_below(tmp_path / 'digits'):
        digest.update(path.relative_to(tmp_path).as_posix().encode() + Image.open(path).tobytes())
    assert digest.hexdigest() == '2cd8ce0740e0caa4dd2d12d023f2c5dcdec112b384b1910a8860eea9a7ed8b6e'


def test_digits_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(InputError, match=r"pip install 'timm-advprop\[data\]'"):
        write_digits(tmp_path / 'digits')
    assert list(tmp_path.iterdir()) == []


def test_fashion_mnist_reads_back_as_in_the_source(tmp_path, source):
    assert write_fashion_mnist(tmp_path / 'out', source) == {'train': 14, 'validation': 10}
    for seed, (split, labels) in enumerate((('train', LABELS), ('validation', LABELS[:10]))):
        images = read_back(tmp_path / 'out', split)
        assert sorted(images) == list(range(len(labels)))
        for position, expected in enumerate(images_like(labels, seed)):
            pixels, label = images[position]
            assert label == labels[position]
            np.testing.assert_array_equal(pixels, expected)


def test_class_names(tmp_path, source):
    write_fashion_mnist(tmp_path / 'out', source)
    class_to_idx = create_dataset('', root=str(tmp_path / 'out'), split='train').reader.class_to_idx
    assert class_to_idx['0_t-shirt_top'] == 0
    assert class_to_idx['9_ankle_boot'] == 9


@pytest.mark.parametrize('name, content, message', [
    ('train-images-idx3-ubyte.gz', None, 'No file .*train-images'),
    ('t10k-labels-idx1-ubyte.gz', None, 'No file .*t10k-labels'),
    ('train-images-idx3-ubyte.gz', b'<!DOCTYPE html>', 'damaged or cannot be read'),
    ('train-images-idx3-ubyte.gz', gzip_bytes(bytes(range(256)) * 99)[:-20], 'damaged or cannot be read'),
    ('train-images-idx3-ubyte.gz', gzip_bytes(b''), 'starts with nothing'),
    ('train-images-idx3-ubyte.gz', gzip_bytes(bytes((0, 0, 8, 3, 0, 0))), 'starts with 00000803'),
    ('train-images-idx3-ubyte.gz', gzip_bytes(idx_bytes(LABELS)), 'not an idx file .* starts with 00000801'),
    ('train-labels-idx1-ubyte.gz', gzip_bytes(idx_bytes(LABELS, data_type=13)), 'starts with 00000d01'),
    ('train-images-idx3-ubyte.gz', gzip_bytes(idx_bytes(images_like(LABELS, 0))[:-1]), '14 × 5 × 4 = 280'),
    ('train-images-idx3-ubyte.gz', gzip_bytes(idx_bytes(images_like(LABELS, 0)) + b'0'), 'holds 281 bytes'),
    ('train-labels-idx1-ubyte.gz', gzip_bytes(idx_bytes(LABELS[:12])), '14 train images, but 12 labels'),
    ('train-labels-idx1-ubyte.gz', gzip_bytes(idx_bytes(LABELS + 1)), 'not the classes 0 to 9'),
    ('train-labels-idx1-ubyte.gz', gzip_bytes(idx_bytes(LABELS // 2)), 'not the classes 0 to 9'),
])
def test_damaged_source(tmp_path, source, name, content, message):
    (source / name).unlink()
    if content is not None:
        (source / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        write_fashion_mnist(tmp_path / 'out', source)
    assert not (tmp_path / 'out').exists()


def test_missing_source(tmp_path):
    with pytest.raises(InputError, match='dataset-fashion-mnist'):
        write_fashion_mnist(tmp_path / 'out', tmp_path / 'nowhere')


def test_finished_folder_is_left_as_it_is(tmp_path, source, capsys):
    first = write_fashion_mnist(tmp_path / 'out', source)
    modified = {path: path.stat().st_mtime_ns for path in files_below(tmp_path / 'out')}
    capsys.readouterr()
    assert write_fashion_mnist(tmp_path / 'out', source) == first
    assert 'already' in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in files_below(tmp_path / 'out')} == modified


@pytest.mark.parametrize('change', ['missing', 'more', 'other'])
def test_folder_with_other_content_is_refused_and_kept(tmp_path, source, change):
    folder = tmp_path / 'out'
    write_fashion_mnist(folder, source)
    if change == 'missing':
        files_below(folder)[0].unlink()
    elif change == 'more':
        (folder / 'notes.txt').write_text('mine')
    content = files_below(folder)
    with pytest.raises(InputError, match='not empty'):
        write_digits(folder) if change == 'other' else write_fashion_mnist(folder, source)
    assert files_below(folder) == content


def test_folder_of_empty_folders_is_refused(tmp_path, source):
    (tmp_path / 'out' / 'train').mkdir(parents=True)
    with pytest.raises(InputError, match='not empty'):
        write_fashion_mnist(tmp_path / 'out', source)


def test_empty_and_nested_folders(tmp_path, source):
    (tmp_path / 'empty').mkdir()
    for folder in (tmp_path / 'empty', tmp_path / 'a' / 'b'):
        write_fashion_mnist(folder, source)
        assert len(files_below(folder)) == 24


def test_destination_below_a_file(tmp_path, source):
    (tmp_path / 'file').write_text('')
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'out'):
        with pytest.raises(InputError, match='Cannot write .*(Not a directory|File exists)'):
            write_fashion_mnist(folder, source)
    assert (tmp_path / 'file').is_file()


@pytest.mark.parametrize('failure, expected', [
    (OSError(28, 'No space left on device'), InputError),
    (KeyboardInterrupt(), KeyboardInterrupt),
])
def test_failure_leaves_nothing_behind(tmp_path, source, monkeypatch, failure, expected):
    save, saved = Image.Image.save, []

    def save_some(image, path):
        if len(saved) == 5:
            raise failure
        save(image, path)
        saved.append(path)

    monkeypatch.setattr(Image.Image, 'save', save_some)
    with pytest.raises(expected):
        write_fashion_mnist(tmp_path / 'parent' / 'out', source)
    assert len(saved) == 5
    assert list((tmp_path / 'parent').iterdir()) == []


def test_progress(tmp_path, source, monkeypatch, capsys):
    write_fashion_mnist(tmp_path / 'short', source)
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(image_folder, 'PROGRESS_SECONDS', 0.)
    write_fashion_mnist(tmp_path / 'out', source)
    lines = capsys.readouterr().err.split('\r')
    assert any(' 0/24 ' in line for line in lines) and all('images/s' in line for line in lines if '/24' in line)


@pytest.fixture
def balanced_source(tmp_path):
    # six training images of each class, in an order of their own
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(10, dtype=np.uint8), 6))
    return write_source(tmp_path / 'balanced', labels)


def test_parts_of_the_training_set_are_balanced_disjoint_and_always_the_same(tmp_path, balanced_source):
    counts = write_fashion_mnist(tmp_path / 'a', balanced_source, num_train=20, num_holdout=10)
    assert counts == dict(train=20, validation=10, holdout=10)
    parts = {split: read_back(tmp_path / 'a', split) for split in ('train', 'holdout')}
    for split, of_each_class in (('train', 2), ('holdout', 1)):
        labels = [label for _, label in parts[split].values()]
        assert np.bincount(labels).tolist() == [of_each_class] * 10
    assert not set(parts['train']) & set(parts['holdout'])
    assert sorted(parts['holdout']) == [7, 8, 11, 14, 21, 33, 35, 51, 56, 59]  # on every machine
    write_fashion_mnist(tmp_path / 'b', balanced_source, num_train=30, num_holdout=10)
    assert set(read_back(tmp_path / 'b', 'holdout')) == set(parts['holdout'])
    assert set(read_back(tmp_path / 'b', 'train')) > set(parts['train'])
    assert write_fashion_mnist(tmp_path / 'c', balanced_source, num_holdout=10)['train'] == 50
    with pytest.raises(InputError, match='is not this data set'):
        write_fashion_mnist(tmp_path / 'a', balanced_source, num_train=30, num_holdout=10)


@pytest.mark.parametrize('num_train, num_holdout, words', [
    (25, 0, 'training images must be a multiple of 10, got 25'),
    (20, 5, 'held-out images must be a multiple of 10, got 5'),
    (-10, 0, 'got -10'),
    (60, 10, 'Cannot take 60 training and 10 held-out images: each class has 6'),
    (None, 60, 'Cannot take 0 training'),
])
def test_parts_that_cannot_be_taken_are_refused(tmp_path, balanced_source, num_train, num_holdout, words):
    with pytest.raises(InputError, match=words):
        write_fashion_mnist(tmp_path / 'out', balanced_source, num_train, num_holdout)
    assert not (tmp_path / 'out').exists()


def test_padded_training_images_are_shifted_by_random_crops(tmp_path, source):
    write_fashion_mnist(tmp_path / 'plain', source)
    write_fashion_mnist(tmp_path / 'padded', source, padding=2)
    for path in files_below(tmp_path / 'plain'):
        plain, padded = (np.asarray(Image.open(tmp_path / folder / path.relative_to(tmp_path / 'plain')))
                         for folder in ('plain', 'padded'))
        width = 2 if 'train' in path.parts else 0
        assert np.array_equal(padded, np.pad(plain, width))


def test_another_border_is_another_data_set(tmp_path, source):
    write_fashion_mnist(tmp_path / 'out', source, padding=2)
    with pytest.raises(InputError, match='not this data set'):
        write_fashion_mnist(tmp_path / 'out', source)
    with pytest.raises(InputError, match='at least 0 pixels wide, got -1'):
        write_fashion_mnist(tmp_path / 'new', source, padding=-1)


def test_the_recipe_crops_whole_pixels():
    recipe = yaml.safe_load((Path(__file__).parents[2] / 'hparams/test_resnet_fashion_mnist.yaml').read_text())
    crop = RandomResizedCropAndInterpolation(28, scale=recipe['scale'], ratio=recipe['ratio'], interpolation='bilinear')
    corners = set()
    for _ in range(200):
        top, left, height, width = crop.get_params(Image.new('L', (32, 32)), crop.scale, crop.ratio)
        assert (height, width) == (28, 28)
        corners.add((top, left))
    assert corners == {(top, left) for top in range(5) for left in range(5)}
