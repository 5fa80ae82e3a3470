"""One line at the start of a run on a CPU that has no instructions for the types it is asked to compute in."""
from types import SimpleNamespace

import pytest
import torch

from tests.engine.runs import eval_settings, train_settings
from timm_advprop.cli import benchmark, wrap
from timm_advprop.engine import cpu_precision, placement, tested_model, training
from timm_advprop.engine.cpu_precision import computes_natively, warn_of_emulation
from timm_advprop.engine.placement import open_placement
from timm_advprop.engine.run_settings import DeviceSettings

CPU = torch.device('cpu')
TYPES = {torch.bfloat16: '_is_mkldnn_bf16_supported', torch.float16: '_is_mkldnn_fp16_supported'}


@pytest.fixture
def old_cpu(monkeypatch):
    """A CPU that has AVX2, and no instructions for 16-bit numbers."""
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: dict(architecture='x86_64', avx2=True), raising=False)


@pytest.fixture
def new_cpu(monkeypatch):
    capabilities = dict(architecture='x86_64', avx512_bf16=True, avx512_fp16=True, amx_bf16=False)
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities, raising=False)


def warnings(caplog):
    return [record.message for record in caplog.records
            if record.levelname == 'WARNING' and 'no instructions' in record.message]


@pytest.mark.parametrize('capabilities, native', [
    (dict(architecture='x86_64', avx512_f=True, avx512_bf16=False, avx512_fp16=False), []),
    (dict(architecture='x86_64', avx512_bf16=True), [torch.bfloat16]),
    (dict(architecture='x86_64', amx_bf16=True, amx_fp16=True), [torch.bfloat16, torch.float16]),
    (dict(architecture='arm64', neon=True, fp16_arith=True, bf16=False), [torch.float16]),
    (dict(architecture='arm64', neon=True, fp16_arith=True, bf16=True), [torch.bfloat16, torch.float16]),
], ids=['AVX-512', 'AVX-512 with bf16', 'AMX', 'ARM', 'ARM with bf16'])
def test_what_a_cpu_computes_in_hardware(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities, raising=False)
    assert [dtype for dtype in TYPES if computes_natively(dtype)] == native
    assert computes_natively(torch.float32) and computes_natively(torch.float64)


@pytest.mark.parametrize('answer', [True, False])
@pytest.mark.parametrize('dtype', TYPES, ids=str)
def test_an_older_torch_is_asked_for_its_kernels(monkeypatch, dtype, answer):
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    asked = SimpleNamespace(mkldnn=SimpleNamespace(**{TYPES[dtype]: lambda: answer}))
    monkeypatch.setattr(cpu_precision, 'torch', _with(ops=asked))
    assert computes_natively(dtype) == answer


def test_a_torch_that_does_not_tell_is_believed_to_be_fast(monkeypatch):
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert all(map(computes_natively, TYPES))


def _with(**replaced):
    """torch with other attributes."""
    return SimpleNamespace(**{**vars(torch), **replaced})


def test_types_are_named_once_in_one_line(old_cpu, caplog):
    warn_of_emulation(CPU, [torch.bfloat16, None, torch.float16, torch.bfloat16, torch.float32])
    line, = warnings(caplog)
    assert 'for bfloat16 and float16:' in line and '--adv-amp-dtype' in line and '\n' not in line


@pytest.mark.parametrize('settings, attack_dtypes, words', [
    (dict(), (), None),
    (dict(), ('bfloat16',), 'for bfloat16:'),
    (dict(), ('float32', None), None),
    (dict(amp=True), (), 'for float16:'),
    (dict(amp=True, amp_dtype='bfloat16'), ('bfloat16', 'bfloat16'), 'for bfloat16:'),
    (dict(amp_dtype='bfloat16'), (), None),  # without --amp it is of no use
    (dict(model_dtype='bfloat16'), ('float16',), 'for bfloat16 and float16:'),
])
def test_a_run_is_warned_at_its_start(old_cpu, caplog, settings, attack_dtypes, words):
    open_placement(DeviceSettings(device='cpu', **settings), attack_dtypes=attack_dtypes)
    assert [words in line for line in warnings(caplog)] == ([True] if words else [])


def test_a_new_cpu_is_not_warned_of(new_cpu, caplog):
    open_placement(DeviceSettings(device='cpu', amp=True), attack_dtypes=('bfloat16',))
    warn_of_emulation(CPU, TYPES)
    assert not warnings(caplog)


def test_an_accelerator_and_other_processes_are_not_warned(old_cpu, caplog, monkeypatch):
    warn_of_emulation(torch.device('cuda'), TYPES)
    joined = dict(device='cpu', global_rank=1, world_size=2, distributed=False)
    monkeypatch.setattr(placement, 'init_distributed_device_so', lambda device: joined)
    open_placement(DeviceSettings(device='cpu', amp=True), join_processes=True)
    assert not warnings(caplog)


class _Opened(Exception):
    """A run got as far as to open its device."""


def _stop(*args, **kwargs):
    raise _Opened


@pytest.mark.parametrize('flags', [
    dict(adv_amp_dtype='bfloat16'),
    dict(adv_amp_dtype='bfloat16', regime='joint'),
    dict(adv_amp_dtype='bfloat16', regime='trades', adv_eps=None),
    dict(adv_eps=None, adv_source=['pgd amp_dtype=bfloat16', 'pyramid']),
    dict(adv_amp_dtype='bfloat16', amp=True, amp_dtype='bfloat16', adv_eps=[1., 2.]),
], ids=str)
def test_training_with_an_attack_in_16_bits_is_warned_once(few_digits, old_cpu, caplog, monkeypatch, flags):
    monkeypatch.setattr(training, 'build_model', _stop)
    with pytest.raises(_Opened):
        training.train(train_settings(data_dir=few_digits, **flags))
    assert len(warnings(caplog)) == 1


def test_validation_with_an_attack_in_16_bits_is_warned_once(old_cpu, caplog, monkeypatch):
    monkeypatch.setattr(tested_model, '_open', _stop)
    with pytest.raises(_Opened):
        tested_model.open_tested_model(eval_settings(adv_attack='pgd', adv_amp_dtype='float16'))
    line, = warnings(caplog)
    assert 'for float16:' in line


def test_the_benchmark_is_warned_once(old_cpu, caplog):
    benchmark.main(['--model', 'test_resnet_ap', '--img-size', '32', '-b', '2', '--rounds', '1', '--adv-steps', '1',
                    '2', '--adv-amp-dtype', 'bfloat16', '--device', 'cpu'])
    assert len(warnings(caplog)) == 1


def test_a_script_of_timm_with_an_attack_in_16_bits_is_warned_once(old_cpu, caplog, tmp_path):
    script = tmp_path / 'train.py'
    script.write_text(
        'import timm\nfrom timm.task import ClassificationTask\n'
        "model = timm.create_model('test_resnet_ap', num_aux=2)\n"
        'ClassificationTask(model, verbose=True)\nClassificationTask(model, verbose=False)\n')
    wrap.run_script(str(script), ['--adv-eps', '1', '2', '--adv-amp-dtype', 'float16'])
    assert len(warnings(caplog)) == 1
