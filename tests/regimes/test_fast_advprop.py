"""Fast AdvProp: gradients against a plain implementation, scales of parameter groups, budget, random draws."""
import copy
from itertools import product

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from tests.regimes.regime_models import (
    CLASSES,
    HALF,
    assert_all_close,
    assert_unchanged,
    gradients_of,
    make_batch,
    plain_twin,
    recorded_batches,
    snapshot,
    split_model,
    task_of,
    tiny_model,
)
from timm_advprop import convert_split_norm
from timm_advprop.norms import split_norms
from timm_advprop.regimes import Attack, FastAdvPropTask, VanillaTask

pytestmark = pytest.mark.usefixtures('one_thread')
EPS = 255 / 64
SETTINGS = ('eps_px', 'alpha_px', 'target', 'random_start', 'norm')


def _task(model, criterion=None, **kwargs):
    settings = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
    attack = Attack(**{**dict(eps_px=EPS, alpha_px=EPS, random_start=0., target='none'), **settings})
    return FastAdvPropTask(model, criterion, attack, verbose=False, **{**HALF, **kwargs})


def _step_by_hand(model, images, target, num_adv, weight, criterion):
    """Three backward passes of plain models with summed losses, then a division for each group of parameters."""
    main, aux = plain_twin(model, 0).train(), plain_twin(model, 1).train()
    num_clean = len(images) - num_adv
    (criterion(main(images[:num_clean]), target[:num_clean]) * num_clean).backward()

    start = images[num_clean:].clone().requires_grad_()
    (criterion(aux(start), target[num_clean:]) * num_adv * weight).backward()
    adversarial = (start + EPS / 255 / 0.5 * start.grad.sign()).clamp(-1, 1).detach()
    (criterion(aux(adversarial), target[num_clean:]) * num_adv * weight).backward()

    counts = dict(shared=num_clean + 2 * weight * num_adv, main=num_clean, aux=2 * weight * num_adv)
    norms = {name for name, module in main.named_modules() if isinstance(module, _BatchNorm)}
    gradients = {}
    for name, gradient in gradients_of(main).items():
        prefix, leaf = name.rsplit('.', 1)
        if prefix in norms:
            gradients[name] = gradient / counts['main']
            gradients[f'{prefix}.aux_bn.0.{leaf}'] = gradients_of(aux)[name] / counts['aux']
        else:
            gradients[name] = (gradient + gradients_of(aux)[name]) / counts['shared']
    return gradients, main, aux


@pytest.mark.parametrize('name', ['test_resnet_ap', 'test_efficientnet_ap'])
@pytest.mark.parametrize('size, ratio, num_adv, weight', [(10, 4, 2, 0.5), (13, 4, 2, 0.5), (9, 2, 3, 0.2)])
def test_a_step_equals_three_plain_passes_divided_by_group(name, size, ratio, num_adv, weight):
    torch.manual_seed(0)
    model, (images, target) = split_model(name).train(), make_batch(size)
    expected, main, aux = _step_by_hand(model, images, target, num_adv, weight, F.cross_entropy)
    result = _task(model, ratio=ratio, weight=weight)(images, target)
    result['loss'].backward()
    assert_all_close(gradients_of(model), expected, rtol=1e-7, atol=1e-10)
    # both passes of the attacked images update the auxiliary statistics, that of the clean ones the main statistics
    assert_all_close(plain_twin(model, 0).state_dict(), main.state_dict(), rtol=1e-9, atol=1e-12)
    assert_all_close(plain_twin(model, 1).state_dict(), aux.state_dict(), rtol=1e-9, atol=1e-12)
    assert result['output'].shape == (size - num_adv, CLASSES)


def test_the_loss_is_the_weighted_mean_of_the_three_losses():
    model, (images, target) = split_model().train(), make_batch(10)
    result = _task(model, LabelSmoothingCrossEntropy(0.1), weight=0.5)(images, target)
    assert set(result) == {
        'loss', 'output', 'clean_loss', 'attack_loss', 'adv_loss', 'clean_top1', 'adv_top1'}
    expected = (8 * result['clean_loss'] + 0.5 * 2 * (result['attack_loss'] + result['adv_loss'])) / 10
    torch.testing.assert_close(result['loss'].detach(), expected)
    assert not any(result[name].requires_grad for name in ('clean_loss', 'attack_loss', 'adv_loss'))


