"""Adversarial training with one norm: Madry's, and clean and adversarial images together."""
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.task import ClassificationTask

from tests.regimes.regime_models import (
    ALPHA,
    CLASSES,
    DETERMINISTIC,
    HALF,
    NAMES,
    STRONG,
    assert_all_close,
    assert_unchanged,
    gradients_of,
    hand_attack,
    make_batch,
    negative,
    percent_right,
    plain_twin,
    recorded_batches,
    snapshot,
    split_model,
    task_of,
    tiny_model,
)
from timm_advprop import set_norm_route
from timm_advprop.regimes import Attack, FunctionSource, GaussianNoise, JointTask, MadryTask, Source

pytestmark = pytest.mark.usefixtures('one_thread')
ATTACK = Attack(eps_px=STRONG, alpha_px=ALPHA, **DETERMINISTIC)
TASKS = pytest.mark.parametrize('task_type', [MadryTask, JointTask], ids=lambda task_type: task_type.name)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
def test_madry_trains_a_plain_model_on_attacked_images(name, norm_stats):
    model, (images, target) = split_model(name).train(), make_batch()
    twin = plain_twin(model, 0).train()
    adversarial = hand_attack(twin, images, target, STRONG, ATTACK.num_steps, training=norm_stats == 'train')
    output = twin(adversarial)
    F.cross_entropy(output, target).backward()

    result = MadryTask(model, attack=replace(ATTACK, norm_stats=norm_stats), verbose=False, **HALF)(images, target)
    result['loss'].backward()
    assert set(result) == {'loss', 'output', 'adv_loss', 'adv_top1'}
    torch.testing.assert_close(result['output'], output)
    assert result['adv_loss'] == result['loss'] and not result['adv_loss'].requires_grad
    assert result['adv_top1'].item() == pytest.approx(percent_right(output, target))
    assert_all_close(gradients_of(model), gradients_of(twin), rtol=1e-7, atol=1e-10)
    assert_all_close(plain_twin(model, 0).state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-12)


@TASKS
def test_a_loss_that_is_divided_in_place_leaves_what_is_logged(task_type):
    result = task_type(split_model().train(), verbose=False, **HALF)(*make_batch())
    logged = {name: value.item() for name, value in result.items() if name.endswith('_loss')}
    result['loss'] /= 4  # as timm's script does where gradients accumulate
    assert {name: result[name].item() for name in logged} == logged


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('weight', [1., 0.3])
def test_joint_sends_both_kinds_of_images_through_one_norm_and_adds_their_losses(name, weight):
    model, (images, target) = split_model(name).train(), make_batch()
    twin = plain_twin(model, 0).train()
    adversarial = hand_attack(twin, images, target, STRONG, ATTACK.num_steps)
    output, adv_output = twin(torch.cat([images, adversarial])).chunk(2)  # statistics of all images together
    (F.cross_entropy(output, target) + weight * F.cross_entropy(adv_output, target)).backward()

    result = JointTask(model, attack=ATTACK, weight=weight, verbose=False, **HALF)(images, target)
    result['loss'].backward()
    assert set(result) == {'loss', 'output', 'clean_loss', 'adv_loss', 'clean_top1', 'adv_top1'}
    torch.testing.assert_close(result['output'], output)
    for kind, logits in (('clean', output), ('adv', adv_output)):
        torch.testing.assert_close(result[f'{kind}_loss'], F.cross_entropy(logits, target).detach())
        assert result[f'{kind}_top1'].item() == pytest.approx(percent_right(logits, target))
    assert_all_close(gradients_of(model), gradients_of(twin), rtol=1e-7, atol=1e-10)
    assert_all_close(plain_twin(model, 0).state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-12)


@TASKS
def test_auxiliary_norms_take_no_part(task_type):
    model, (images, target) = split_model().train(), make_batch()
    set_norm_route(model, 'aux')
    before = {key: value.clone() for key, value in model.state_dict().items() if 'aux_bn' in key}
    task = task_type(model, attack=Attack(steps=1), verbose=False, **HALF)
    task(images, target)['loss'].backward()
    assert before and all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not any('aux_bn' in name for name in gradients_of(model))


@TASKS
def test_a_plain_model_stays_plain(task_type):
    model = timm.create_model('test_resnet', num_classes=CLASSES)
    keys = set(model.state_dict())
    task = task_of(task_type.name, model, adv_steps=1)
    assert type(task) is task_type and isinstance(task, ClassificationTask)
    task(*make_batch(4, torch.float32))['loss'].backward()
    assert set(model.state_dict()) == keys
    assert all(parameter.grad is not None for parameter in model.parameters())


@TASKS
def test_a_failing_attack_leaves_no_trace(task_type):
    model, (images, target) = split_model().train(), make_batch()
    task = task_type(model, verbose=False, **HALF)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = snapshot(model)

    def fail(module, args):
        raise RuntimeError('out of memory')

    handle = model.layer3.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        task(images, target)
    handle.remove()
    assert_unchanged(model, before)


def _count_passes(task, images, target):
    forwards, backwards = [], []

    def count(module, args, output):
        forwards.append(('train' if module.training else 'attack', len(args[0])))
        output.register_hook(lambda gradient: backwards.append(forwards[-1][0]))

    task.trainable_module.register_forward_hook(count)
    task(images, target)['loss'].backward()
    return forwards, backwards


