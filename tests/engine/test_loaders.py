"""Loaders of a training run: what each flag does to the batches."""
import pytest
import torch
from timm.data import IterableImageDataset, Mixup
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.engine.runs import CONFIG, CPU, train_settings
from timm_advprop.engine.loaders import TrainLoader, build_loaders
from timm_advprop.engine.placement import Placement
from timm_advprop.errors import InputError

PLAIN = dict(no_aug=True, smoothing=0.)


def loaders_of(data, config=CONFIG, placement=CPU, **values):
    return build_loaders(train_settings(data_dir=data, **values), config, 10, placement)


def first_batch(data, seed=0, **values):
    torch.manual_seed(seed)
    return next(iter(loaders_of(data, **values).train))


def pixels_of(data, seed=0, **values):
    """Normalised back to 0–255."""
    images, _ = first_batch(data, seed, **values)
    return ((images * .5 + .5) * 255).round()


def test_batches_are_of_the_size_and_shape_asked_for(few_digits):
    loaders = loaders_of(few_digits, **PLAIN)
    batches = list(loaders.train)
    assert [images.shape for images, _ in batches] == [(16, 3, 32, 32)] * 4
    assert [target.shape for _, target in batches] == [(16,)] * 4
    assert loaders.mixup_fn is None
    assert sum(len(target) for _, target in loaders.eval) == 40


def test_validation_batches_have_a_size_of_their_own(few_digits):
    def sizes(**values):
        return [len(target) for _, target in loaders_of(few_digits, **PLAIN, **values).eval]

    assert sizes() == [16, 16, 8]
    assert sizes(validation_batch_size=40) == [40]


def test_without_a_validation_split_there_is_no_loader(few_digits):
    assert loaders_of(few_digits, val_split='').eval is None


def test_each_image_is_seen_once_an_epoch_and_the_last_batch_is_dropped(few_digits):
    labels = torch.cat([target for _, target in loaders_of(few_digits, **PLAIN).train])
    assert labels.bincount().tolist() == [7, 7, 7, 7, 6, 6, 6, 6, 6, 6]
    assert len(loaders_of(few_digits, batch_size=20).train) == 3


def test_images_are_of_one_channel(few_digits):
    config = dict(CONFIG, input_size=(1, 32, 32), mean=(.5,), std=(.5,))
    images, _ = first_batch(few_digits, config=config, **PLAIN)
    assert images.shape == (16, 1, 32, 32)


def test_images_are_normalised_by_mean_and_std(few_digits):
    images, _ = first_batch(few_digits, **PLAIN)
    other, _ = first_batch(few_digits, config=dict(CONFIG, mean=(.1, .2, .3), std=(1., 2., .5)), **PLAIN)
    pixels = images * .5 + .5
    expected = (pixels - torch.tensor([.1, .2, .3]).view(3, 1, 1)) / torch.tensor([1., 2., .5]).view(3, 1, 1)
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize('no_prefetcher', [True, False])
@pytest.mark.parametrize('dtype', [torch.bfloat16, None])
def test_the_prefetcher_delivers_images_of_the_models_type(few_digits, no_prefetcher, dtype):
    placement = Placement(torch.device('cpu'), dtype=dtype)
    images, _ = first_batch(few_digits, placement=placement, no_prefetcher=no_prefetcher, **PLAIN)
    assert images.dtype == (torch.float32 if no_prefetcher or dtype is None else dtype)


# what is done to images

def test_without_augmentation_the_same_image_is_the_same_pixels(few_digits):
    assert torch.equal(pixels_of(few_digits, **PLAIN), pixels_of(few_digits, **PLAIN))
    # the order is that of the loader's seed; augmented ones differ from them
    assert not torch.equal(pixels_of(few_digits, **PLAIN), pixels_of(few_digits, smoothing=0.))


STILL = dict(scale=[1., 1.], ratio=[1., 1.], hflip=0., color_jitter=0., smoothing=0., train_interpolation='bicubic')