def test_scales_of_groups_by_hand():
    # One weight, a norm that passes its input on, one bias in each norm: all gradients of a constant loss slope are 1
    # for each image, so that counts can be read off.
    class Slope(nn.Module):
        def forward(self, output, target):
            return output.sum() / len(output)

    model = convert_split_norm(nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))).train()
    task = _task(model, Slope(), mean=(0.,), std=(1.,), eps_px=0, weight=0.25)
    with torch.no_grad():
        model[1].weight.fill_(1.)
    task(torch.randn(20, 1), torch.zeros(20, dtype=torch.long))['loss'].backward()
    # 16 clean images, 4 attacked ones that count a quarter each in two passes
    assert model[1].bias.grad.item() == pytest.approx((16 + 0.25 * 4 * 2) / (16 + 0.25 * 4 * 2))
    assert model[0].bias.grad.item() == pytest.approx(16 / 16)
    assert model[0].aux_bn[0].bias.grad.item() == pytest.approx(0.25 * 4 * 2 / (0.25 * 4 * 2))
    model.zero_grad()
    result = task(torch.randn(20, 1), torch.zeros(20, dtype=torch.long))
    (result['loss'] * 3).backward()  # a loss scaler, or a part of an accumulated step
    assert model[0].bias.grad.item() == pytest.approx(3) and model[1].bias.grad.item() == pytest.approx(3)
    assert model[0].aux_bn[0].bias.grad.item() == pytest.approx(3)


def test_a_loss_without_a_backward_pass_leaves_no_trace_on_the_next_gradients():
    images, target = make_batch(10)
    model = split_model().train()
    expected = copy.deepcopy(model)
    _task(expected)(images, target)['loss'].backward()
    task = _task(model)
    for _ in range(2):
        for _ in range(2):
            task(images, target)
        task(images, target)['loss'].backward()
        assert not any(parameter._backward_hooks for parameter in model.parameters())
        assert_all_close(gradients_of(model), gradients_of(expected), rtol=1e-9, atol=1e-12)
        model.zero_grad()


def test_a_second_backward_pass_finds_the_same_gradients():
    model, (images, target) = split_model().train(), make_batch(10)
    loss = _task(model)(images, target)['loss']
    loss.backward(retain_graph=True)
    once = gradients_of(model)
    model.zero_grad()
    loss.backward()
    assert_all_close(gradients_of(model), once, rtol=0, atol=0)


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_backward_passes_may_follow_several_forward_passes(order):
    batches = [make_batch(size, seed=size) for size in (10, 15)]  # whose factors differ
    expected = {}
    for batch in batches:
        model = split_model().train()
        _task(model, weight=0.3)(*batch)['loss'].backward()
        for name, gradient in gradients_of(model).items():
            expected[name] = expected.get(name, 0) + gradient
    model = split_model().train()
    task = _task(model, weight=0.3)
    losses = [task(*batch)['loss'] for batch in batches]
    for i in order:
        losses[i].backward()
    assert_all_close(gradients_of(model), expected, rtol=1e-7, atol=1e-10)


def test_a_users_own_term_of_a_norms_parameter_is_not_rescaled():
    gradients = []
    for decay in (0., 0.1):
        model, (images, target) = split_model().train(), make_batch(10)
        loss = _task(model)(images, target)['loss']
        (loss + decay * sum(parameter.square().sum() for parameter in model.parameters())).backward()
        gradients.append(gradients_of(model))
    plain, with_decay = gradients
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(with_decay[name], plain[name] + 2 * decay * parameter.detach(), msg=name)


@pytest.mark.parametrize('norm', ['linf', 'l2'])  # the sign of NaN is 0, its direction is NaN
@pytest.mark.parametrize('nan', [False, True], ids=['infinite', 'nan'])
def test_an_overflow_of_the_attacks_pass_reaches_neither_images_nor_weights(nan, norm):
    # the attack's pass is scaled by the constant LOSS_SCALE, so what overflows in it would overflow in every step
    model, (images, target) = tiny_model().train(), make_batch(20, torch.float32)
    overflows = []

    def overflow(gradient):
        overflows.append(not gradient.isfinite().all())
        return torch.full_like(gradient, float('nan')) if nan else gradient

    def criterion(output, target):
        if len(output) == 4 and model[1].route == 1:
            output.register_hook(overflow)
        return 500 * F.cross_entropy(output.float(), target)

    with recorded_batches(model) as seen, torch.autocast('cpu', dtype=torch.float16):
        loss = _task(model, criterion, norm=norm)(images, target)['loss']
    loss.backward()
    assert overflows == [True]  # or this test could not fail
    assert len(seen) == 2 and all(batch.isfinite().all() for batch in seen)
    assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())


