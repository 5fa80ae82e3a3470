"""What a source made of images, kept for pictures and their size."""
import pytest
import timm
import torch
from PIL import Image

from timm_advprop.engine.pictures import save_made_images
from timm_advprop.regimes import REGIMES, Attack, AugmentedView, MadeImages, RegimeSettings, create_task


@pytest.mark.parametrize('regime', REGIMES)
def test_every_regime_keeps_what_its_attack_made_where_that_is_asked_for(regime):
    model = timm.create_model('test_resnet_ap', num_classes=10)
    task = create_task(
        RegimeSettings(regime=regime, strengths=(4.,)), model, mean=(.5,) * 3, std=(.25,) * 3, verbose=False)
    images, target = torch.rand(10, 3, 32, 32) * 4 - 2, torch.arange(10)
    task(images, target)
    assert task.made_images is None
    task.keeps_images = True
    task(images, target)
    if not type(task).arguments(RegimeSettings(regime=regime)):  # it attacks nothing
        assert task.made_images is None
        return
    made = task.made_images
    assert 0 < made.size_px() <= 4 + 1e-3
    clean = images[-len(made.images):]  # of fast-advprop, the last ones
    torch.testing.assert_close(made.images, clean)
    torch.testing.assert_close(made.in_pixels()[0], clean * .25 + .5)


def test_the_size_is_in_pixels_and_the_picture_shows_the_difference(tmp_path):
    images = torch.zeros(3, 1, 8, 8)
    made = MadeImages(Attack(mean=(.5,), std=(.1,)), images, images + torch.tensor([.1, -.1, 0.]).view(3, 1, 1, 1))
    assert made.size_px() == pytest.approx(255 * .01 * 2 / 3, rel=1e-4)
    save_made_images(str(tmp_path / 'picture.png'), made)
    picture = Image.open(tmp_path / 'picture.png').convert('L')
    assert picture.size == (3 * 9 + 1, 3 * 9 + 1)
    assert [picture.getpixel((9 * column + 4, 22)) for column in range(3)] == [255, 0, 128]  # more, less, grey
    assert AugmentedView().shows_clean_images
