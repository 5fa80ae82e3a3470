"""Where and in which precision a program computes."""
import random
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import timm
import torch

from timm_advprop.engine.placement import Placement, available_device, open_placement
from timm_advprop.engine.run_settings import DeviceSettings
from timm_advprop.errors import InputError

CPU = torch.device('cpu')


def test_settings_choose_device_and_precision():
    placement = open_placement(DeviceSettings(device='cpu', amp=True, amp_dtype='bfloat16', channels_last=True))
    assert placement == Placement(CPU, amp_dtype=torch.bfloat16, channels_last=True)
    assert open_placement(DeviceSettings(device='cpu', amp_dtype='bfloat16')).amp_dtype is None
    assert open_placement(DeviceSettings(device='cpu', model_dtype='float16')).dtype == torch.float16


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_the_cpu_takes_the_place_of_a_cuda_device_with_a_notice(caplog):
    with caplog.at_level('INFO'):
        assert open_placement(DeviceSettings()).device == CPU
    assert 'running on the CPU' in caplog.text


@pytest.mark.parametrize('settings, words', [
    (dict(device='gpu'), "'gpu'"),
    (dict(device='cpu', amp=True, model_dtype='bfloat16'), '--amp needs --model-dtype float32'),
])
def test_wrong_settings_are_one_line(settings, words):
    with pytest.raises(InputError, match=words):
        open_placement(DeviceSettings(**settings))


def test_amp_with_float32_is_allowed():
    assert open_placement(DeviceSettings(device='cpu', amp=True, model_dtype='float32')).dtype == torch.float32


def test_all_generators_are_seeded():
    def draw(seed):
        open_placement(DeviceSettings(device='cpu'), seed)
        return torch.rand(1).item(), np.random.rand(), random.random()

    first, again, other = draw(1), draw(1), draw(2)
    assert first == again
    assert all(one != another for one, another in zip(first, other))


def test_generators_are_left_alone_without_a_seed():
    state = torch.get_rng_state()
    open_placement(DeviceSettings(device='cpu'))
    assert torch.equal(torch.get_rng_state(), state)


def test_modules_of_a_device_are_imported_first(tmp_path, monkeypatch):
    (tmp_path / 'a_device_module.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    open_placement(DeviceSettings(device='cpu'), modules=('a_device_module',))
    assert sys.modules.pop('a_device_module')


def test_one_process_is_the_primary_one():
    assert open_placement(DeviceSettings(device='cpu'), join_processes=True) == Placement(CPU)
    assert Placement(CPU).primary and not Placement(CPU, rank=1, world_size=2).primary


def test_autocast_lowers_the_precision_of_a_forward_pass():
    layer, images = torch.nn.Linear(2, 2), torch.rand(1, 2)
    with Placement(CPU, amp_dtype=torch.bfloat16).autocast():
        assert layer(images).dtype == torch.bfloat16
    with Placement(CPU).autocast():
        assert layer(images).dtype == torch.float32


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_only_fp16_needs_a_loss_scaler(device):
    device = torch.device(device)
    assert Placement(device, amp_dtype=torch.float16).loss_scaler() is not None
    for placement in (Placement(device, amp_dtype=torch.bfloat16), Placement(device, dtype=torch.float16),
                      Placement(device)):
        assert placement.loss_scaler() is None


@pytest.mark.parametrize('channels_last', [True, False])
def test_models_and_images_are_of_one_type_and_memory_format(channels_last):
    placement = Placement(CPU, dtype=torch.float64, channels_last=channels_last)
    model = timm.create_model('test_resnet_ap')
    assert placement.place(model) is model
    assert all(parameter.dtype == torch.float64 for parameter in model.parameters())
    images = placement.in_memory_format(placement.images(torch.rand(2, 3, 8, 8)))
    assert images.dtype == torch.float64
    kernels = [parameter for parameter in model.parameters() if parameter.dim() == 4 and parameter.shape[-1] > 1]
    assert kernels
    for tensor in (images, *kernels):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_a_placement_is_read_only():
    with pytest.raises(FrozenInstanceError):
        Placement(CPU).rank = 1


def test_devices_keep_their_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert available_device('cuda:1') == 'cuda:1'
    assert available_device('cpu') == 'cpu'
    with pytest.raises(InputError, match=r"no device 'cuda:2' \(--device\): there are 2"):
        available_device('cuda:2')


@pytest.mark.parametrize('device', ['meta', 'xpu', 'hpu'])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(InputError, match=f"There is no device '{device}'"):
        available_device(device)


def test_a_missing_device_module_is_named():
    with pytest.raises(InputError, match='no_such_module of --device-modules'):
        open_placement(DeviceSettings(device='cpu'), modules=('no_such_module',))
