import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset

from timm_advprop.engine.solar_cells import write_solar_cells
from timm_advprop.errors import InputError

PROBABILITIES = ('0.0', '0.3333333333333333', '0.6666666666666666', '1.0')
HOLDOUT = [11, 16, 25, 29, 35, 43, 45, 48, 54, 59, 68, 71, 72, 74, 84, 95, 111, 118, 124, 134, 141, 142, 148, 156]


def write_source(folder, of_each=20, size=12):
    """The package's files in small: cells of four probabilities and two types of module, in an order of their own."""
    cells = [(module, text) for module in ('mono', 'poly') for text in PROBABILITIES] * of_each
    cells = [cells[i] for i in np.random.RandomState(1).permutation(len(cells))]
    (folder / 'images').mkdir(parents=True)
    for i, _ in enumerate(cells):
        Image.fromarray(np.full((size, size), i, np.uint8)).save(folder / 'images' / f'cell{i + 1:04d}.png')
    (folder / 'labels.csv').write_text(''.join(
        f'images/cell{i + 1:04d}.png  {text}    {module}\n' for i, (module, text) in enumerate(cells)))
    return folder, cells


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / 'source')


def positions(folder, split):
    """Class folders by position in the source."""
    return {int(path.stem): path.parent.name for path in (folder / split).rglob('*.png')}


def test_every_cell_is_in_one_split_and_in_the_class_of_its_probability(tmp_path, source):
    source, cells = source
    counts = write_solar_cells(tmp_path / 'out', source, size=6)
    splits = {split: positions(tmp_path / 'out', split) for split in ('train', 'holdout', 'validation')}
    assert counts == {split: len(found) for split, found in splits.items()} == dict(train=96, holdout=24, validation=40)
    assert sorted(i for found in splits.values() for i in found) == list(range(len(cells)))
    for found in splits.values():
        for i, name in found.items():
            assert name == ('1_defective' if float(cells[i][1]) > 0.5 else '0_functional')


def test_splits_have_the_same_shares_of_each_type_and_probability(tmp_path, source):
    source, cells = source
    write_solar_cells(tmp_path / 'out', source, size=6)
    for split, of_each in (('train', 12), ('holdout', 3), ('validation', 5)):
        assert set(Counter(cells[i] for i in positions(tmp_path / 'out', split)).values()) == {of_each}


def test_splits_are_the_same_on_every_machine_and_for_every_size(tmp_path, source):
    source, _ = source
    for size in (6, 12):
        write_solar_cells(tmp_path / str(size), source, size)
    assert positions(tmp_path / '6', 'train') == positions(tmp_path / '12', 'train')
    assert sorted(positions(tmp_path / '6', 'holdout')) == HOLDOUT


def test_images_are_grey_and_resized(tmp_path, source):
    source, _ = source
    write_solar_cells(tmp_path / 'out', source, size=6)
    dataset = create_dataset('', root=str(tmp_path / 'out'), split='train', input_img_mode='L')
    for i in range(3):
        image, label = dataset[i]
        assert image.mode == 'L' and image.size == (6, 6)
        assert (np.asarray(image) == int(Path(dataset.filename(i)).stem)).all()
        assert label == ('1_defective' in dataset.filename(i))
    with pytest.raises(InputError, match='is not this data set'):
        write_solar_cells(tmp_path / 'out', source, size=12)


def test_the_package_is_the_source(tmp_path, monkeypatch):
    package = ModuleType('elpv_dataset')
    package.__file__ = str(tmp_path / 'package' / '__init__.py')
    write_source(tmp_path / 'package' / 'data', of_each=4)
    monkeypatch.setitem(sys.modules, 'elpv_dataset', package)
    assert sum(write_solar_cells(tmp_path / 'out', size=6).values()) == 32


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'elpv_dataset', None)
    with pytest.raises(InputError, match=r"pip install 'timm-advprop\[studies\]'"):
        write_solar_cells(tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('file, content, words', [
    ('labels.csv', None, 'No file .*labels.csv'),
    ('labels.csv', b'', 'is empty'),
    ('labels.csv', b'\xff', 'cannot be read'),
    ('labels.csv', b'images/cell0001.png 0.0 mono\nimages/cell0002.png 0.0\n', "csv, line 2 is not a file.*: 'im"),
    ('labels.csv', b'images/cell0001.png none mono\n', 'line 1 is not a file, a probability'),
    ('labels.csv', b'images/cell0001.png 1.5 mono\n', 'line 1: 1.5 is no probability'),
    ('images/cell0003.png', None, 'No file .*cell0003.png'),
    ('images/cell0003.png', b'no image', 'cell0003.png is damaged'),
])
def test_damaged_source(tmp_path, source, file, content, words):
    source, _ = source
    (source / file).unlink()
    if content is not None:
        (source / file).write_bytes(content)
    with pytest.raises(InputError, match=words):
        write_solar_cells(tmp_path / 'out', source, size=6)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('size, words', [(0, 'got 0'), (13, '12 pixels a side: 13 are too many')])
def test_sizes_that_cannot_be_are_refused(tmp_path, source, size, words):
    with pytest.raises(InputError, match=words):
        write_solar_cells(tmp_path / 'out', source[0], size)