def test_gradients_accumulate():
    batches = [make_batch(10, seed=seed) for seed in (1, 2)]
    single, total = split_model().train(), {}
    accumulated = copy.deepcopy(single)
    for batch in batches:
        single.zero_grad()
        _task(single)(*batch)['loss'].backward()
        for name, gradient in gradients_of(single).items():
            total[name] = total.get(name, 0) + gradient / 2
    task = _task(accumulated)
    for batch in batches:
        result = task(*batch)
        result['loss'] /= 2  # in place, as timm's script does
        result['loss'].backward()
    assert_all_close(gradients_of(accumulated), total, rtol=1e-9, atol=1e-12)


def test_a_random_target_attacks_a_wrong_label_and_reuses_the_true_ones_gradients():
    images, target = make_batch(10)
    models = [split_model().train() for _ in range(2)]
    # eps 0: both attacks leave the images alone, so what the passes teach must agree
    for model, mode in zip(models, ('none', 'random')):
        torch.manual_seed(3)
        _task(model, eps_px=0, target=mode)(images, target)['loss'].backward()
    assert_all_close(gradients_of(models[1]), gradients_of(models[0]), rtol=1e-7, atol=1e-10)
    model = split_model().train()
    with recorded_batches(model) as seen:
        _task(model, target='random')(images, target)
    start, adversarial = seen[0], seen[1][-2:]
    if (adversarial - start).abs().amax() > 2 * EPS / 255 + 1e-9:
        adversarial = adversarial.flip(0)
    aux, found = plain_twin(split_model(), 1).train(), []
    for labels in product(range(CLASSES), repeat=2):
        point = start.clone().requires_grad_()
        F.cross_entropy(aux(point), torch.tensor(labels)).backward()
        if torch.allclose((start - EPS / 255 / 0.5 * point.grad.sign()).clamp(-1, 1), adversarial):
            found.append(labels)
    assert len(found) == 1 and all(label != true for label, true in zip(found[0], target[8:].tolist()))


def test_each_image_starts_at_a_random_point_or_not():
    # one random variate a sample: with probability 0.5 some of 400 images start from noise and some do not
    torch.manual_seed(0)
    model = tiny_model().train()
    images = torch.zeros(2000, 3, 8, 8)
    with recorded_batches(model) as seen:
        _task(model, eps_px=8, random_start=0.5)(images, torch.zeros(2000, dtype=torch.long))
    start = seen[0]
    assert start.shape[0] == 400 and start.abs().amax() <= 8 / 255 / 0.5 * 1.0001
    moved = (start != 0).flatten(1).any(dim=1).float().mean().item()
    assert 0.4 < moved < 0.6  # 4 standard deviations are 0.1
    noise = start[(start != 0).flatten(1).any(dim=1)] / (8 / 255 / 0.5)
    assert abs(noise.mean()) < 0.02 and noise.var() == pytest.approx(1 / 3, abs=0.01)  # uniform


def test_adversarial_images_are_shuffled_with_their_labels():
    torch.manual_seed(0)
    model = tiny_model().train()
    images = torch.arange(50.).view(50, 1, 1, 1).expand(50, 3, 8, 8) / 1000
    target = torch.arange(50) % CLASSES
    labels = []

    def criterion(output, target):
        labels.append(target)
        return F.cross_entropy(output, target)

    with recorded_batches(model) as seen:
        _task(model, criterion, eps_px=0)(images, target)
    seen = [batch[:, 0, 0, 0] * 1000 for batch in seen]
    torch.testing.assert_close(seen[0], torch.arange(40., 50.))
    order = seen[1][40:].round().long()
    assert sorted(order.tolist()) == list(range(40, 50)) and order.tolist() != list(range(40, 50))
    assert torch.equal(labels[-1], order % CLASSES)


