"""TRADES: its attack maximises the KL, and its step is that of a plain second implementation."""
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from tests.cli.programs import run_train
from tests.engine.runs import load, read_summary
from tests.regimes.regime_models import (
    CLASSES,
    HALF,
    assert_all_close,
    assert_unchanged,
    gradients_of,
    make_batch,
    plain_twin,
    plain_twins,
    recorded_batches,
    snapshot,
    split_model,
    task_of,
    tiny_model,
)
from timm_advprop import TradesTask, convert_split_norm
from timm_advprop.norms import has_split_norm, num_aux_norms, split_norms
from timm_advprop.regimes import Attack, RegimeSettings

pytestmark = pytest.mark.usefixtures('one_thread')
ATTACK = Attack(eps_px=8., alpha_px=2., steps=3, target='none', random_start=1.)


def kl_by_hand(clean, adv):
    return F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction='batchmean')


def attack_by_hand(clean_model, adv_model, images, norm, sign=1, divergence=kl_by_hand):
    """The paper's attack: each step follows the gradient of the KL itself, from the start that `Attack` draws."""
    eps, alpha = 8 / 255 / 0.5, 2 / 255 / 0.5
    if norm == 'linf':
        delta = torch.empty_like(images).uniform_(-1, 1) * eps
    else:
        point = torch.randn_like(images)
        point = point / point.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        radius = torch.rand(len(images), dtype=images.dtype) ** (1 / images[0].numel())
        delta = point * radius.view(-1, 1, 1, 1) * eps
    adv = (images + delta).clamp(-1, 1)
    with torch.no_grad():
        clean = clean_model(images)
    for _ in range(3):
        adv = adv.detach().requires_grad_()
        grad, = torch.autograd.grad(divergence(clean, adv_model(adv)), adv)
        if norm == 'linf':
            delta = (adv + sign * alpha * grad.sign() - images).clamp(-eps, eps)
        else:
            delta = adv + sign * alpha * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - images
            delta = delta / (delta.flatten(1).norm(dim=1) / eps).clamp_min(1).view(-1, 1, 1, 1)
        adv = (images + delta).clamp(-1, 1).detach()
    return adv


def step_of(task, images, target):
    """The result of a step and the adversarial images it saw."""
    torch.manual_seed(11)
    with recorded_batches(task.unwrapped_module) as seen:
        result = task(images, target)
    return result, seen[-1][len(images):]


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
def test_a_plain_model_trains_as_in_the_paper(norm, norm_stats):
    model, (images, target) = plain_twin(split_model(), 0).train(), make_batch()
    twin = plain_twin(split_model(), 0)
    torch.manual_seed(11)
    made = attack_by_hand(*[twin.train(norm_stats == 'train')] * 2, images, norm)
    twin = plain_twin(split_model(), 0).train()
    clean, adv = twin(torch.cat([images, made])).chunk(2)
    divergence = kl_by_hand(clean, adv)
    loss = F.cross_entropy(clean, target) + 2.5 * divergence
    loss.backward()

    attack = Attack(eps_px=8., alpha_px=2., steps=3, target='none', random_start=1., norm=norm, norm_stats=norm_stats)
    task = TradesTask(model, attack=attack, weight=2.5, verbose=False, **HALF)
    result, adversarial = step_of(task, images, target)
    result['loss'].backward()
    torch.testing.assert_close(adversarial, made, rtol=0, atol=1e-9)
    torch.testing.assert_close(result['loss'].detach(), loss.detach())
    torch.testing.assert_close(result['adv_loss'], divergence.detach())
    torch.testing.assert_close(result['clean_loss'], F.cross_entropy(clean, target).detach())
    torch.testing.assert_close(result['output'], clean)
    assert set(result) == {'loss', 'output', 'clean_loss', 'adv_loss', 'clean_top1', 'adv_top1'}
    assert_all_close(gradients_of(model), gradients_of(twin), rtol=1e-6, atol=1e-9)
    assert_all_close(model.state_dict(), twin.state_dict(), rtol=1e-7, atol=1e-10)


