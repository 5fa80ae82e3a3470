"""A training step of every regime: the same on a GPU as on the CPU, and without a wait for the device."""
import importlib
from contextlib import contextmanager

import pytest
import torch
from timm.data import Mixup
from torch.nn.modules.batchnorm import SyncBatchNorm

from tests.regimes.regime_models import assert_all_close, make_batch, split_model, task_of
from tests.regimes.test_no_waiting import CASES, prepared, train_step
from timm_advprop import convert_sync_batchnorm
from timm_advprop.engine.loop import Trainer
from timm_advprop.engine.placement import Placement
from timm_advprop.regimes import REGIMES, SOURCES

CPU = torch.device('cpu')
CLASSES = 5
ON_HOST = {'corruption', 'augmix', 'augmax'}  # they make their images there, or draw random numbers
ALL_CASES = {**CASES, 'amplitude-mix': lambda model: task_of('advprop', model, adv_source=['amplitude-mix'])}
PRECISIONS = [None, torch.bfloat16]


def starts(images, probability, norm):
    """Random starts that are the same on every device."""
    generator = torch.Generator().manual_seed(5)
    return torch.rand(images.shape, generator=generator, dtype=torch.float64).mul(2).sub(1).to(images)


@pytest.fixture
def same_starts(monkeypatch):
    monkeypatch.setattr(importlib.import_module('timm_advprop.attacks.pgd'), '_random_start', starts)


def step_on(device, regime, change=lambda model: model, **place):
    """Losses, gradients and statistics of a step in float64, on the CPU."""
    model = change(split_model().train()).to(device).to(**place)
    untargeted = {} if 'adv_target' in REGIMES[regime].no_use_for else dict(adv_target='none')
    images, target = (value.to(device) for value in make_batch(10))
    result = task_of(regime, model, **untargeted)(images.to(**place), target)
    result['loss'].backward()
    found = {name: value for name, value in result.items() if name != 'output'}
    found.update({f'gradient of {name}': value.grad for name, value in model.named_parameters()
                  if value.grad is not None})
    found.update(model.named_buffers())
    return {name: value.detach().cpu() for name, value in found.items()}


def assert_close(actual, expected):
    assert_all_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('regime', REGIMES)
def test_a_step_is_that_of_the_cpu(device, regime, memory_format, same_starts):
    assert_close(step_on(device, regime, memory_format=memory_format), step_on(CPU, regime))


@pytest.mark.parametrize('regime', REGIMES)
def test_the_gradients_of_a_checkpointed_step_are_those_of_the_cpu(device, regime, same_starts):
    def checkpointed(model):
        model.set_grad_checkpointing()
        return model
    found, expected = step_on(device, regime, checkpointed), step_on(CPU, regime)
    for step in (found, expected):
        for name in [name for name in step if 'running_' in name or 'num_batches' in name]:
            del step[name]  # what is computed twice counts twice
    assert_close(found, expected)


@pytest.mark.gpu  # torch has synchronised norms for accelerators alone
@pytest.mark.parametrize('regime', REGIMES)
def test_synchronised_norms_of_one_process_make_the_same_step(regime, same_starts, tmp_path):
    def synchronised(model):
        model = convert_sync_batchnorm(model)
        assert any(isinstance(module, SyncBatchNorm) for module in model.modules())
        return model
    torch.distributed.init_process_group('nccl', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        found = step_on(torch.device('cuda'), regime, synchronised)
    finally:
        torch.distributed.destroy_process_group()
    assert_close(found, step_on(CPU, regime))


# nothing waits

@contextmanager
def no_waiting(device):
    """Calls that wait for a GPU raise RuntimeError; on the CPU nothing waits."""
    if device.type != 'cuda':
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.gpu
def test_waiting_is_seen():
    device = torch.device('cuda')
    value = torch.ones(3, device=device)
    for wait in (lambda: value.sum().item(), value.cpu, value.nonzero, lambda: torch.ones(3).to(device)):
        with no_waiting(device), pytest.raises(RuntimeError, match='synchronizing'):
            wait()


@pytest.mark.parametrize('soft', [False, True], ids=['labels', 'soft targets'])
@pytest.mark.parametrize('dtype', PRECISIONS, ids=str)
@pytest.mark.parametrize('case', ALL_CASES)
def test_a_step_waits_for_nothing(device, case, dtype, soft, monkeypatch):
    monkeypatch.setitem(CASES, case, ALL_CASES[case])
    task, optimizer, images, target = prepared(case, device)
    target = torch.nn.functional.one_hot(target, CLASSES).float() if soft else target
    with Placement(device, amp_dtype=dtype).autocast():
        train_step(task, optimizer, images, target)  # the first one may: what it copies is kept
        with no_waiting(device):
            train_step(task, optimizer, images, target)


@pytest.mark.parametrize('mixed', [False, True], ids=['labels', 'mixup'])
@pytest.mark.parametrize('dtype', PRECISIONS, ids=str)
@pytest.mark.parametrize('regime', REGIMES)
def test_the_loop_waits_for_no_more_than_the_forward_pass(device, regime, dtype, mixed):
    task, optimizer, images, target = prepared(regime, device)
    task.setup_ema(decay=0.9)
    trainer = Trainer(
        task, [(images, target)] * 3, optimizer, Placement(device, amp_dtype=dtype, channels_last=True), clip_grad=1.,
        mixup_fn=Mixup(mixup_alpha=1., cutmix_alpha=1., num_classes=CLASSES) if mixed else None, seed=1,
        grad_accum_steps=2)
    trainer.train_epoch(0)
    with no_waiting(device):  # which the event that `PendingValues` waits for is not
        metrics = trainer.train_epoch(1)
    assert torch.isfinite(torch.tensor(list(metrics.values()))).all()


def test_every_source_is_tried_that_works_on_the_device():
    assert set(ALL_CASES) >= {*REGIMES, *SOURCES} - ON_HOST
