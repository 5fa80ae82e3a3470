"""Whole runs of every regime on a GPU: precisions, memory format, compiled, averaged, resumed, validated."""
import math
from functools import lru_cache

import pytest
import timm
import torch

from tests.engine.runs import eval_settings, load, read_summary, run
from timm_advprop.engine.validation import validate
from timm_advprop.regimes import REGIMES

BACKEND = dict(cpu='aot_eager', cuda='inductor')
RUNS = {
    'float32': {},
    'bfloat16': dict(amp=True, amp_dtype='bfloat16'),
    'float16': dict(amp=True, amp_dtype='float16'),
    'all in bfloat16': dict(model_dtype='bfloat16'),
    'channels-last': dict(channels_last=True),
    'channels-last, bfloat16': dict(channels_last=True, amp=True, amp_dtype='bfloat16'),
    'compiled': dict(torchcompile='inductor'),
    'compiled, bfloat16': dict(torchcompile='inductor', amp=True, amp_dtype='bfloat16', channels_last=True),
    'checkpointed': dict(grad_checkpointing=True),
    'averaged': dict(model_ema=True, model_ema_decay=0.5),
    'mixed and clipped': dict(mixup=0.5, cutmix=0.5, clip_grad=1., grad_accum_steps=2),
}
STILL = dict(adv_random_start=0., no_aug=True, smoothing=0., opt='momentum')


def values_of(regime, device, **values):
    """Settings of a run, without those that the regime has no use for."""
    unused = {name for name in values if name in REGIMES[regime].no_use_for}
    values = {name: value for name, value in values.items() if name not in unused}
    if 'torchcompile' in values:
        values['torchcompile'] = BACKEND[device.type]
    return dict(values, regime=regime, device=str(device))


@pytest.fixture(scope='module')
def usual_loss(few_digits, tmp_path_factory):
    """The first training loss of a run in float32."""
    @lru_cache(maxsize=None)
    def loss_of(regime, device):
        folder = run(few_digits, tmp_path_factory.mktemp('usual'), **values_of(regime, device))
        return float(read_summary(folder)[0]['train_loss'])
    return loss_of


@pytest.fixture(autouse=True)
def uncompiled():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize('name', RUNS)
@pytest.mark.parametrize('regime', REGIMES)
def test_a_run(device, regime, name, few_digits, tmp_path, usual_loss):
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    folder = run(few_digits, tmp_path, **values_of(regime, device, **RUNS[name]))
    assert device.type == 'cpu' or torch.cuda.max_memory_allocated() > 2 ** 20  # it did not run on the CPU
    row, = read_summary(folder)
    losses = {key: float(value) for key, value in row.items() if key.endswith('loss')}
    assert losses and all(map(math.isfinite, losses.values()))
    if 'mixed' not in name:
        assert losses['train_loss'] == pytest.approx(usual_loss(regime, device), rel=0.1)

    content = load(folder / 'last.pth.tar')
    assert ('amp_scaler' in content) == (name == 'float16')
    for key in ('state_dict', *(['state_dict_ema'] if 'model_ema' in RUNS[name] else [])):
        model = timm.create_model('test_resnet_ap', num_classes=10)
        model.load_state_dict(content[key])  # no prefix of a compiled model
        assert model.eval()(torch.rand(2, 3, 32, 32)).isfinite().all()
    if 'model_ema' in RUNS[name]:
        assert not torch.equal(content['state_dict']['fc.weight'], content['state_dict_ema']['fc.weight'])


@pytest.mark.parametrize('name', ['float32', 'float16', 'averaged'])
@pytest.mark.parametrize('regime', REGIMES)
def test_a_resumed_run_ends_as_one_that_was_never_stopped(device, regime, name, few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    values = values_of(regime, device, **RUNS[name], **STILL, sched='step', decay_epochs=2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = run(few_digits, tmp_path / 'whole', **values, epochs=2)
        half = run(few_digits, tmp_path / 'resumed', **values, epochs=1)
        before = load(half / 'last.pth.tar')['state_dict']
        run(few_digits, tmp_path / 'resumed', **{**values, 'epochs': 2}, resume=str(half / 'last.pth.tar'))
    finally:
        torch.use_deterministic_algorithms(False)
    expected, found = (load(folder / 'last.pth.tar') for folder in (whole, half))
    assert (found['epoch'], [row['epoch'] for row in read_summary(half)]) == (1, ['0', '1'])
    keys = {'state_dict', 'state_dict_ema', 'amp_scaler'} & expected.keys()
    assert len(keys) == 1 + (name != 'float32')
    for key in keys:
        for entry, value in expected[key].items():
            torch.testing.assert_close(
                found[key][entry], value, rtol=1e-2, atol=1e-3, msg=lambda text, entry=entry: f'{entry}: {text}')
    assert (before['fc.weight'] - expected['state_dict']['fc.weight']).abs().max() > 1e-2


@pytest.mark.parametrize('flags', [
    {}, dict(amp=True, amp_dtype='bfloat16'), dict(amp=True, amp_dtype='float16'), dict(adv_amp_dtype='float16'),
    dict(channels_last=True), dict(torchcompile='inductor'), dict(route='aux'), dict(route='0.5'),
], ids=str)
def test_a_validation_under_attack_is_that_of_the_cpu(device, flags, few_digits, tmp_path):
    checkpoint = str(run(few_digits, tmp_path, device='cpu', epochs=3) / 'last.pth.tar')
    values = dict(data_dir=few_digits, checkpoint=checkpoint, batch_size=20, adv_attack='pgd', adv_eps=1.,
                  adv_random_start=0.)
    if 'torchcompile' in flags:
        flags = dict(flags, torchcompile=BACKEND[device.type])
    found = validate(eval_settings(**values, **{**flags, 'device': str(device)}))
    whole = {name: value for name, value in flags.items() if name == 'route'}
    expected = validate(eval_settings(**values, **whole))
    for name in ('top1', 'adv_top1'):
        assert found[name] == pytest.approx(expected[name], abs=5.)  # two of forty images