def test_a_split_model_has_norms_of_their_own_for_clean_and_adversarial_images():
    model, (images, target) = split_model().train(), make_batch()
    twins = plain_twins(model)
    attacked = [plain_twin(model, route).eval() for route in (0, 1)]
    torch.manual_seed(11)
    made = attack_by_hand(*attacked, images, 'linf')
    outputs = [twin(part) for twin, part in zip(twins, (images, made))]
    divergence = kl_by_hand(*outputs)
    (F.cross_entropy(outputs[0], target) + 6 * divergence).backward()

    result, adversarial = step_of(TradesTask(model, attack=ATTACK, verbose=False, **HALF), images, target)
    result['loss'].backward()
    torch.testing.assert_close(adversarial, made, rtol=0, atol=1e-9)
    torch.testing.assert_close(result['adv_loss'], divergence.detach())
    of_twins = [gradients_of(twin) for twin in twins]
    gradients = gradients_of(model)
    torch.testing.assert_close(
        gradients['fc.weight'], of_twins[0]['fc.weight'] + of_twins[1]['fc.weight'], rtol=1e-6, atol=1e-9)
    for name in ('bn1.weight', 'bn1.bias'):
        torch.testing.assert_close(gradients[name], of_twins[0][name], rtol=1e-6, atol=1e-9)
        aux = name.replace('bn1.', 'bn1.aux_bn.0.')
        torch.testing.assert_close(gradients[aux], of_twins[1][name], rtol=1e-6, atol=1e-9)
    for route in (0, 1):
        assert_all_close(
            plain_twin(model, route).state_dict(), twins[route].state_dict(), rtol=1e-7, atol=1e-10)
    assert {norm.route for norm in split_norms(model)} == {0}


def test_the_attack_raises_the_divergence():
    model, (images, target) = tiny_model(dtype=torch.float64).eval(), make_batch(32)
    task = TradesTask(model, attack=ATTACK, verbose=False, **HALF)
    _, adversarial = step_of(task, images, target)
    start = (images + torch.empty_like(images).uniform_(-1, 1) * 16 / 255).clamp(-1, 1)
    assert kl_by_hand(model(images), model(adversarial)) > 2 * kl_by_hand(model(images), model(start))
    assert ((adversarial - images).abs() <= 16 / 255 + 1e-12).all()


def test_labels_play_no_part_in_the_attack():
    model, (images, target) = tiny_model(dtype=torch.float64).eval(), make_batch()
    task = TradesTask(model, attack=ATTACK, verbose=False, **HALF)
    assert torch.equal(step_of(task, images, target)[1], step_of(task, images, (target + 1) % CLASSES)[1])


@pytest.mark.parametrize('criterion', [BinaryCrossEntropy(), nn.BCEWithLogitsLoss()], ids=str)
@pytest.mark.parametrize('classes', [CLASSES, 1])
def test_several_labels_diverge_by_their_sigmoids(criterion, classes):
    torch.manual_seed(0)
    model, (images, _) = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes)).double(), make_batch()
    labels = (torch.rand(len(images), classes) < 0.5).double()

    def divergence(clean, adv):
        p, q = clean.sigmoid(), adv.sigmoid()
        return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / len(p)

    torch.manual_seed(11)
    made = attack_by_hand(model, model, images, 'linf', divergence=divergence)
    result, adversarial = step_of(TradesTask(model, criterion, ATTACK, verbose=False, **HALF), images, labels)
    torch.testing.assert_close(adversarial, made, rtol=0, atol=1e-9)
    expected = divergence(model(images), model(made))
    torch.testing.assert_close(result['adv_loss'], expected.detach())
    torch.testing.assert_close(result['loss'], criterion(model(images), labels) + 6 * expected)


def test_mixed_classes_train():
    model, (images, target) = split_model().train(), make_batch()
    soft = F.one_hot(target, CLASSES).double() * 0.7 + 0.3 / CLASSES
    result = TradesTask(model, SoftTargetCrossEntropy(), ATTACK, verbose=False, **HALF)(images, soft)
    assert result['loss'].isfinite() and result['adv_loss'] > 0


def test_a_failing_attack_leaves_no_trace():
    model, (images, target) = split_model().train(), make_batch()
    task = TradesTask(model, attack=ATTACK, verbose=False, **HALF)
    for failing_pass in (1, 2):
        passes, before = [], snapshot(model)

        def fail(module, args, passes=passes, failing_pass=failing_pass):
            passes.append(args)
            if len(passes) == failing_pass:
                raise RuntimeError('out of memory')

        handle = model.layer3.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match='out of memory'):
            task(images, target)
        handle.remove()
        assert_unchanged(model, before)


@pytest.mark.parametrize('amp_dtype', [None, 'bfloat16', 'float32'])
def test_the_divergence_is_computed_in_float32(amp_dtype):
    model, (images, target) = tiny_model().train(), make_batch(dtype=torch.float32)
    task = TradesTask(
        model, attack=Attack(target='none', random_start=1., steps=1, amp_dtype=amp_dtype), verbose=False, **HALF)
    with torch.autocast('cpu', torch.bfloat16):
        result = task(images, target)
    assert result['adv_loss'].dtype == torch.float32
    result['loss'].backward()