def test_passes_and_arithmetic_of_a_step():
    model, (images, target) = tiny_model().train(), make_batch(20, torch.float32)
    task = _task(model)
    forwards, backwards = [], []

    def count(module, args, output):
        forwards.append((module.training, module[1].route, len(args[0])))
        output.register_hook(lambda gradient: backwards.append(len(gradient)))

    model.register_forward_hook(count)
    task(images, target)['loss'].backward()
    assert forwards == [(True, 1, 4), (True, -1, 20)] and backwards == [4, 20]
    assert task.relative_cost() == pytest.approx(24 / 20)


@pytest.mark.parametrize('amp', [torch.bfloat16, torch.float16])
def test_autocast_finds_about_the_same_gradients(amp):
    model, (images, target) = tiny_model().train(), make_batch(40, torch.float32)
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    _task(twin)(images, target)['loss'].backward()
    torch.manual_seed(0)
    with torch.autocast('cpu', dtype=amp):
        loss = _task(model)(images, target)['loss']
    loss.backward()
    reference, reduced = gradients_of(twin), gradients_of(model)
    assert reduced.keys() == reference.keys()
    reduced, reference = (torch.cat([values[name].flatten() for name in reference]) for values in (reduced, reference))
    assert F.cosine_similarity(reduced, reference, dim=0) > 0.95


def test_gradient_checkpointing_changes_no_gradient():
    images, target = make_batch(10)
    models = [split_model().train() for _ in range(2)]
    models[1].set_grad_checkpointing()
    for model in models:
        torch.manual_seed(0)
        _task(model)(images, target)['loss'].backward()
    assert_all_close(gradients_of(models[1]), gradients_of(models[0]), rtol=1e-9, atol=1e-12)


def test_norms_that_see_tokens_as_rows_are_split_too():
    torch.manual_seed(0)
    model = timm.create_model('levit_128s_ap', num_classes=CLASSES, img_size=64).train()
    task = FastAdvPropTask(model, verbose=False, **HALF)
    result = task(torch.randn(10, 3, 64, 64), torch.arange(10) % CLASSES)
    result['loss'].backward()
    assert torch.isfinite(result['loss'])


def test_it_trains_auxiliary_norms_that_were_left_out_of_training():
    model, (images, target) = split_model().train(), make_batch(10)
    VanillaTask(model, verbose=False)
    _task(model)(images, target)['loss'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_its_own_attack_is_that_of_the_paper():
    task = FastAdvPropTask(tiny_model(), verbose=False, **HALF)
    assert task.attack == Attack(eps_px=1, alpha_px=1, steps=1, target='none', random_start=0.8, **HALF)
    assert (task.weight, task.ratio) == (0.5, 4)
    # a strength that would take more steps elsewhere
    assert FastAdvPropTask(tiny_model(), attack=Attack(eps_px=4), verbose=False, **HALF).attack.num_steps == 1


@pytest.mark.parametrize('target_mode, cost', [('none', 6 / 5), ('random', 6 / 5 + 1 / 15)])
def test_a_random_target_costs_a_second_backward_pass(target_mode, cost):
    assert _task(tiny_model(), target=target_mode).relative_cost() == pytest.approx(cost)


@pytest.mark.parametrize('wrong, message', [
    (dict(attack=Attack(steps=2)), 'single step'),
    (dict(attack=Attack(steps=1, amp_dtype='bfloat16')), 'amp_dtype'),
    (dict(weight=0), 'weight must be above 0'),
    (dict(weight=-1), 'weight'),
    (dict(ratio=0), 'ratio'),
    (dict(mean=None), 'mean and std'),
])
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FastAdvPropTask(tiny_model(), verbose=False, **{**HALF, **wrong})


@pytest.mark.parametrize('flags, message', [
    (dict(adv_steps=1), 'fast-advprop has no use for --adv-steps .its attack is a single step.: leave it out'),
    (dict(adv_norm_stats='eval'), '--adv-norm-stats'),
    (dict(adv_amp_dtype='bfloat16'), '--adv-amp-dtype'),
    (dict(adv_source='gaussian-noise'), '--adv-source'),
    (dict(aug_splits=2), '--aug-splits'),
    (dict(adv_eps=[1., 2.]), 'one attack strength'),
    (dict(adv_eps=-1.), 'eps'),
    (dict(adv_weight=0.), 'weight'),
])
def test_flags_that_it_has_no_use_for_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        task_of('fast-advprop', timm.create_model('test_resnet'), **flags)


@pytest.mark.parametrize('failing_pass', [1, 2])
def test_a_failing_pass_leaves_its_route_and_no_hooks(failing_pass):
    model, (images, target) = split_model().train(), make_batch(10)
    task = _task(model)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before, passes = snapshot(model), []

    def fail(module, args):
        passes.append(module)
        if len(passes) == failing_pass:
            raise RuntimeError('out of memory')

    handle = model.layer1.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        task(images, target)
    handle.remove()
    after = snapshot(model)
    for part in ('training', 'track', 'requires_grad'):
        assert after[part] == before[part]
    assert {norm.route for norm in split_norms(model)} == {0}
    assert gradients_of(model).keys() == {'fc.weight'} and (model.fc.weight.grad == 1).all()
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    if failing_pass == 1:  # nothing but the first norms has seen a batch
        model.load_state_dict(before['state'])
        assert_unchanged(model, before)


def test_models_and_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='one auxiliary norm'):
        FastAdvPropTask(timm.create_model('test_resnet_ap', num_aux=2), verbose=False)
    with pytest.raises(ValueError, match='convert_split_norm'):
        FastAdvPropTask(timm.create_model('test_resnet'), verbose=False)
    with pytest.raises(ValueError, match='at least 5 images, got 4'):
        _task(tiny_model())(*make_batch(4, torch.float32))


