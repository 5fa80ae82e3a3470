"""A training step never asks a device for a value: it runs on torch's meta device, which has none to give."""
from contextlib import ExitStack

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.regimes.regime_models import HALF, make_batch, split_model, task_of
from timm_advprop.regimes import REGIMES, SOURCES, AdvPropTask, Attack, AugmentedView

CASES = {
    **{name: lambda model, name=name: task_of(name, model) for name in REGIMES},
    'untargeted': lambda model: task_of('advprop', model, adv_target='none', adv_eps=[2.]),
    'l2': lambda model: task_of('advprop', model, adv_norm='l2', adv_eps=[100.]),
    'gd': lambda model: task_of('advprop', model, adv_attack='gd'),
    'batch statistics': lambda model: task_of('advprop', model, adv_norm_stats='train'),
    'fast-advprop, random target': lambda model: task_of('fast-advprop', model, adv_target='random'),
    'fine-grained': lambda model: AdvPropTask(
        model, sources=[AugmentedView(), Attack(eps_px=1), Attack(eps_px=2)], verbose=False, **HALF),
    'pairing': lambda model: task_of('joint', model, adv_pairing='kl', adv_match_masks=True),
    'trades, one norm': lambda model: task_of('trades', model),
    **{source: lambda model, source=source: task_of('advprop', model, adv_source=[source])
       for source in ('pyramid', 'gaussian-noise')},
}
NUM_AUX = {'fine-grained': 3}
# These make their images on the host, with OpenCV and numpy; the last asks for the autocast of its device, which meta
# has not.
LEFT_OUT = {'augmix', 'augmax', 'corruption', 'amplitude-mix'}


class CopiesFromTheHost(TorchDispatchMode):
    """Notes copies of the host's tensors to the device: they wait."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        source = next((value for value in args if isinstance(value, torch.Tensor) and value.device.type == 'cpu'), None)
        if source is not None and isinstance(result, torch.Tensor) and result.device.type == 'meta' and (
                'copy' in func.__name__ or source.ndim):
            self.copies.append((func.__name__, source.tolist()))
        return result


def train_step(task, optimizer, images, target):
    optimizer.zero_grad()
    result = task(images, target)
    result['loss'].backward()
    optimizer.step()
    return result


def prepared(case, device, dtype=torch.float32):
    model = split_model(num_aux=NUM_AUX.get(case, 1), dtype=dtype).train()
    task = CASES[case](model.to(device))
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1, momentum=0.9)
    return task, optimizer, *(value.to(device) for value in make_batch(10, dtype))


@pytest.mark.parametrize('soft', [False, True], ids=['labels', 'soft targets'])
@pytest.mark.parametrize('case', CASES)
def test_no_value_is_asked_for(case, soft):
    task, optimizer, images, target = prepared(case, 'meta')
    if soft:
        target = torch.nn.functional.one_hot(make_batch(10)[1], 5).float().to('meta')
    for _ in range(2):
        result = train_step(task, optimizer, images, target)
    assert all(value.device.type == 'meta' for value in result.values())


def test_the_meta_device_refuses_what_waits():
    value = torch.ones(3, device='meta')
    for wait in (lambda: value.sum().item(), value.tolist, value.cpu, lambda: bool(value.sum() > 1), value.nonzero,
                 lambda: value[value > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()


@pytest.fixture
def copies(monkeypatch):
    """Starts to note copies of the host's numbers and tensors to the device, and returns the list of them."""
    with ExitStack() as stack:
        def note():
            mode = stack.enter_context(CopiesFromTheHost())
            for make in (torch.tensor, torch.as_tensor):  # which no dispatch mode sees
                def noted(*args, make=make, **kwargs):
                    made = make(*args, **kwargs)
                    if made.device.type == 'meta':
                        mode.copies.append((make.__name__, args))
                    return made
                monkeypatch.setattr(torch, make.__name__, noted)
            return mode.copies
        yield note


@pytest.mark.parametrize('case', CASES)
def test_a_step_copies_no_numbers_to_the_device(case, copies):
    task, optimizer, images, target = prepared(case, 'meta')
    train_step(task, optimizer, images, target)  # the first one may: what it copies is kept
    noted = copies()
    train_step(task, optimizer, images, target)
    assert noted == []


def test_every_regime_and_source_is_here():
    assert set(CASES) >= {*REGIMES, *SOURCES} - LEFT_OUT


def test_copies_are_seen(copies):
    noted = copies()
    torch.tensor([1., 2.], device='meta')
    torch.tensor([3.]).to('meta')
    torch.ones(2, device='meta').copy_(torch.ones(2))
    assert len(noted) == 3
