"""`cheap_image_gradient`: torch's gradients in another way, for the convolutions where it pays, and only inside."""
import pytest
import timm
import torch
import torch.nn as nn

from timm_advprop.regimes import frozen, image_gradient
from timm_advprop.regimes.image_gradient import cheap_image_gradient

pytestmark = pytest.mark.usefixtures('one_thread')


def gradients(conv, images, upstream):
    images = images.clone().requires_grad_()
    output = conv(images)
    inputs = [images, *(parameter for parameter in conv.parameters() if parameter.requires_grad)]
    return output.detach(), *torch.autograd.grad(output, inputs, upstream(output))


def upstream(output):
    return torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(2))


def is_changed(conv):
    return 'forward' in vars(conv)


@pytest.mark.parametrize('kernel, stride, padding', [
    (7, 2, 3), (7, 2, 2), (7, 2, 0), (5, 2, 1), (4, 4, 0), (4, 4, 2), (16, 16, 0), (8, 4, 2), (11, 4, 2), (6, 3, 5),
    (7, 7, 6)])
@pytest.mark.parametrize('size', [(32, 32), (33, 47)], ids=str)
@pytest.mark.parametrize('trained', [False, True])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
def test_gradients_are_torchs(monkeypatch, kernel, stride, padding, size, trained, memory_format):
    monkeypatch.setattr(image_gradient, '_MOST_WASTE', 9.)  # right also where it does not pay
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, kernel, stride, padding).double().requires_grad_(trained).to(memory_format=memory_format)
    images = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=memory_format)
    expected = gradients(conv, images, upstream)
    with cheap_image_gradient(conv):
        assert is_changed(conv)
        found = gradients(conv, images, upstream)
    torch.testing.assert_close(found, expected)
    assert not is_changed(conv)


@pytest.mark.parametrize('conv', [
    nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 7, 1, 3), nn.Conv2d(16, 8, 7, 2, 3), nn.Conv2d(4, 8, 7, 2, 3, groups=2),
    nn.Conv2d(3, 8, 4, 4, dilation=2), nn.Conv2d(3, 8, (7, 5), 2, 3), nn.Conv2d(3, 8, 4, (4, 2)),
    nn.Conv2d(3, 8, 7, 2, 3, padding_mode='reflect'), nn.Conv2d(3, 8, 8, 8, padding=(0, 1)),
    nn.ConvTranspose2d(3, 8, 4, 4),
], ids=['small', 'stride 1', 'channels', 'groups', 'dilation', 'kernels', 'strides', 'mode', 'paddings', 'transposed'])
def test_other_convolutions_are_left(conv):
    with cheap_image_gradient(conv):
        assert not is_changed(conv)


def test_padding_by_name_is_left():
    conv = nn.Conv2d(3, 8, 4, 4, padding='valid')
    with cheap_image_gradient(conv):
        assert not is_changed(conv)


def test_a_compiled_model_is_left():
    conv = nn.Conv2d(3, 8, 4, 4)
    conv.compile(backend='eager')
    with cheap_image_gradient(conv):
        assert not is_changed(conv)


def test_nothing_is_left_behind_by_an_error():
    model = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU())
    with pytest.raises(KeyError), cheap_image_gradient(model):
        assert is_changed(model[0])
        raise KeyError
    assert not is_changed(model[0])


@pytest.mark.parametrize('name, changed', [('resnet18', ['conv1']), ('test_vit', ['patch_embed.proj']), (
    'test_convnext', ['stem.0']), ('test_efficientnet', [])])
def test_the_first_convolution_of_a_network(name, changed):
    model = timm.create_model(name, num_classes=3).double().train()
    images = torch.randn(2, 3, *model.default_cfg['input_size'][1:], dtype=torch.float64)
    with frozen(model):
        expected = gradients(model, images, upstream)
        with cheap_image_gradient(model):
            assert [name for name, module in model.named_modules() if is_changed(module)] == changed
            torch.testing.assert_close(gradients(model, images, upstream), expected)


def test_under_autocast_images_pass_as_ever():
    conv, images = nn.Conv2d(3, 8, 7, 2, 3), torch.randn(2, 3, 16, 16)
    with torch.autocast('cpu', torch.bfloat16):
        expected = gradients(conv, images, upstream)
        with cheap_image_gradient(conv):
            assert all(torch.equal(*pair) for pair in zip(gradients(conv, images, upstream), expected))
