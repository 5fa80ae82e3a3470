"""Adversarial training with one norm: Madry's, and clean and adversarial images together."""
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from regime_models import (
    ALPHA,
    CLASSES,
    DETERMINISTIC,
    HALF,
    NAMES,
    STRONG,
    assert_all_close,
    gradients_of,
    hand_attack,
    make_batch,
    plain_twin,
    split_model,
    tiny_model,
)
from timm.task import ClassificationTask

from timm_advprop import set_norm_route
from timm_advprop.regimes import JointTask, MadryTask, VanillaTask, create_task, default_steps

pytestmark = pytest.mark.usefixtures('one_thread')
STEPS = default_steps(STRONG)


def _percent_right(output, target):
    return 100 * (output.argmax(1) == target).double().mean().item()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
def test_madry_trains_a_plain_model_on_attacked_images(name, norm_stats):
    model, (images, target) = split_model(name).train(), make_batch()
    twin = plain_twin(model, 0).train()
    adversarial = hand_attack(twin, images, target, STRONG, STEPS, training=norm_stats == 'train')
    output = twin(adversarial)
    F.cross_entropy(output, target).backward()

    task = MadryTask(model, eps=STRONG, alpha=ALPHA, norm_stats=norm_stats, verbose=False, **DETERMINISTIC, **HALF)
    result = task(images, target)
    result['loss'].backward()
    assert set(result) == {'loss', 'output', 'adv_loss', 'adv_top1'}
    torch.testing.assert_close(result['output'], output)
    assert result['adv_loss'] == result['loss'] and not result['adv_loss'].requires_grad
    assert result['adv_top1'].item() == pytest.approx(_percent_right(output, target))
    assert_all_close(gradients_of(model), gradients_of(twin), rtol=1e-7, atol=1e-10)
    assert_all_close(plain_twin(model, 0).state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('weight', [1., 0.3])
def test_joint_sends_both_kinds_of_images_through_one_norm_and_adds_their_losses(name, weight):
    model, (images, target) = split_model(name).train(), make_batch()
    twin = plain_twin(model, 0).train()
    adversarial = hand_attack(twin, images, target, STRONG, STEPS)
    output, adv_output = twin(torch.cat([images, adversarial])).chunk(2)  # statistics of all images together
    (F.cross_entropy(output, target) + weight * F.cross_entropy(adv_output, target)).backward()

    task = JointTask(model, eps=STRONG, alpha=ALPHA, weight=weight, verbose=False, **DETERMINISTIC, **HALF)
    result = task(images, target)
    result['loss'].backward()
    torch.testing.assert_close(result['output'], output)
    for kind, logits in (('clean', output), ('adv', adv_output)):
        torch.testing.assert_close(result[f'{kind}_loss'], F.cross_entropy(logits, target).detach())
        assert result[f'{kind}_top1'].item() == pytest.approx(_percent_right(logits, target))
    assert_all_close(gradients_of(model), gradients_of(twin), rtol=1e-7, atol=1e-10)
    assert_all_close(plain_twin(model, 0).state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('regime', ['madry', 'joint'])
def test_auxiliary_norms_take_no_part(regime):
    model, (images, target) = split_model().train(), make_batch()
    set_norm_route(model, 'aux')
    before = {key: value.clone() for key, value in model.state_dict().items() if 'aux_bn' in key}
    task = create_task(regime, model, attack=dict(HALF, steps=1), verbose=False)
    task(images, target)['loss'].backward()
    assert before and all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not any('aux_bn' in name for name in gradients_of(model))


@pytest.mark.parametrize('regime, task_type', [('madry', MadryTask), ('joint', JointTask)])
def test_a_plain_model_stays_plain(regime, task_type):
    model = timm.create_model('test_resnet', num_classes=CLASSES)
    keys = set(model.state_dict())
    task = create_task(regime, model, attack=dict(steps=1), verbose=False)
    assert type(task) is task_type and isinstance(task, ClassificationTask)
    task(*make_batch(4, torch.float32))['loss'].backward()
    assert set(model.state_dict()) == keys
    assert all(parameter.grad is not None for parameter in model.parameters())


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
    model = tiny_model().train()
    model.num_classes = CLASSES
    task = create_task(regime, model, attack=dict(HALF, steps=3), verbose=False)
    forwards, backwards = _count_passes(task, *make_batch(4, torch.float32))
    attack = [] if regime == 'vanilla' else [('attack', 4)] * 3
    assert forwards == [*attack, ('train', images_trained)]
    assert backwards == [kind for kind, _ in forwards]
    # an attack's backward pass computes half of what a training one does: 2/3 of the arithmetic in all
    assert task.relative_cost() == pytest.approx(images_trained / 4 + len(attack) * 2 / 3)


@pytest.mark.parametrize('regime, words', [
    ('vanilla', 'vanilla: 1.0 ×'),
    ('madry', 'madry, PGD-5, eps 4/255, alpha 1/255, untargeted: 4.3 ×'),
    ('joint', 'joint, PGD-5, eps 4/255, alpha 1/255, random target, adversarial loss × 1: 5.3 ×'),
    ('advprop', 'advprop, PGD-5, eps 4/255, alpha 1/255, random target, adversarial loss × 1: 5.3 ×'),
    ('fast-advprop', 'fast-advprop 4:1, PGD-1, eps 1/255, alpha 1/255, untargeted, adversarial losses × 0.5: 1.2 ×'),
])
def test_each_regime_tells_its_attack_and_its_cost(regime, words, caplog):
    with caplog.at_level('INFO', 'timm_advprop'):
        create_task(regime, timm.create_model('test_resnet'))
    assert f'{words} the arithmetic of vanilla' in caplog.text
    caplog.clear()
    with caplog.at_level('INFO', 'timm_advprop'):
        create_task(regime, timm.create_model('test_resnet'), verbose=False)
    assert not caplog.text


def test_accuracy_of_soft_targets_counts_the_largest_weight():
    model, (images, target) = split_model().train(), make_batch()
    soft = torch.full((6, CLASSES), 0.1).double().scatter_(1, target[:, None], 0.6)
    hard, mixed = (VanillaTask(plain_twin(model, 0).train(), verbose=False)(images, labels)['clean_top1']
                   for labels in (target, soft))
    assert hard == mixed


@pytest.mark.parametrize('regime', ['madry', 'joint', 'advprop', 'fast-advprop'])
@pytest.mark.parametrize('attack', ['pgd', 'ifgsm', 'gd'])
@pytest.mark.parametrize('norm, eps', [('linf', 4), ('l2', 255)])
@pytest.mark.parametrize('target_mode', ['random', 'none'])
def test_every_regime_takes_every_attacker(regime, attack, norm, eps, target_mode):
    torch.manual_seed(0)
    model, (images, target) = tiny_model().train(), make_batch(10, torch.float32)
    settings = dict(HALF, attack=attack, norm=norm, eps=eps, alpha=eps / 2, target=target_mode, random_start=0.)
    if regime != 'fast-advprop':
        settings['steps'] = 2
    task = create_task(regime, model, nn.CrossEntropyLoss(), settings, verbose=False)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    task(images, target)['loss'].backward()
    adversarial = {'madry': seen[-1], 'fast-advprop': seen[-1][-2:]}.get(regime, seen[-1][10:])
    perturbation = (adversarial - images[-len(adversarial):]).abs() * 255 / 2  # in pixels; std is 0.5
    if regime == 'fast-advprop':  # shuffled
        perturbation = torch.minimum(perturbation, (adversarial.flip(0) - images[-2:]).abs() * 255 / 2)
    size = perturbation.amax() if norm == 'linf' else perturbation.flatten(1).norm(dim=1).amax()
    assert 0 < size <= eps * 1.001
