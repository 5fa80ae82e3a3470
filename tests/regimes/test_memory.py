"""Memory of a step: twice the images are twice the activations, and an attack adds nothing to the peak."""
import weakref
from copy import deepcopy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.regimes.regime_models import HALF, split_model
from timm_advprop import Attack, norm_route, strip_aux
from timm_advprop.cli.step_memory import step_memory
from timm_advprop.cli.training_step import TrainingStep
from timm_advprop.engine.placement import Placement
from timm_advprop.regimes import AdvPropTask, FastAdvPropTask, JointTask, MadryTask, TradesTask, VanillaTask

pytestmark = pytest.mark.usefixtures('one_thread')
CPU = torch.device('cpu')
NUM_IMAGES = 20
BATCH_BYTES = NUM_IMAGES * 3 * 64 * 64 * 4
ATTACKS = {
    'PGD-1': Attack(eps_px=1, steps=1), 'PGD-5': Attack(steps=5), 'untargeted': Attack(steps=2, target='none'),
    'batch statistics': Attack(steps=2, norm_stats='train'), 'L2': Attack(steps=2, norm='l2'),
}


@pytest.fixture(scope='module')
def model():
    return split_model('test_resnet_ap', torch.float32)


@pytest.fixture(scope='module')
def vanilla(model):
    return memory_of(VanillaTask(strip_aux(model), verbose=False))


def memory_of(task, num_images=NUM_IMAGES):
    images, target = torch.randn(num_images, 3, 64, 64), torch.arange(num_images) % 5
    return step_memory(TrainingStep(task, (images, target), Placement(CPU)), CPU)


def given(model, images, target):
    """A source that has nothing to compute; the images are copies."""
    return images, target


def advprop(model, source, **kwargs):
    return AdvPropTask(deepcopy(model), sources=source, verbose=False, **HALF, **kwargs)


@pytest.mark.parametrize('attack', ATTACKS.values(), ids=ATTACKS)
def test_advprop_needs_twice_the_activations_whatever_the_attack(model, vanilla, attack):
    found, without = memory_of(advprop(model, attack)), memory_of(advprop(model, given))
    assert 1.9 < without.activations / vanilla.activations < 2.1
    for with_attack, without_attack in zip(found, without, strict=True):
        assert abs(with_attack - without_attack) < BATCH_BYTES / 100


def test_an_attack_that_is_kept_would_be_seen(model):
    graphs = []

    def keeping(module, images, target):
        graphs.append(module(images.requires_grad_()))
        return images.detach(), target
    found, without = memory_of(advprop(model, keeping)), memory_of(advprop(model, given))
    assert found.activations > 1.3 * without.activations


@pytest.mark.parametrize('make, most', [
    (lambda model: MadryTask(strip_aux(model), attack=ATTACKS['PGD-5'], verbose=False, **HALF), 1.1),
    (lambda model: JointTask(strip_aux(model), attack=ATTACKS['PGD-5'], verbose=False, **HALF), 2.1),
    (lambda model: TradesTask(deepcopy(model), verbose=False, **HALF), 2.1),
    (lambda model: FastAdvPropTask(deepcopy(model), verbose=False, **HALF), 1.3),
    (lambda model: AdvPropTask(  # three parts
        split_model('test_resnet_ap', torch.float32, num_aux=2), sources=[ATTACKS['PGD-5']] * 2, verbose=False,
        **HALF), 3.15),
], ids=['madry', 'joint', 'trades', 'fast-advprop', 'two strengths'])
def test_activations_of_other_regimes(model, vanilla, make, most):
    assert 1 <= memory_of(make(model)).activations / vanilla.activations < most


def test_folded_weights_are_gone_after_an_attack(model):
    model, seen = deepcopy(model).train(), []
    convolution = model.layer1[0].conv1

    def loss(output, target):
        seen.append(weakref.ref(convolution.weight))
        return F.cross_entropy(output, target, reduction='sum')
    with norm_route(model, 'aux'):
        Attack(steps=2, loss=loss).normalised_by(**HALF)(model, torch.randn(8, 3, 64, 64), torch.arange(8) % 5)
    assert isinstance(convolution.weight, nn.Parameter)
    assert len(seen) == 2 and all(weight() is None for weight in seen)  # another tensor, which is gone


def test_accumulated_parts_of_a_batch_fit_where_vanilla_trains_on_the_whole(model, vanilla):
    halves, quarters = (memory_of(advprop(model, ATTACKS['PGD-5']), NUM_IMAGES // parts) for parts in (2, 4))
    assert halves.accumulating < 1.03 * vanilla.accumulating  # the same images at a time, and auxiliary norms
    assert quarters.accumulating < vanilla.peak