def test_flips(few_digits):
    still = pixels_of(few_digits, **STILL)
    assert torch.equal(still, pixels_of(few_digits, **PLAIN))  # nothing but flips is left
    assert torch.equal(still, pixels_of(few_digits, **{**STILL, 'train_interpolation': ''}))  # that of evaluation
    assert torch.equal(pixels_of(few_digits, **{**STILL, 'hflip': 1.}), still.flip(3))
    assert torch.equal(pixels_of(few_digits, **{**STILL, 'vflip': 1.}), still.flip(2))


@pytest.mark.parametrize('flags', [
    dict(scale=[.1, .2]), dict(ratio=[2., 3.], scale=[.5, .6]), dict(color_jitter=.9), dict(gaussian_blur_prob=1.),
    dict(aa='rand-m9'), dict(train_interpolation='nearest'), dict(train_crop_mode='rkrr', scale=[.5, .6]),
], ids=str)
def test_augmentation_changes_the_images(few_digits, flags):
    still, changed = pixels_of(few_digits, **STILL), pixels_of(few_digits, **{**STILL, **flags})
    assert not torch.equal(changed, still)
    assert (changed - still).abs().mean() < 128  # they are still images of the same digits


def test_grayscale_makes_channels_equal(few_digits):
    coloured = pixels_of(few_digits, **{**STILL, 'color_jitter': .9, 'aa': None})
    assert torch.equal(coloured[:, 0], coloured[:, 1])  # digits are grey, so a jitter of brightness keeps them so
    grey = pixels_of(few_digits, **{**STILL, 'grayscale_prob': 1.})
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_random_erasing_by_mode_and_count(few_digits):
    still = pixels_of(few_digits, **STILL)

    def erased(**values):
        images = pixels_of(few_digits, **STILL, reprob=1., **values)
        return images, (images != still).any(1)

    images, at = erased(remode='const')
    assert at.flatten(1).any(1).all()
    values = images.movedim(1, -1)[at]
    assert (values == 128).all()  # 0 in normalised units
    _, by_pixel = erased(remode='pixel')
    assert by_pixel.float().mean() > 0.02
    assert loaders_of(few_digits, reprob=1., recount=3).train.erasing.erasing.max_count == 3
    assert not (pixels_of(few_digits, **STILL, reprob=0.) != still).any()


# parts of a batch that show the same images

def test_augmentation_splits_show_the_same_images_clean_and_augmented(few_digits):
    images, target = first_batch(few_digits, aug_splits=3, aa='augmix-m5-w2', **{**STILL, 'scale': [.5, 1.]})
    assert images.shape[0] == 48 and target.shape[0] == 48
    parts = target.chunk(3)
    assert torch.equal(parts[0], parts[1]) and torch.equal(parts[0], parts[2])
    one, two, three = images.chunk(3)
    assert not torch.equal(one, two) and not torch.equal(two, three)


@pytest.mark.parametrize('resplit', [True, False])
def test_the_first_split_is_not_erased_where_asked(few_digits, resplit):
    values = dict(STILL, aug_splits=2, aa='augmix-m1-w1')
    still = pixels_of(few_digits, **values).chunk(2)
    erased = pixels_of(few_digits, reprob=1., resplit=resplit, remode='const', **values).chunk(2)
    assert torch.equal(erased[0], still[0]) == resplit
    assert not torch.equal(erased[1], still[1])


def test_repeated_augmentation_needs_processes(few_digits):
    with pytest.raises(InputError, match='(?i)repeat'):
        loaders_of(few_digits, aug_repeats=3)


def test_repeated_augmentation_shows_a_process_different_copies_of_an_image(few_digits, monkeypatch):
    monkeypatch.setattr(torch.distributed, 'is_available', lambda: True)
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda group=None: 2)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda group=None: 0)
    placement = Placement(torch.device('cpu'), world_size=2, distributed=True)
    loaders = loaders_of(few_digits, placement=placement, aug_repeats=3, batch_size=8)
    sampler = loaders.train.loader.sampler
    assert type(sampler).__name__ == 'RepeatAugSampler' and sampler.num_repeats == 3


# mixup and cutmix

@pytest.mark.parametrize('no_prefetcher', [True, False])
@pytest.mark.parametrize('flags', [dict(mixup=.5), dict(cutmix=1.), dict(cutmix_minmax=[.4, .6]),
                                   dict(mixup=.5, cutmix=1., mixup_mode='elem')], ids=str)
