"""Test sets of ImageNet's classes through validate.py, on small folders of the layouts that their authors publish."""
import os
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

from tests.robustness.suite_runs import read_rows
from timm_advprop.cli.validate import main
from timm_advprop.corruptions.severities import CORRUPTIONS
from timm_advprop.engine.eval_settings import EvalDataSettings
from timm_advprop.robustness import image_suites

pytestmark = pytest.mark.usefixtures('one_thread')

SYNSETS = ImageNetInfo().label_names()
SIZE = 8
FLAGS = ['--model', 'test_resnet', '--img-size', '32', '--mean', '.5', '--std', '.5', '--interpolation', 'nearest',
         '--workers', '0', '--device', 'cpu', '--batch-size', '50']


def synsets_of(name):
    return pkgutil.get_data('timm.data', f'_info/{name}_synsets.txt').decode().split()


def write_images(root, classes, name='0.png', seed=0):
    """An image of SIZE × SIZE blocks of 4 × 4 pixels for each class; returns them as a network sees them."""
    rng = np.random.default_rng(seed)
    images = []
    for each in classes:
        blocks = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        (root / each).mkdir(parents=True)
        Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(root / each / name)
        images.append(blocks.repeat(4, 0).repeat(4, 1))
    return (torch.tensor(np.stack(images)).movedim(-1, 1).float() / 255 - .5) / .5


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A network of 1,000 classes whose answers differ between images."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet')
    torch.nn.init.normal_(model.fc.weight)
    path = tmp_path_factory.mktemp('imagenet') / 'model.pth'
    torch.save(model.state_dict(), path)
    return path


def logits_of(checkpoint, images):
    model = timm.create_model('test_resnet').eval()
    model.load_state_dict(torch.load(checkpoint))
    with torch.no_grad():
        return model(images)


def rows_of(checkpoint, path, *flags):
    main([*FLAGS, '--checkpoint', str(checkpoint), '--results-file', str(path), *flags])
    return read_rows(path)


@pytest.mark.parametrize('name', ['imagenet-a', 'imagenet-r'])
def test_a_set_of_200_classes_is_evaluated_on_these_alone(checkpoint, tmp_path, name):
    classes = synsets_of(name.replace('-', '_'))
    indices = [SYNSETS.index(each) for each in sorted(classes)]
    images = write_images(tmp_path / 'set', sorted(classes), name='0.png')
    logits = logits_of(checkpoint, images)
    answers = logits[:, indices].argmax(1)
    for label, answer in enumerate(answers[:60].tolist()):  # 60 images get another class's folder, that of the answer
        source = tmp_path / 'set' / sorted(classes)[label] / '0.png'
        os.link(source, tmp_path / 'set' / sorted(classes)[answer] / f'right-{label}.png')
    right = int((answers == torch.arange(200)).sum()) + 60
    assert (logits.argmax(1) == torch.tensor(indices)).sum() < right / 2  # among all 1,000 classes few are right
    row, = rows_of(checkpoint, tmp_path / 'r.csv', '--suite', f'{name}={tmp_path / "set"}', '--crop-pct', '1')
    assert (row['suite'], row['dataset'], row['split'], row['num_images']) == (name, name, '', '260')
    assert float(row['top1']) == pytest.approx(100 * right / 260, abs=1e-3)


def test_the_folder_may_be_the_data_set_where_the_suite_stands_alone(checkpoint, tmp_path):
    write_images(tmp_path / 'set', synsets_of('imagenet_a'))
    named = rows_of(checkpoint, tmp_path / 'named.csv', '--suite', f'imagenet-a={tmp_path / "set"}')
    alone = rows_of(checkpoint, tmp_path / 'alone.csv', '--data-dir', str(tmp_path / 'set'), '--suite', 'imagenet-a')
    assert [row['top1'] for row in alone] == [row['top1'] for row in named]


@pytest.fixture(scope='module')
def validation(tmp_path_factory):
    """A validation split of an image a class, with the names of ImageNet's files; and the images."""
    folder = tmp_path_factory.mktemp('data')
    images = write_images(folder / 'validation', SYNSETS)
    for number, synset in enumerate(SYNSETS, 1):
        image = folder / 'validation' / synset / '0.png'
        image.rename(image.with_name(f'ILSVRC2012_val_{number:08d}.JPEG'))
    return folder, images


