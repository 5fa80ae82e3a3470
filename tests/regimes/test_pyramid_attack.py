"""`PyramidAttack`: the pyramid attack as a source, in pixels, on the route of its norm, without a trace."""
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy

from tests.regimes.regime_models import (
    CLASSES,
    HALF,
    assert_step_equals_plain_models,
    assert_unchanged,
    make_batch,
    plain_twin,
    plain_twins,
    snapshot,
    split_model,
    task_of,
    tiny_model,
)
from timm_advprop import AdvPropTask, JointTask, norm_route, pyramid
from timm_advprop.regimes import Attack, PyramidAttack, RegimeSettings, create_task

pytestmark = pytest.mark.usefixtures('one_thread')
SMALL = dict(eps_px=3., alpha_px=1.5, steps=2, scales=(8, 4, 1), weights=(8., 4., 1.))
UNTARGETED = PyramidAttack(target='none', **SMALL)


def by_hand(model, images, target, training=False, **settings):
    """The pure attack on a plain model, with strengths in units of images that are normalised by 0.5."""
    return pyramid(
        model.train(training), images, target, eps=3 / 255 / 0.5, alpha=1.5 / 255 / 0.5, steps=2, bounds=(-1, 1),
        scales=(8, 4, 1), weights=(8, 4, 1), **settings)


@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
@pytest.mark.parametrize('route', [0, 1, 2])
def test_it_passes_the_norms_of_the_models_route_and_leaves_no_trace(norm_stats, route):
    model, (images, target) = split_model(num_aux=2).train(), make_batch()
    by_route = [by_hand(plain_twin(model, i), images, target, norm_stats == 'train') for i in range(3)]
    with norm_route(model, route):
        before = snapshot(model)
        adv, labels = PyramidAttack(target='none', norm_stats=norm_stats, **SMALL, **HALF)(model, images, target)
        assert_unchanged(model, before)
    assert labels is target
    torch.testing.assert_close(adv, by_route[route], rtol=0, atol=1e-12)
    assert not any(torch.equal(by_route[route], by_route[i]) for i in range(3) if i != route)


def test_towards_random_wrong_labels_their_loss_falls():
    model, (images, target) = tiny_model(dtype=torch.float64).eval(), make_batch(32)
    drawn = []

    def loss(output, labels):
        drawn.append(labels)
        return F.cross_entropy(output, labels, reduction='sum')

    adv, _ = PyramidAttack(loss=loss, **SMALL, **HALF)(model, images, target)
    wrong = drawn[0]
    assert (wrong != target).all() and all(torch.equal(labels, wrong) for labels in drawn)
    assert F.cross_entropy(model(adv), wrong) < F.cross_entropy(model(images), wrong)
    adv, _ = PyramidAttack(target='none', **SMALL, **HALF)(model, images, target)
    assert F.cross_entropy(model(adv), target) > F.cross_entropy(model(images), target)


def test_strength_is_in_pixels_for_any_normalisation():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels, target = make_batch()[0] / 4 + 0.5, make_batch()[1]
    mean_, std_ = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (mean, std))
    adv, _ = PyramidAttack(eps_px=1, alpha_px=1, steps=3, scales=(4, 1), weights=(2., 1.), mean=mean, std=std)(
        tiny_model(dtype=torch.float64), (pixels - mean_) / std_, target)
    reach = ((adv * std_ + mean_ - pixels).abs() * 255).amax(dim=(0, 2, 3))
    torch.testing.assert_close(reach, torch.full((3,), 3., dtype=torch.float64))


def test_the_defaults_are_the_papers():
    attack = PyramidAttack()
    assert (attack.eps_px, attack.alpha_px, attack.steps, attack.num_steps, attack.target) == (6, 1, 5, 5, 'random')
    assert (attack.scales, attack.weights) == ((32, 16, 1), (20, 10, 1))
    assert attack.relative_cost() == pytest.approx(5 * 2 / 3)
    assert attack.describe() == (
        'pyramid-5 (20 × 32 px, 10 × 16 px, 1 × 1 px), eps 6/255, alpha 1/255, random target')
    assert attack.facts() == dict(
        trained_on='pyramid adversarial images', eps_px=6, alpha_px=1, steps=5, target='random', scales=[32, 16, 1],
        weights=[20, 10, 1])
    with pytest.raises(FrozenInstanceError):
        attack.eps_px = 1


