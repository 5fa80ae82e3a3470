"""`frozen`, and attacks in it: nothing of them stays on the model, whatever happens inside."""
from contextlib import nullcontext

import pytest
import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.regimes.regime_models import (
    DETERMINISTIC,
    HALF,
    assert_unchanged,
    make_batch,
    snapshot,
    split_model,
    tiny_model,
)
from timm_advprop import norm_route, set_norm_route
from timm_advprop.regimes import Attack, frozen

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.mark.parametrize('target_mode', ['random', 'none'])
@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
@pytest.mark.parametrize('failing_pass', [None, 1, 3])
def test_an_attack_leaves_no_trace_on_the_model(target_mode, norm_stats, failing_pass):
    model, (images, target) = split_model(num_aux=2), make_batch()
    model.train()
    model.layer1.eval()  # modules in eval and frozen parameters of the user's choice
    model.layer3[0].bn2.aux_bn[1].eval()
    model.conv1[1].weight.requires_grad_(False)
    model.layer2[0].bn1.aux_bn[0].bias.requires_grad_(False)
    set_norm_route(model, 'split', sizes=(2, 3, 1))
    set_norm_route(model.layer2, 2)
    model.layer3[0].bn2.track_running_stats = False
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before, images_before, target_before = snapshot(model), images.clone(), target.clone()
    passes = []

    def fail(module, args, output):
        passes.append(output)
        if len(passes) == failing_pass:
            raise RuntimeError('out of memory')

    handle = model.layer4.register_forward_hook(fail)
    attack = Attack(steps=4, target=target_mode, norm_stats=norm_stats, **HALF)
    with pytest.raises(RuntimeError, match='out of memory') if failing_pass else nullcontext():
        with norm_route(model, 'aux'):
            attack(model, images, target)
    handle.remove()
    assert len(passes) == (failing_pass or 4)
    assert_unchanged(model, before)
    assert torch.equal(images, images_before) and torch.equal(target, target_before)


@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
def test_an_attack_sees_a_frozen_model_without_dropout(norm_stats):
    model, (images, target) = split_model('test_efficientnet_ap', drop_rate=0.5, drop_path_rate=0.5), make_batch()
    model.train()
    set_norm_route(model, 'aux')
    seen = []
    model.classifier.register_forward_hook(lambda module, args, output: seen.append((
        any(m.training for m in model.modules() if not isinstance(m, _BatchNorm)),
        {m.training for m in model.modules() if isinstance(m, _BatchNorm)},
        any(parameter.requires_grad for parameter in model.parameters()))))
    attack = Attack(steps=3, norm_stats=norm_stats, **DETERMINISTIC, **HALF)
    first, second = (attack(model, images, target)[0] for _ in range(2))
    assert seen == [(False, {norm_stats == 'train'}, False)] * 6
    assert torch.equal(first, second)


@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
@pytest.mark.parametrize('error', [None, KeyError])
def test_frozen_restores_what_a_wrapped_model_had(norm_stats, error):
    model = tiny_model().train()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    model[4].track_running_stats = False
    wrapped = nn.ModuleList([model])
    before = snapshot(wrapped)
    with pytest.raises(error) if error else nullcontext(), frozen(wrapped, norm_stats):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in wrapped.modules() if not isinstance(module, _BatchNorm))
        if error:
            raise error
    assert_unchanged(wrapped, before)
    assert snapshot(wrapped)['training']['0.3'] is False and snapshot(wrapped)['training']['0.2'] is True


def test_frozen_leaves_the_route_to_its_caller():
    model = tiny_model(num_aux=2)
    for route in (2, 'main'):
        set_norm_route(model, route)
        before = snapshot(model)['route']
        with frozen(model):
            assert snapshot(model)['route'] == before


def test_frozen_looks_at_batch_statistics_without_a_trace_on_the_running_ones():
    model, (images, _) = split_model().train(), make_batch()
    before = snapshot(model)
    with frozen(model, 'train'), torch.no_grad():
        by_batch = model(images)
        assert not torch.allclose(model(images[:3]), by_batch[:3])
    with frozen(model), torch.no_grad():
        by_running = model(images)
        torch.testing.assert_close(model(images[:3]), by_running[:3])
    assert not torch.allclose(by_batch, by_running)
    assert_unchanged(model, before)