@pytest.mark.parametrize('regime, images_trained', [('vanilla', 4), ('madry', 4), ('joint', 8)])
def test_passes_of_a_step(regime, images_trained):
    task = task_of(regime, tiny_model().train(), adv_steps=3)
    forwards, backwards = _count_passes(task, *make_batch(4, torch.float32))
    attack = [] if regime == 'vanilla' else [('attack', 4)] * 3
    assert forwards == [*attack, ('train', images_trained)]
    assert backwards == [kind for kind, _ in forwards]
    # an attack's backward pass computes half of what a training one does: 2/3 of the arithmetic in all
    assert task.relative_cost() == pytest.approx(images_trained / 4 + len(attack) * 2 / 3)


@pytest.mark.parametrize('regime', ['madry', 'joint', 'advprop', 'fast-advprop'])
@pytest.mark.parametrize('kind', ['pgd', 'ifgsm', 'gd'])
@pytest.mark.parametrize('norm, eps', [('linf', 4.), ('l2', 255.)])
@pytest.mark.parametrize('target_mode', ['random', 'none'])
def test_every_regime_takes_every_attacker(regime, kind, norm, eps, target_mode):
    model, (images, target) = tiny_model().train(), make_batch(10, torch.float32)
    steps = {} if regime == 'fast-advprop' else dict(adv_steps=2)
    task = task_of(
        regime, model, adv_attack=kind, adv_norm=norm, adv_eps=[eps], adv_alpha=eps / 2, adv_target=target_mode,
        adv_random_start=0., **steps)
    with recorded_batches(model) as seen:
        task(images, target)['loss'].backward()
    adversarial = {'madry': seen[-1], 'fast-advprop': seen[-1][-2:]}.get(regime, seen[-1][10:])
    perturbation = (adversarial - images[-len(adversarial):]).abs() * 255 / 2  # in pixels; std is 0.5
    if regime == 'fast-advprop':  # shuffled
        perturbation = torch.minimum(perturbation, (adversarial.flip(0) - images[-2:]).abs() * 255 / 2)
    size = perturbation.amax() if norm == 'linf' else perturbation.flatten(1).norm(dim=1).amax()
    assert 0 < size <= eps * 1.001


@pytest.mark.parametrize('weight', [-1, float('nan')])
def test_joint_refuses_a_wrong_weight(weight):
    with pytest.raises(ValueError, match='weight of the adversarial loss must be at least 0'):
        JointTask(tiny_model(), weight=weight, verbose=False, **HALF)


@TASKS
def test_a_normalisation_is_needed(task_type):
    with pytest.raises(ValueError, match='pass mean and std'):
        task_type(tiny_model(), verbose=False)


@pytest.mark.parametrize('source', [negative, FunctionSource(negative)], ids=['function', 'source'])
def test_madry_trains_on_the_images_and_labels_of_any_source(source):
    model, (images, target) = split_model().train(), make_batch()
    twin = plain_twin(model, 0).train()
    made, labels = negative(None, images, target)
    output = twin(made)
    F.cross_entropy(output, labels).backward()
    task = MadryTask(model, attack=source, verbose=False, **HALF)
    result = task(images, target)
    result['loss'].backward()
    torch.testing.assert_close(result['output'], output)
    assert result['adv_top1'].item() == pytest.approx(percent_right(output, labels))
    assert_all_close(gradients_of(model), gradients_of(twin), rtol=1e-7, atol=1e-10)
    assert task.describe() == 'madry, images of negative' and task.relative_cost() == 1


def test_joint_trains_on_clean_images_and_those_of_any_source():
    model, (images, target) = split_model().train(), make_batch()
    twin = plain_twin(model, 0).train()
    made, labels = negative(None, images, target)
    output, other = twin(torch.cat([images, made])).chunk(2)
    (F.cross_entropy(output, target) + 0.5 * F.cross_entropy(other, labels)).backward()
    task = JointTask(model, attack=negative, weight=0.5, verbose=False, **HALF)
    result = task(images, target)
    result['loss'].backward()
    torch.testing.assert_close(result['adv_loss'], F.cross_entropy(other, labels).detach())
    assert result['adv_top1'].item() == pytest.approx(percent_right(other, labels))
    assert_all_close(gradients_of(model), gradients_of(twin), rtol=1e-7, atol=1e-10)
    assert task.describe() == 'joint, images of negative, adversarial loss × 0.5' and task.relative_cost() == 2


@TASKS
def test_losses_are_named_after_the_source(task_type):
    class Dark(Source):
        part = 'dark'

        def __call__(self, model, images, target):
            return (images / 2).float(), target

        def describe(self):
            return 'darker images'

    result = task_type(split_model().train(), attack=Dark(), verbose=False, **HALF)(*make_batch())
    assert {'dark_loss', 'dark_top1'} <= result.keys() and 'adv_loss' not in result


@TASKS
def test_one_source_is_chosen_by_name(task_type):
    noise = task_of(task_type.name, tiny_model(), adv_source='gaussian-noise', adv_eps=2.)
    assert noise.attack == GaussianNoise(eps_px=2, **HALF)
    weak = task_of(task_type.name, tiny_model(), adv_source=['pgd eps=1 steps=1'])
    assert weak.attack == replace(task_type.default_attack, eps_px=1, steps=1, **HALF)
    for flags in (dict(adv_source=['pgd', 'gaussian-noise']), dict(adv_source='pgd', adv_eps=[1., 2.])):
        with pytest.raises(ValueError, match=f'^Regime {task_type.name} takes the images of one source, got PGD-'):
            task_of(task_type.name, tiny_model(), **flags)


@TASKS
def test_several_strengths_are_refused(task_type):
    with pytest.raises(ValueError, match=rf'{task_type.name} takes one attack strength, got \[1.0, 4.0\]'):
        task_of(task_type.name, tiny_model(), adv_eps=[1., 4.])