def test_the_pass_that_tells_what_to_leave_runs_in_the_precision_of_the_attack():
    model, (images, target) = tiny_model().train(), make_batch(dtype=torch.float32)
    attack = Attack(target='none', random_start=1., steps=1, amp_dtype='bfloat16')
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    TradesTask(model, attack=attack, verbose=False, **HALF)(images, target)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]


# What it says of itself


@pytest.mark.parametrize('name', ['test_resnet', 'test_resnet_ap'])
def test_the_regime_leaves_a_plain_model_plain(name):
    model = timm.create_model(name, num_classes=CLASSES)
    keys = set(model.state_dict())
    task = task_of('trades', model, adv_steps=1)
    assert type(task) is TradesTask and set(model.state_dict()) == keys
    task(*make_batch(4, torch.float32))['loss'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert has_split_norm(model) == name.endswith('_ap')


def test_its_defaults_are_the_papers_on_cifar():
    task = TradesTask(tiny_model(), verbose=False, **HALF)
    assert (task.attack.eps_px, task.attack.alpha_px, task.attack.num_steps, task.weight) == (8, 2, 10, 6)
    assert task.describe() == 'trades, PGD-10, eps 8/255, alpha 2/255, untargeted, KL × 6'
    assert task_of('trades', tiny_model(), adv_weight=1., adv_eps=4.).weight == 1


def test_a_step_costs_what_it_says():
    task = TradesTask(tiny_model().train(), attack=ATTACK, verbose=False, **HALF)
    passes = []
    handle = task.unwrapped_module.register_forward_hook(
        lambda module, args, output: passes.append((len(args[0]), module.training, torch.is_grad_enabled())))
    task(*make_batch(4, torch.float32))
    handle.remove()
    assert passes == [(4, False, False), *[(4, False, True)] * 3, (8, True, True)]
    assert task.relative_cost() == pytest.approx(1 / 3 + 3 * 2 / 3 + 2)


def test_a_card_says_what_the_auxiliary_norms_saw():
    facts, = [source.facts() for source in TradesTask.sources_of_aux_norms(RegimeSettings())]
    assert facts == dict(
        trained_on='adversarial images', attack='pgd', target='none', random_start=1, alpha_px=2, eps_px=8, steps=10)


@pytest.mark.parametrize('attack', [
    Attack(random_start=1.), Attack(target='none'), Attack(target='none', random_start=1., loss=F.cross_entropy),
    Attack(kind='ifgsm', target='none', random_start=1.)], ids=['target', 'start', 'loss', 'ifgsm'])
def test_other_attacks_are_refused(attack):
    with pytest.raises(ValueError, match='trades attacks by its KL, from random points'):
        TradesTask(tiny_model(), attack=attack, verbose=False, **HALF)


@pytest.mark.parametrize('flag', ['adv_target', 'adv_random_start', 'adv_pairing', 'adv_pairing_weight',
                                  'adv_source', 'split_bn'])
def test_flags_without_a_use_are_refused(flag):
    with pytest.raises(ValueError, match=f'^Regime trades has no use for --{flag.replace("_", "-")}'):
        TradesTask.check(RegimeSettings(given=frozenset({flag})))


def test_what_it_cannot_train_is_refused():
    with pytest.raises(ValueError, match='one auxiliary norm for each norm, the model has 2'):
        TradesTask(tiny_model(num_aux=2), verbose=False, **HALF)
    with pytest.raises(ValueError, match='takes one attack strength'):
        task_of('trades', tiny_model(), adv_eps=[1., 4.])
    with pytest.raises(ValueError, match='weight of the adversarial loss must be at least 0'):
        TradesTask(tiny_model(), weight=-1, verbose=False, **HALF)
    with pytest.raises(ValueError, match='pass mean and std'):
        TradesTask(tiny_model(), verbose=False)
    half_split = nn.Sequential(convert_split_norm(nn.BatchNorm2d(3)), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match='would mix clean and other images'):
        TradesTask(half_split, verbose=False, **HALF)
    assert num_aux_norms(half_split) == 1


@pytest.mark.parametrize('model', ['test_resnet', 'test_resnet_ap'])
def test_it_trains_through_the_program(few_digits, tmp_path, model):
    run = run_train(few_digits, tmp_path, '--regime', 'trades', '--model', model, '--adv-steps', '1')
    row, = read_summary(run)
    assert float(row['train_loss']) == pytest.approx(
        float(row['train_clean_loss']) + 6 * float(row['train_adv_loss']), rel=1e-4)
    state = load(run / 'last.pth.tar')['state_dict']
    assert ('bn1.aux_bn.0.weight' in state) == model.endswith('_ap')
