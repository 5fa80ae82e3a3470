"""Corruptions as transforms: what is drawn follows from the seed, the name and the image; their place in timm's."""
import pickle
import random
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tests.corruptions.drawn_images import drawn_image
from timm_advprop.corruptions.severities import ALL_CORRUPTIONS
from timm_advprop.engine.datasets import insert_before_tensor
from timm_advprop.errors import InputError
from timm_advprop.robustness.corrupted_images import Corruption


@pytest.fixture(scope='module')
def image():
    return Image.fromarray(drawn_image(28, 36))


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize('mode', ['L', 'RGB'])
@pytest.mark.parametrize('name', ALL_CORRUPTIONS)
def test_mode_and_size_stay(image, name, mode):
    result = Corruption(name, 3)(image.convert(mode))
    assert (result.mode, result.size) == (mode, image.size)


def test_the_same_image_gets_the_same_pixels(image):
    first = pixels(Corruption('gaussian_noise', 3, seed=7)(image))
    np.random.seed(5)
    random.seed(5)
    torch.manual_seed(5)
    assert np.array_equal(pixels(Corruption('gaussian_noise', 3, seed=7)(image.copy())), first)


def noise_of(image, name='gaussian_noise', severity=1, seed=0):
    return pixels(Corruption(name, severity, seed)(image)) - pixels(image)


def alike(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def test_another_image_seed_or_name_draws_anew():
    grey = Image.new('RGB', (32, 32), (128,) * 3)
    other = grey.copy()
    other.putpixel((31, 31), (127, 128, 128))
    noise = noise_of(grey)
    assert abs(alike(noise, noise_of(other))) < .1
    assert abs(alike(noise, noise_of(grey, seed=1))) < .1
    assert abs(alike(noise, noise_of(grey, name='speckle_noise'))) < .1
    assert abs(alike(noise_of(Image.new('L', (32, 16), 9)), noise_of(Image.new('L', (16, 32), 9)))) < .2


def test_severities_share_what_is_drawn():
    grey = Image.new('RGB', (32, 32), (128,) * 3)
    assert alike(noise_of(grey, severity=1), noise_of(grey, severity=5)) > .99


def test_generators_of_the_process_are_left_alone(image):
    np.random.seed(0)
    before = np.random.get_state()[2], random.getstate(), torch.random.get_rng_state()
    for name in ALL_CORRUPTIONS:
        Corruption(name, 2)(image)
    assert (np.random.get_state()[2], random.getstate()) == before[:2]
    assert torch.equal(torch.random.get_rng_state(), before[2])


class Drawn(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __getitem__(self, index):
        return self.transform(Image.fromarray(drawn_image(36, seed=index)))

    def __len__(self):
        return 6


def test_workers_and_batches_make_no_difference():
    transform = insert_before_tensor(create_transform(28, is_training=False), Corruption('snow', 4))
    alone = torch.cat(list(DataLoader(Drawn(transform), batch_size=1)))
    assert torch.equal(torch.cat(list(DataLoader(Drawn(transform), batch_size=4, num_workers=2))), alone)
    assert not torch.equal(alone[0], alone[1])


def test_it_is_frozen_and_can_be_sent_to_a_worker(image):
    corruption = Corruption('fog', 2, seed=3)
    sent = pickle.loads(pickle.dumps(corruption))
    assert sent == corruption and np.array_equal(pixels(sent(image)), pixels(corruption(image)))
    with pytest.raises(FrozenInstanceError):
        corruption.severity = 3


@pytest.mark.parametrize('arguments', [('fogg', 1), ('fog', 0), ('fog', 6)])
def test_unknown_names_and_severities_are_refused_at_once(arguments):
    with pytest.raises(InputError):
        Corruption(*arguments)


@pytest.mark.parametrize('mode', ['1', 'P', 'RGBA', 'I;16', 'F'])
def test_images_of_other_modes_are_refused(mode):
    with pytest.raises(InputError, match=f'mode L or RGB, got {mode}'):
        Corruption('fog', 1)(Image.new(mode, (32, 32)))


@pytest.mark.parametrize('use_prefetcher', [False, True])
@pytest.mark.parametrize('input_size', [(3, 28, 28), (3, 24, 40)])
def test_place_in_the_transform_of_timm(input_size, use_prefetcher):
    transform = create_transform(input_size, is_training=False, use_prefetcher=use_prefetcher)
    before, seen = list(transform.transforms), []

    def corruption(image):
        seen.append(image)
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    corrupting = insert_before_tensor(transform, corruption)
    source = Image.fromarray(drawn_image(50, 70))
    result = corrupting(source)
    assert seen[0].size == input_size[:0:-1] and seen[0].mode == 'RGB'
    assert torch.equal(torch.flip(result, [1]), transform(source))
    assert transform.transforms == before


def test_a_transform_without_a_stage_to_a_tensor_is_refused():
    with pytest.raises(InputError, match='No stage of .*CenterCrop.* makes a tensor'):
        insert_before_tensor(transforms.Compose([transforms.CenterCrop(8)]), Corruption('fog', 1))
