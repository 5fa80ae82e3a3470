"""The model behind the page: any that validate.py takes, grey or colour, plain or split."""
import pytest
import torch
from PIL import Image

from tests.cli.looked_at import TINY, looked_at, plain_folder
from timm_advprop.cli import hub
from timm_advprop.errors import InputError
from timm_advprop.robustness.attacked_image import ImageAttack


def test_a_checkpoint_with_a_data_set(trained, few_digits):
    model = looked_at(
        'test_resnet_ap', '--checkpoint', str(trained / 'last.pth.tar'), '--data-dir', few_digits, *TINY)
    assert model.name == 'run/last.pth.tar'
    assert model.about == '0.38 M parameters, colour images of 32 × 32 pixels, 10 classes, main and auxiliary norms'
    assert model.routes == ['main', 'aux']
    assert model.labels == tuple('0123456789')
    assert [image.size for image in model.examples] == [(8, 8)] * 10
    shown = model.attack(model.examples[0], ImageAttack(route='0.3'))
    assert list(shown.probabilities) == ['main', 'aux', '0.3']
    assert all(torch.isfinite(each).all() and each.shape == (2, 10) for each in shown.probabilities.values())


def test_a_published_folder_keeps_its_auxiliary_norms(trained, tmp_path, capsys):
    hub.main(['push', str(trained / 'last.pth.tar'), 'user/name', '--dry-run', '--to', str(tmp_path / 'name')])
    model = looked_at(f'local-dir:{tmp_path / "name"}', '--device', 'cpu')
    assert model.name == f'{tmp_path.name}/name'
    assert model.routes == ['main', 'aux']
    assert tuple(model.tested.config['input_size']) == (3, 32, 32)


@pytest.mark.parametrize('in_chans, word', [(1, 'grey'), (3, 'colour')])
def test_a_plain_model_has_one_route_and_its_published_names(tmp_path, in_chans, word):
    names = [f'name {number}' for number in range(10)]
    model = looked_at(
        plain_folder(tmp_path, names, in_chans=in_chans), '--input-size', str(in_chans), '32', '32', '--device', 'cpu')
    assert (model.routes, model.num_aux, model.labels) == (['main'], 0, tuple(names))
    assert word in model.about and model.about.endswith('main norms alone')
    shown = model.attack(Image.new('RGB', (50, 40), (200, 100, 50)), ImageAttack(eps_px=8.))
    assert shown.attacked.shape == (in_chans, 32, 32)
    assert list(shown.probabilities) == ['main']
    for wrong in ('aux', '2', '0.3'):
        with pytest.raises(InputError, match='no split norms'):
            model.attack(model.examples[0], ImageAttack(route=wrong))


def test_mean_std_and_crop_are_those_of_the_flags(tmp_path):
    flags = ['--mean', '0.1', '0.2', '0.3', '--std', '0.5', '0.6', '0.7', '--input-size', '3', '40', '48']
    model = looked_at(plain_folder(tmp_path), *flags, '--crop-pct', '1', '--device', 'cpu')
    shown = model.attack(Image.new('RGB', (96, 80), (255, 0, 51)), ImageAttack(eps_px=0.))
    assert shown.clean.shape == (3, 40, 48)
    torch.testing.assert_close(shown.clean[:, 0, 0], torch.tensor([1., 0., .2]))
    normalised = (shown.clean - torch.tensor(model.tested.config['mean']).view(3, 1, 1)) / torch.tensor(
        model.tested.config['std']).view(3, 1, 1)
    with torch.no_grad():
        expected = model.tested.model(normalised.unsqueeze(0)).softmax(1)
    torch.testing.assert_close(shown.probabilities['main'], expected.expand(2, -1))


@pytest.mark.parametrize('made, flags, words', [
    (dict(in_chans=2), ['--in-chans', '2'], 'images of 1 or 3 channels, the model takes 2'),
    (dict(num_classes=1), [], 'this one has 1'),
    ({}, ['--data-dir', 'nowhere'], 'No data folder nowhere'),
])
def test_what_cannot_be_looked_at_is_refused(tmp_path, made, flags, words):
    with pytest.raises(InputError, match=words):
        looked_at(plain_folder(tmp_path, **made), '--img-size', '32', '--device', 'cpu', *flags)