@pytest.mark.parametrize('wrong, words', [
    (dict(eps_px=-1), 'eps_px must be from 0 to 255'), (dict(alpha_px=-1), 'alpha_px must be from 0'),
    (dict(steps=0), 'steps must be at least 1'), (dict(scales=(32, 0, 1)), 'scales must be at least 1'),
    (dict(scales=(32, 1.5, 1)), 'scales must be a whole number'), (dict(weights=(1., -1., 1.)), 'weights must be'),
    (dict(weights=(1.,)), r'a weight for each of its scales, got scales \[32, 16, 1\] and weights \[1.0\]'),
    (dict(scales=(), weights=()), 'a weight for each'), (dict(target='best'), 'target must be one of'),
], ids=str)
def test_a_setting_out_of_its_range_is_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        PyramidAttack(**wrong)


def test_a_task_of_several_labels_is_attacked_by_its_criterion():
    model, (images, _) = tiny_model(dtype=torch.float64).eval(), make_batch()
    labels = (torch.rand(len(images), CLASSES) < 0.5).double()
    criterion = BinaryCrossEntropy()
    adv, _ = UNTARGETED.against(criterion).normalised_by((0.5,) * 3, (0.5,) * 3)(model, images, labels)
    expected = by_hand(model, images, labels, loss=criterion)
    assert torch.equal(adv, expected)


def test_advprop_trains_an_auxiliary_norm_on_it():
    model, (images, target) = split_model().train(), make_batch()
    twins = plain_twins(model)
    made = by_hand(plain_twin(model, 1), images, target)
    result = AdvPropTask(model, sources=UNTARGETED, weight=0.5, verbose=False, **HALF)(images, target)
    assert_step_equals_plain_models(model, twins, [(images, target), (made, target)], (1, 0.5), result)


def test_joint_training_shares_its_norms_with_it():
    model, (images, target) = split_model().train(), make_batch()
    twin = plain_twin(model, 0)
    made = by_hand(plain_twin(model, 0), images, target)
    loss = sum(F.cross_entropy(part, target) for part in twin.train()(torch.cat([images, made])).chunk(2))
    task = JointTask(model, attack=UNTARGETED, verbose=False, **HALF)
    torch.testing.assert_close(task(images, target)['loss'], loss)
    assert 'pyramid-2' in task.describe() and task.relative_cost() == pytest.approx(2 + 4 / 3)


def test_it_is_chosen_by_its_name():
    task = task_of('advprop', tiny_model(2), adv_source='pyramid', adv_eps=[2., 6.])
    assert [source.eps_px for source in task.sources] == [2, 6]
    assert all(isinstance(source, PyramidAttack) for source in task.sources)


def test_a_random_target_needs_a_wrong_label():
    with pytest.raises(ValueError, match='needs a wrong label, the model has 1 class'):
        PyramidAttack().check_classes(1)
    model = nn.Sequential(tiny_model(), nn.Linear(CLASSES, 1))
    model.num_classes = 1
    with pytest.raises(ValueError, match='needs a wrong label'):
        task_of('advprop', model, adv_source='pyramid')
    model = nn.Sequential(tiny_model(), nn.Linear(CLASSES, 1))
    model.num_classes = 1
    for regime in ('joint', 'advprop'):  # yes or no: the wrong label is the other answer
        create_task(RegimeSettings(regime, named='pyramid'), model, nn.BCEWithLogitsLoss(), verbose=False, **HALF)


def test_attacks_of_both_kinds_train_norms_of_their_own():
    model, (images, target) = split_model(num_aux=2).train(), make_batch()
    task = AdvPropTask(model, sources=[Attack(steps=1), UNTARGETED], verbose=False, **HALF)
    assert task(images, target)['loss'].isfinite()
    assert task.relative_cost() == pytest.approx(3 + 2 / 3 + 4 / 3)