def test_mixing_makes_soft_targets_of_two_images(few_digits, flags, no_prefetcher):
    torch.manual_seed(0)
    loaders = loaders_of(few_digits, no_prefetcher=no_prefetcher, **flags, **PLAIN)
    images, target = next(iter(loaders.train))
    assert (loaders.mixup_fn is not None) == no_prefetcher
    if no_prefetcher:
        assert isinstance(loaders.mixup_fn, Mixup) and target.shape == (16,)
        images, target = loaders.mixup_fn(images, target)
    assert target.shape == (16, 10)
    torch.testing.assert_close(target.sum(1), torch.ones(16))
    assert ((target > 0).sum(1) <= 2).all() and ((target > 0).sum(1) == 2).any()
    plain = pixels_of(few_digits, **PLAIN)
    assert not torch.equal(((images * .5 + .5) * 255).round(), plain)


def test_mixed_targets_are_smoothed(few_digits):
    _, target = first_batch(few_digits, mixup=.5, no_aug=True, smoothing=.1)
    torch.testing.assert_close(target.amin(1), torch.full((16,), .01))


def test_mixup_of_no_batch(few_digits):
    _, target = first_batch(few_digits, mixup=.5, mixup_prob=0., **PLAIN)
    assert set(target.flatten().tolist()) == {0., 1.}


@pytest.mark.parametrize('switch, expected', [(0., 'mixup'), (1., 'cutmix')])
def test_the_switch_chooses_between_mixup_and_cutmix(few_digits, switch, expected):
    mixed = pixels_of(few_digits, mixup=5., cutmix=1., mixup_switch_prob=switch, **PLAIN)
    plain = pixels_of(few_digits, **PLAIN)
    # each pixel of a cutmix is one of the two images', and the partner is the batch in reverse order
    cut = ((mixed == plain) | (mixed == plain.flip(0))).all()
    assert cut == (expected == 'cutmix')


@pytest.mark.parametrize('no_prefetcher', [True, False])
def test_mixing_ends_at_its_epoch(few_digits, no_prefetcher):
    loaders = loaders_of(few_digits, mixup=.5, no_prefetcher=no_prefetcher, **PLAIN)
    for epoch, enabled in ((0, True), (2, True), (3, False), (4, False)):
        loaders.start_epoch(epoch, mixup_off_epoch=3)
        assert loaders.mixup.mixup_enabled == enabled
    loaders = loaders_of(few_digits, mixup=.5, no_prefetcher=no_prefetcher, **PLAIN)
    loaders.start_epoch(9, mixup_off_epoch=0)
    assert loaders.mixup.mixup_enabled
    assert next(iter(loaders.train))[1].dim() == (1 if no_prefetcher else 2)


def test_an_epoch_without_mixing_may_begin(few_digits):
    loaders_of(few_digits).start_epoch(9, mixup_off_epoch=3)


def test_the_workers_learn_that_mixing_ended(few_digits):
    loaders = loaders_of(few_digits, mixup=.5, workers=1, **PLAIN)
    for epoch, mixed in ((0, True), (1, False), (2, False)):
        loaders.start_epoch(epoch, mixup_off_epoch=1)
        _, targets = zip(*loaders.train)
        assert (torch.cat(targets).amax(1) < 1).any() == mixed


# epochs that can be repeated

DRAWN = dict(aa='rand-m5-mstd0.5', reprob=.5, mixup=.5)


def epoch_of(loaders, epoch, first_batch=0):
    loaders.start_epoch(epoch, 0, first_batch)
    return list(loaders.train)


def check_equal(batches, others):
    assert len(batches) == len(others) > 0
    for one, other in zip(batches, others):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_an_epoch_is_the_same_whatever_was_drawn_before_it(few_digits):
    loaders, others = loaders_of(few_digits, **DRAWN), loaders_of(few_digits, **DRAWN)
    for epoch in range(2):
        epoch_of(loaders, epoch)
    torch.rand(7)
    third = epoch_of(loaders, 2)
    check_equal(third, epoch_of(others, 2))
    orders = [torch.cat([target for _, target in epoch_of(loaders_of(few_digits, **PLAIN), epoch)])
              for epoch in range(2)]
    assert not torch.equal(*orders)
    other_epoch, other_seed = epoch_of(others, 3), epoch_of(loaders_of(few_digits, **DRAWN, seed=1), 2)
    for other in (other_epoch, other_seed):
        assert not any(torch.equal(images, others) for (images, _), (others, _) in zip(third, other))


