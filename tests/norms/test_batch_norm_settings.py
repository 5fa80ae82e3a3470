"""Settings of batch norms, for good or for a while."""
from copy import deepcopy

import pytest
import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.norms.norm_models import equal_states, make_batch, plain_models_of, snapshot, split_with_own_norms
from timm_advprop.norms import (
    SplitSyncBatchNorm,
    batch_statistics,
    configure_batch_norm,
    convert_split_norm,
    num_aux_norms,
    set_norm_route,
)


@pytest.mark.parametrize('frozen', [False, True], ids=['trained', 'frozen'])
@pytest.mark.parametrize('route', [None, 'main', 'aux'], ids=['plain', 'main', 'aux'])
def test_batch_statistics_normalises_by_the_batch_and_keeps_the_running_ones(plain, route, frozen, randomize_norms):
    if route is None:
        model, reference = plain.eval(), deepcopy(plain).train()
    else:
        model = split_with_own_norms(plain, randomize_norms).eval()
        reference = plain_models_of(model, plain)[route == 'aux'].train()
        set_norm_route(model, route)
    model.requires_grad_(not frozen)
    before = snapshot(model)
    images, _ = make_batch()
    images.requires_grad_()
    running = model(images)
    with batch_statistics(model):
        torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-5)
    assert equal_states(model.state_dict(), before)
    assert torch.equal(model(images), running)


def test_batch_statistics_restores_each_norms_settings_after_an_exception(resnet):
    split = convert_split_norm(resnet).train()
    split.layer1.eval()
    split.bn1.track_running_stats = False
    norms = [module for module in split.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    assert len(set(before)) == 3
    with pytest.raises(KeyboardInterrupt):
        with batch_statistics(split):
            raise KeyboardInterrupt
    assert [(norm.training, norm.track_running_stats) for norm in norms] == before


@pytest.mark.parametrize('num_aux', [0, 2])
@pytest.mark.parametrize('settings', [dict(momentum=.3), dict(eps=1e-3), dict(momentum=.3, eps=1e-3), {}], ids=str)
def test_batch_norms_are_configured_main_and_auxiliary(resnet, settings, num_aux):
    model = convert_split_norm(resnet, num_aux) if num_aux else resnet
    expected = dict(dict(momentum=.1, eps=1e-5), **settings)
    assert configure_batch_norm(model, **settings) is model
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert all((norm.momentum, norm.eps) == (expected['momentum'], expected['eps']) for norm in norms)
    assert num_aux_norms(model) == num_aux
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


@pytest.mark.parametrize('num_aux', [0, 2])
def test_batch_norms_are_synchronised_on_demand(plain, num_aux):
    model = convert_split_norm(plain, num_aux) if num_aux else plain
    model = configure_batch_norm(model, momentum=.3, synchronise=True)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert all(isinstance(norm, (nn.SyncBatchNorm, SplitSyncBatchNorm)) and norm.momentum == .3 for norm in norms)
    assert num_aux_norms(model) == num_aux
