"""Published test sets: their folders, the classes that they have, and what may be wrong with them."""
import os
import pkgutil
import shutil

import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_dataset

from timm_advprop.corruptions.severities import CORRUPTIONS, GROUPS
from timm_advprop.errors import InputError
from timm_advprop.robustness.published_sets import (
    IMAGENET_C,
    PUBLISHED_SETS,
    check_num_classes,
    corruption_folders,
    missing_corruptions,
)

SYNSETS = ImageNetInfo().label_names()
NUMBERS = [str(index) for index in range(1000)]


def timm_list(name):
    return pkgutil.get_data('timm.data', f'_info/{name}.txt').decode().split()


def make_folders(root, names, file='0.JPEG'):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / file).touch()
    return root


def error_of(function, *args):
    with pytest.raises(InputError) as error:
        function(*args)
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Folders of 1,000 classes, which no test changes: by WordNet id and by number."""
    folder = tmp_path_factory.mktemp('whole')
    make_folders(folder / 'ids' / 'inner', SYNSETS)
    make_folders(folder / 'numbers' / 'imagenetv2-matched-frequency-format-val', NUMBERS, '0.jpeg')
    return folder


@pytest.fixture
def imagenet_a(tmp_path):
    root = make_folders(tmp_path / 'imagenet-a', timm_list('imagenet_a_synsets'), '0.000_fox.jpg')
    (root / 'README.txt').touch()
    return root


@pytest.mark.parametrize('name', ['imagenet-a', 'imagenet-r'])
def test_sets_of_200_classes_are_those_of_timm_in_the_order_of_imagenet(name, tmp_path):
    file = name.replace('-', '_')
    root = make_folders(tmp_path / name, reversed(timm_list(f'{file}_synsets')), '0.jpg')
    (root / 'README.txt').touch()
    found, indices = PUBLISHED_SETS[name].open_folder(str(root))
    assert found == str(root)
    assert list(indices) == list(map(int, timm_list(f'{file}_indices')))
    assert list(indices) == sorted(set(indices)) and len(indices) == 200
    assert [SYNSETS[index] for index in indices] == sorted(timm_list(f'{file}_synsets'))


def test_the_two_sets_of_200_classes_differ():
    assert PUBLISHED_SETS['imagenet-a'].class_indices()[:3] == (6, 11, 13)
    assert PUBLISHED_SETS['imagenet-r'].class_indices()[:3] == (1, 2, 4)


@pytest.mark.parametrize('name, folder', [
    ('imagenet-sketch', 'ids'), ('stylized', 'ids'), ('imagenet-c', 'ids'), ('imagenet-v2', 'numbers'),
])
def test_sets_of_all_classes_keep_all_logits(whole, name, folder):
    inner = next((whole / folder).iterdir())
    published = {**PUBLISHED_SETS, 'imagenet-c': IMAGENET_C}[name]
    assert published.open_folder(str(inner)) == (str(inner), None)
    assert published.open_folder(str(whole / folder)) == (str(inner), None)  # the only sub-folder


def test_numbered_folders_are_in_the_order_of_timm():
    assert PUBLISHED_SETS['imagenet-v2'].class_folders() == tuple(NUMBERS)  # and not 0, 1, 10, 100, …


@pytest.mark.parametrize('name, split', [('stylized', 'val'), ('imagenet-sketch', 'sketch')])
def test_the_split_is_taken_where_several_folders_have_classes(whole, tmp_path, name, split):
    for folder in (split, 'other'):
        (tmp_path / folder).symlink_to(whole / 'ids' / 'inner')
    assert PUBLISHED_SETS[name].open_folder(str(tmp_path))[0] == str(tmp_path / split)


def test_training_images_are_never_the_test_set(tmp_path):
    make_folders(tmp_path / 'train', SYNSETS[:2])
    assert error_of(PUBLISHED_SETS['stylized'].open_folder, str(tmp_path)) == (
        f'stylized: no class folders such as n01440764 in {tmp_path}.')


def test_several_sets_in_a_folder(tmp_path):
    for name in ('b-format-val', 'a-format-val'):
        make_folders(tmp_path / name, NUMBERS[:3])
    assert error_of(PUBLISHED_SETS['imagenet-v2'].open_folder, str(tmp_path)) == (
        f'imagenet-v2: several folders in {tmp_path} have class folders, give one of them: a-format-val, b-format-val.')


def test_no_such_folder(tmp_path):
    path = str(tmp_path / 'nothing')
    assert error_of(PUBLISHED_SETS['imagenet-a'].open_folder, path) == f'imagenet-a: no folder {path}.'
    assert error_of(IMAGENET_C.check_classes, path) == f'imagenet-c: no folder {path}.'
    assert error_of(corruption_folders, path) == f'imagenet-c: no folder {path}.'


def test_a_folder_without_classes(imagenet_a):
    assert error_of(PUBLISHED_SETS['imagenet-v2'].open_folder, str(imagenet_a)) == (
        f'imagenet-v2: no class folders such as 0 in {imagenet_a}.')


def test_missing_and_unexpected_classes_are_counted_and_named(imagenet_a):
    names = timm_list('imagenet_a_synsets')
    for name in names[10:14]:
        shutil.rmtree(imagenet_a / name)
    make_folders(imagenet_a, ['n01440764', 'cat'])
    assert error_of(PUBLISHED_SETS['imagenet-a'].open_folder, str(imagenet_a)) == (
        f'imagenet-a has 200 classes, of which {imagenet_a} has images of 196: '
        f'4 missing ({names[10]}, {names[11]}, {names[12]}, …), 2 unexpected (cat, n01440764).')


def test_another_set_is_not_taken_for_it(imagenet_a):
    message = error_of(PUBLISHED_SETS['imagenet-r'].open_folder, str(imagenet_a))
    common = len({*timm_list('imagenet_a_synsets')} & {*timm_list('imagenet_r_synsets')})
    assert f'has images of {common}: {200 - common} missing (' in message and f'{200 - common} unexpected (' in message


@pytest.mark.parametrize('file', [None, 'notes.txt'])
def test_a_class_without_images_is_missing(imagenet_a, file):
    """timm does not number it, and all later labels would be those of other classes."""
    name = timm_list('imagenet_a_synsets')[5]
    os.remove(imagenet_a / name / '0.000_fox.jpg')
    if file:
        (imagenet_a / name / file).touch()
    assert error_of(PUBLISHED_SETS['imagenet-a'].open_folder, str(imagenet_a)).endswith(
        f'has images of 199: 1 missing ({name}), 0 unexpected.')


def test_an_image_outside_of_the_class_folders_is_unexpected(imagenet_a):
    """It would be class 0 to timm."""
    (imagenet_a / 'examples.PNG').touch()
    assert error_of(PUBLISHED_SETS['imagenet-a'].open_folder, str(imagenet_a)).endswith(
        'has images of 200: 0 missing, 1 unexpected (images outside of folders).')


def test_a_folder_without_images_is_no_class(imagenet_a):
    (imagenet_a / '.cache').mkdir()
    assert len(PUBLISHED_SETS['imagenet-a'].open_folder(str(imagenet_a))[1]) == 200


@pytest.mark.parametrize('name', ['imagenet-a', 'imagenet-v2'])
def test_labels_of_timms_reader_are_the_true_classes(whole, tmp_path, name):
    numbered = name == 'imagenet-v2'
    folders = NUMBERS if numbered else timm_list('imagenet_a_synsets')
    image = tmp_path / 'image.jpg'
    Image.new('RGB', (2, 2)).save(image)
    for folder in reversed(folders):
        (tmp_path / 'set' / folder).mkdir(parents=True)
        os.link(image, tmp_path / 'set' / folder / '0.jpg')
    root, indices = PUBLISHED_SETS[name].open_folder(str(tmp_path / 'set'))
    dataset = create_dataset('', root=root)
    assert len(dataset) == len(folders)
    logits = torch.eye(1000)[:, indices or list(range(1000))]  # row i is sure of class i
    for number in (0, 17, len(folders) - 1):
        _, label = dataset[number]
        folder = dataset.filename(number).split(os.sep)[-2]
        true_class = int(folder) if numbered else SYNSETS.index(folder)
        assert logits[true_class].argmax() == label


def make_corruptions(root, places, severities='12345'):
    for place in places:
        for severity in severities:
            (root / place / severity).mkdir(parents=True)
    return str(root)


def test_corruptions_and_severities_of_imagenet_c(tmp_path):
    folders = corruption_folders(make_corruptions(tmp_path, [*reversed(CORRUPTIONS), *GROUPS['extra'], 'other']))
    assert list(folders) == [(name, severity) for name in (*CORRUPTIONS, *GROUPS['extra'])
                             for severity in range(1, 6)]
    assert len(folders) == 95
    assert folders['fog', 3] == str(tmp_path / 'fog' / '3')


def test_folders_of_the_tar_files_may_be_between(tmp_path):
    places = ['noise/shot_noise', 'blur/zoom_blur', 'weather/fog', 'digital/contrast', 'extra/spatter', 'frost']
    folders = corruption_folders(make_corruptions(tmp_path, places))
    assert {name: folders[name, 5] for name, severity in folders if severity == 5} == {
        place.split('/')[-1]: str(tmp_path / place / '5') for place in places}
    assert corruption_folders(str(tmp_path / 'weather'))['fog', 1] == str(tmp_path / 'weather' / 'fog' / '1')


def test_what_is_missing_for_a_mean_corruption_error(tmp_path):
    assert len(CORRUPTIONS) == 15 and missing_corruptions([]) == list(CORRUPTIONS)
    folders = corruption_folders(make_corruptions(tmp_path, [name for name in CORRUPTIONS if name != 'snow']))
    assert missing_corruptions(name for name, _ in folders) == ['snow']
    assert missing_corruptions(CORRUPTIONS) == []  # the extra ones are no part of it


def test_a_missing_severity_is_named(tmp_path):
    make_corruptions(tmp_path, ['fog'], '1245')
    make_corruptions(tmp_path, ['noise/shot_noise'])
    assert error_of(corruption_folders, str(tmp_path)) == f'imagenet-c: no folder {tmp_path / "fog" / "3"}.'


def test_no_corruptions(tmp_path):
    make_corruptions(tmp_path, ['guassian_noise'])
    assert error_of(corruption_folders, str(tmp_path)) == (
        f'imagenet-c: no corruptions such as gaussian_noise in {tmp_path}.')


def test_classes_of_imagenet_c_are_checked_by_condition_alone(whole, tmp_path):
    folder = make_corruptions(tmp_path, ['fog'], '1345')
    (tmp_path / 'fog' / '2').symlink_to(whole / 'ids' / 'inner')
    folders = corruption_folders(folder)
    IMAGENET_C.check_classes(folders['fog', 2])
    assert error_of(IMAGENET_C.check_classes, folders['fog', 1]) == (
        f'imagenet-c has 1000 classes, of which {folders["fog", 1]} has images of 0: '
        f'1000 missing (n01440764, n01443537, n01484850, …), 0 unexpected.')


def test_images_are_not_read(imagenet_a, monkeypatch):
    monkeypatch.setattr('builtins.open', lambda *args, **kwargs: pytest.fail(f'opened {args}'))
    assert PUBLISHED_SETS['imagenet-a'].open_folder(str(imagenet_a))


def test_only_models_of_the_imagenet_classes():
    check_num_classes('imagenet-a', 1000)
    for count in (10, 1001):
        assert error_of(check_num_classes, 'imagenet-a', count) == (
            f'imagenet-a evaluates models of the 1,000 ImageNet classes, this one has {count}.')