@pytest.mark.parametrize('workers', [0, 2])
def test_an_epoch_may_begin_in_the_middle_with_any_number_of_workers(few_digits, workers):
    whole = epoch_of(loaders_of(few_digits, **DRAWN, workers=1), 1)
    check_equal(whole[2:], epoch_of(loaders_of(few_digits, **DRAWN, workers=workers), 1, first_batch=2))


def test_processes_draw_apart(few_digits):
    batches = [epoch_of(loaders_of(few_digits, placement=Placement(torch.device('cpu'), rank=rank), **DRAWN), 0)
               for rank in range(2)]
    assert not any(torch.equal(one[0], other[0]) for one, other in zip(*batches))


def test_an_iterable_data_set_may_begin_in_the_middle(few_digits):
    def loader():
        dataset = IterableImageDataset('', reader=ReaderOfDigits(few_digits))
        dataset.transform = transforms.Compose([transforms.RandomRotation(180), transforms.PILToTensor()])
        return TrainLoader(create_loader(dataset), dataset, place=(42, 0))

    def create_loader(dataset):
        return torch.utils.data.DataLoader(dataset, batch_size=8, num_workers=2, persistent_workers=True)

    def batches(train, epoch, first_batch=0):
        train.start_epoch(epoch, first_batch)
        return list(train)

    one, other = loader(), loader()
    first, second = batches(one, 0), batches(one, 1)
    check_equal(second[1:], batches(other, 1, first_batch=1))
    assert not any(torch.equal(images, others) for (images, _), (others, _) in zip(first, second))


class ReaderOfDigits:
    """A reader that delivers a share of a folder's images in each worker, as timm's iterable readers do."""

    def __init__(self, folder):
        self.images = ImageFolder(f'{folder}/train')

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        yield from (self.images[i] for i in range(worker.id, len(self.images), worker.num_workers))

    def __len__(self):
        return len(self.images)


def test_samplers_and_data_sets_are_told_the_epoch(few_digits):
    epochs = []

    class Part(torch.utils.data.Dataset):
        def set_epoch(self, epoch):
            epochs.append(epoch)

    class Loader:
        dataset = sampler = Part()
        batch_sampler = torch.utils.data.BatchSampler([0, 1], 2, drop_last=True)

    TrainLoader(Loader(), Loader.dataset, (0, 0)).start_epoch(7)
    assert epochs == [7, 7]


# wrong input

@pytest.mark.parametrize('values, words', [
    (dict(batch_size=65), 'has 64 images, fewer than one batch of 65'),
    (dict(num_classes=11), '10 classes'),
], ids=str)
def test_wrong_settings_are_one_line(few_digits, values, words):
    with pytest.raises(InputError, match=words):
        build_loaders(train_settings(data_dir=few_digits, **values), CONFIG, values.get('num_classes', 10), CPU)


def test_a_stream_has_no_splits_of_augmentation(few_digits, monkeypatch):
    stream = IterableImageDataset('', reader=ReaderOfDigits(few_digits))
    monkeypatch.setattr('timm_advprop.engine.loaders._open_splits', lambda *args: (stream, None))
    with pytest.raises(InputError, match='--aug-splits needs a data set whose images have numbers'):
        loaders_of(few_digits, aug_splits=2)


def test_one_folder_is_not_both_splits(few_digits):
    with pytest.raises(InputError, match='Both splits are .*: give a folder with both'):
        loaders_of(f'{few_digits}/train', train_split='train', val_split='validation')


def test_a_batch_of_all_processes_must_fit(few_digits):
    placement = Placement(torch.device('cpu'), world_size=5)
    with pytest.raises(InputError, match='fewer than one batch of 80'):
        loaders_of(few_digits, placement=placement)