def test_real_labels_are_those_of_timm(checkpoint, validation, tmp_path):
    folder, _ = validation
    clean, real = rows_of(checkpoint, tmp_path / 'r.csv', '--data-dir', str(folder), '--suite', 'imagenet-real')
    labels = tmp_path / 'real.json'
    labels.write_bytes(pkgutil.get_data('timm.data', '_info/imagenet_real_labels.json'))
    main([*FLAGS, '--checkpoint', str(checkpoint), '--data-dir', str(folder), '--real-labels', str(labels),
          '--results-file', str(tmp_path / 'alone.csv')])
    alone, = read_rows(tmp_path / 'alone.csv')
    assert (clean['suite'], real['suite']) == ('clean', 'imagenet-real')
    assert real['top1'] == alone['top1'] and real['top5'] == alone['top5'] != clean['top5']


def test_corruptions_of_imagenet_have_an_error_relative_to_alexnet(checkpoint, validation, tmp_path, monkeypatch):
    monkeypatch.setattr(image_suites, 'ALL_CORRUPTIONS', ('contrast', 'pixelate'))
    rows = rows_of(checkpoint, tmp_path / 'r.csv', '--data-dir', str(validation[0]), '--suite', 'corruptions',
                   '--num-samples', '50')
    assert [row['imagenet_classes'] for row in rows] == ['', *['True'] * 10]


@pytest.mark.slow
def test_the_published_files_of_imagenet_c(checkpoint, validation, tmp_path):
    folder, _ = validation
    for name in CORRUPTIONS[:2]:
        for severity in range(1, 6):
            root = tmp_path / 'noise' / name / str(severity)
            for synset in SYNSETS:
                (root / synset).mkdir(parents=True)
                file = next((Path(folder) / 'validation' / synset).iterdir())
                os.link(file, root / synset / file.name)
    rows = rows_of(checkpoint, tmp_path / 'r.csv', '--suite', f'imagenet-c={tmp_path}')
    assert [(row['suite'], row['condition'], row['severity']) for row in rows] == [
        ('imagenet-c', name, str(severity)) for name in CORRUPTIONS[:2] for severity in range(1, 6)]
    assert {row['crop_pct'] for row in rows} == {'1.0'}  # the files are cropped already
    clean, *_ = rows_of(checkpoint, tmp_path / 'clean.csv', '--data-dir', str(folder), '--crop-pct', '1', '--suite',
                        'attacks', '--adv-steps', '1', '--adv-eps', '1')
    assert {(row['top1'], row['top5']) for row in rows} == {(clean['top1'], clean['top5'])}


@pytest.mark.slow
def test_images_of_other_sets(checkpoint, tmp_path):
    images = write_images(tmp_path / 'v2' / 'imagenetv2-matched-frequency-format-val', map(str, range(1000)))
    write_images(tmp_path / 'sketch', SYNSETS)
    right = (logits_of(checkpoint, images).topk(5).indices == torch.arange(1000)[:, None]).any(1)
    rows = rows_of(checkpoint, tmp_path / 'r.csv', '--suite', f'imagenet-v2={tmp_path / "v2"}',
                   f'imagenet-sketch={tmp_path / "sketch"}', f'stylized={tmp_path / "sketch"}', '--crop-pct', '1')
    assert [row['suite'] for row in rows] == ['imagenet-v2', 'imagenet-sketch', 'stylized']
    assert len({row['top5'] for row in rows}) == 1  # the same images
    assert float(rows[0]['top5']) == pytest.approx(100 * right.double().mean().item(), abs=1e-3)


def test_other_classes_have_no_error_relative_to_alexnet(few_digits, tmp_path):
    for folder, of_imagenet in ((few_digits, False), (tmp_path, True)):
        if of_imagenet:
            write_images(tmp_path / 'validation', SYNSETS)
        assert image_suites._has_imagenet_classes(EvalDataSettings(data_dir=str(folder)), 3) == of_imagenet