@pytest.mark.parametrize('compiled', [False, True])
def test_a_batch_too_small_for_the_statistics_of_a_norm_says_what_to_do(compiled):
    model = convert_split_norm(nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, CLASSES))).train()
    task = _task(model)
    if compiled:
        torch._dynamo.reset()
        task.compile(backend='eager')
    with pytest.raises(ValueError, match='attacks 1 image of a batch of 8.*at least 10 images') as error:
        task(*make_batch(8, torch.float32))
    assert '\n' not in str(error.value)
    task(*make_batch(10, torch.float32))['loss'].backward()
    _task(tiny_model().train())(*make_batch(8, torch.float32))['loss'].backward()  # of values enough in an image


@pytest.mark.parametrize('kind', [RuntimeError, ValueError])
def test_other_errors_of_a_batch_with_one_adversarial_image_stay_what_they_are(kind):
    def criterion(output, target):
        raise kind('mine')

    with pytest.raises(kind, match='^mine$'):
        _task(tiny_model().train(), criterion)(*make_batch(8, torch.float32))


def test_a_sharded_model_is_refused_in_one_line(one_process):
    task = _task(tiny_model().train())
    fully_shard(task.get_trainable_module(), mesh=init_device_mesh('cpu', (1,)))
    with pytest.raises(ValueError, match=r'sharded \(FSDP\): use DistributedDataParallel, or regime advprop') as error:
        task(*make_batch(10, torch.float32))
    assert '\n' not in str(error.value)


class _Aliased(nn.Module):
    # Two parameters that autograd gives the same gradient, and one whose gradient is expanded.
    def __init__(self, plain):
        super().__init__()
        torch.manual_seed(0)
        self.norm = convert_split_norm(nn.BatchNorm1d(12))
        self.a, self.b = nn.Parameter(torch.randn(12)), nn.Parameter(torch.zeros(12))
        self.c = nn.Parameter(torch.ones(3))
        self.head, self.plain = nn.Linear(12, CLASSES), plain

    def forward(self, x):
        offset = self.a.clone() if self.plain else self.a + self.b
        return self.head(self.norm(x.flatten(1)) + offset) * (self.c.sum() / 3)


def test_gradients_that_share_memory_are_scaled_once():
    images, target = torch.randn(10, 3, 2, 2), torch.arange(10) % CLASSES
    models = [_Aliased(plain).train() for plain in (True, False)]
    for model in models:
        torch.manual_seed(0)
        _task(model)(images, target)['loss'].backward()
    for name in ('a', 'c'):
        torch.testing.assert_close(getattr(models[1], name).grad, getattr(models[0], name).grad)
    torch.testing.assert_close(models[1].b.grad, models[1].a.grad)


def test_settings_that_its_attack_cannot_have_are_refused():
    for setting in (dict(steps=2), dict(norm_stats='train'), dict(amp_dtype='bfloat16')):
        with pytest.raises(ValueError, match='single step that trains'):
            FastAdvPropTask(split_model(), attack=Attack(eps_px=1, **setting), **HALF)
