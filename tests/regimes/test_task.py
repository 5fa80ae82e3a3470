"""What all tasks are to timm's training script and to torch: results, averages, precision, compilation; and metrics."""
import inspect
from contextlib import nullcontext
from copy import deepcopy

import pytest
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.task import ClassificationTask
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel

from tests.regimes.regime_models import (
    CLASSES,
    DETERMINISTIC,
    HALF,
    NAMES,
    assert_all_close,
    gradients_of,
    make_batch,
    percent_right,
    plain_twin,
    split_model,
    task_of,
    tiny_model,
)
from timm_advprop import AdvPropTask, norm_route
from timm_advprop.norms import split_norms, split_state_dict
from timm_advprop.regimes import REGIMES, Attack, VanillaTask
from timm_advprop.regimes.task import check_weight, part_metrics, top1

pytestmark = pytest.mark.usefixtures('one_thread')
TWO_STEPS = Attack(steps=2, **DETERMINISTIC)


def advprop(model, sources=TWO_STEPS, **kwargs):
    return AdvPropTask(model, sources=sources, verbose=False, **{**HALF, **kwargs})


# As timm's training script uses a task


def test_the_result_is_what_timms_training_script_reads():
    model, (images, target) = split_model().train(), make_batch()
    twin = plain_twin(model, 0).train()
    task = AdvPropTask(model, weight=0.5, verbose=False, **HALF)
    assert isinstance(task, ClassificationTask)
    assert task.get_trainable_module() is model and task.get_eval_model() is model
    result = task(images, target)
    assert set(result) == {'loss', 'output', 'clean_loss', 'adv_loss', 'clean_top1', 'adv_top1'}
    torch.testing.assert_close(result['output'], twin(images))
    assert result['loss'].requires_grad
    assert not result['clean_loss'].requires_grad and not result['adv_loss'].requires_grad
    clean_loss, adv_loss = result['clean_loss'].item(), result['adv_loss'].item()
    result['loss'] /= 4
    assert result['loss'].item() == pytest.approx((clean_loss + 0.5 * adv_loss) / 4)
    assert (result['clean_loss'].item(), result['adv_loss'].item()) == (clean_loss, adv_loss)
    result['loss'].backward()


def test_the_resting_route_is_main():
    model, (images, target) = split_model().train(), make_batch()
    task = AdvPropTask(model, verbose=False, **HALF)
    for _ in range(2):
        task(images, target)['loss'].backward()
        assert {norm.route for norm in split_norms(model)} == {0}
        task.get_eval_model().eval()
        with torch.no_grad():
            validated = model(images)
            torch.testing.assert_close(validated, plain_twin(model, 0).eval()(images))
            assert not torch.allclose(validated, plain_twin(model, 1).eval()(images))
            with norm_route(model, 'main'):
                assert torch.equal(model(images), validated)
        task.get_trainable_module().train()


def test_training_may_follow_an_attack_in_inference_mode():
    (images, target), results = make_batch(dtype=torch.float32), []
    for validate_first in (False, True):
        task = AdvPropTask(tiny_model(), verbose=False, **HALF)
        if validate_first:
            with torch.inference_mode(), norm_route(task.get_eval_model(), 'aux'):
                task.sources[0](task.get_eval_model(), images, target)
        torch.manual_seed(3)
        result = deepcopy(task)(images, target)
        result['loss'].backward()
        results.append(result['loss'].detach())
    assert torch.equal(*results)


@pytest.mark.skipif(
    'criterion_kwargs' not in inspect.signature(ClassificationTask).parameters, reason='timm makes no losses')
def test_criterion_kwargs_choose_the_loss():
    images, target = make_batch()
    losses = [
        advprop(split_model().train(), **kwargs)(images, target)['loss']
        for kwargs in (
            dict(criterion=LabelSmoothingCrossEntropy(0.2)), dict(criterion_kwargs=dict(smoothing=0.2)),
            dict(criterion_kwargs={}), {})
    ]
    assert losses[0] == losses[1] != losses[2]
    torch.testing.assert_close(losses[2], losses[3])


def test_the_moving_average_follows_every_norm_and_evaluates_the_main_ones():
    model, (images, target) = split_model().train(), make_batch()
    task = AdvPropTask(model, verbose=False, **HALF)
    ema = task.setup_ema(decay=0.75)
    before = deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    task(images, target)['loss'].backward()
    optimizer.step()
    task.update_ema()
    after = model.state_dict()
    floating = [key for key, value in before.items() if value.is_floating_point()]
    expected = {key: 0.75 * before[key] + 0.25 * after[key] for key in floating}
    assert_all_close({key: ema.module.state_dict()[key] for key in floating}, expected)
    assert all(not torch.equal(before[key], after[key]) for key in floating if 'aux_bn' in key)
    with torch.no_grad():
        output = task.get_eval_model(ema=True)(images)
        torch.testing.assert_close(output, plain_twin(ema.module, 0).eval()(images))
    task(images, target)['loss'].backward()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('random', [False, True])
def test_gradient_checkpointing_changes_no_gradient(name, random):
    images, target = make_batch()
    gradients, losses = [], []
    for checkpointing in (False, True):
        model = split_model(name).train()
        model.set_grad_checkpointing(checkpointing)
        task = advprop(model, Attack(steps=2) if random else TWO_STEPS)
        torch.manual_seed(5)
        result = task(images, target)
        result['loss'].backward()
        losses.append(result['loss'].detach())
        gradients.append(gradients_of(model))
    torch.testing.assert_close(*losses)
    assert_all_close(*gradients, rtol=1e-9, atol=1e-12)
    assert any('aux_bn' in name for name in gradients[0])


def test_gradients_accumulate_over_steps():
    batches = [make_batch(seed=seed) for seed in (1, 2)]
    single, accumulated = (advprop(split_model().train()) for _ in range(2))
    total = {}
    for images, target in batches:
        single.zero_grad()
        single(images, target)['loss'].backward()
        for name, gradient in gradients_of(single).items():
            total[name] = total.get(name, 0) + gradient / 2
    for step, (images, target) in enumerate(batches):
        with accumulated.no_sync() if step == 0 else nullcontext():
            result = accumulated(images, target)
            result['loss'] /= 2
            result['loss'].backward()
    assert_all_close(gradients_of(accumulated), total, rtol=1e-9, atol=1e-12)


# Precision, memory format, compilation


def test_autocast_trains_in_reduced_precision():
    images, target = make_batch(dtype=torch.float32)
    losses = {}
    for enabled in (False, True):
        model = split_model(dtype=torch.float32).train()
        task = advprop(model, Attack(**DETERMINISTIC))
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            result = task(images, target)
        result['loss'].backward()
        losses[enabled] = result['loss'].item()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)


def test_channels_last_is_kept_and_changes_no_loss():
    images, target = make_batch()
    losses = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = split_model().train().to(memory_format=memory_format)
        task = advprop(model)
        seen = []
        model.register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0]))
        losses.append(task(images.contiguous(memory_format=memory_format), target)['loss'])
        assert len(seen) == 3 and all(batch.is_contiguous(memory_format=memory_format) for batch in seen)
    torch.testing.assert_close(*losses)


def _assert_compiles_to_few_graphs(regime, create_model, images, target, **flags):
    torch._dynamo.reset()
    eager, compiled = (
        task_of(regime, create_model().train(), adv_target='none', adv_random_start=0., **flags) for _ in range(2))
    counter = CompileCounterWithBackend('aot_eager')
    compiled.compile(backend=counter)
    graphs = []
    for _ in range(3):
        outputs = []
        for task in (eager, compiled):
            torch.manual_seed(0)
            result = task(images, target)
            result['loss'].backward()
            task.get_eval_model().eval()
            with torch.no_grad():
                outputs.append(task.get_eval_model()(images))
            task.get_trainable_module().train()
            outputs.append(result['loss'].detach())
        graphs.append(counter.frame_count)
        torch.testing.assert_close(outputs[:2], outputs[2:])
    assert graphs == [3, 3, 3]  # the attack, the training step, validation
    gradients = {name.replace('_orig_mod.', ''): value for name, value in gradients_of(compiled).items()}
    assert_all_close(gradients, gradients_of(eager))
    torch._dynamo.reset()


def test_a_compiled_task_runs_few_graphs_and_finds_the_same_numbers():
    model = tiny_model(dtype=torch.float64)
    model.num_classes = CLASSES
    _assert_compiles_to_few_graphs('advprop', lambda: deepcopy(model), *make_batch(), adv_steps=2)
    _assert_compiles_to_few_graphs('fast-advprop', lambda: deepcopy(model), *make_batch(10))


def test_a_compiled_task_takes_batches_of_any_size_in_one_graph_more():
    torch._dynamo.reset()
    task = task_of('fast-advprop', tiny_model(dtype=torch.float64).train(), adv_random_start=0.)
    counter = CompileCounterWithBackend('eager')
    task.compile(backend=counter)
    graphs = []
    for size in (10, 20, 10, 25):
        task(*make_batch(size))['loss'].backward()
        graphs.append(counter.frame_count)
    assert graphs == [2, 3, 3, 3]  # the attack; the step, which is for any size as it sees another one
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_compiled_timm_model_runs_few_graphs_and_finds_the_same_numbers(name):
    _assert_compiles_to_few_graphs('advprop', lambda: split_model(name), *make_batch(), adv_steps=2)
    _assert_compiles_to_few_graphs('fast-advprop', lambda: split_model(name), *make_batch(10))


# DDP


@pytest.mark.parametrize('checkpointing', [False, True])
def test_a_task_that_knows_nothing_of_routes_trains_a_split_model_as_the_plain_one(checkpointing, one_process):
    model, (images, target) = split_model(num_aux=2).train(), make_batch()
    twin, aux = plain_twin(model, 0).train(), split_state_dict(deepcopy(model.state_dict()))[1]
    for each in (model, twin):
        each.set_grad_checkpointing(checkpointing)
        task = ClassificationTask(each, torch.nn.CrossEntropyLoss(), verbose=False).prepare_distributed()
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            task(images, target)['loss'].backward()
            optimizer.step()
    main, aux_after = split_state_dict(model.state_dict())
    assert all(torch.equal(value, main[name]) for name, value in twin.state_dict().items())
    assert all(torch.equal(value, aux_after[name]) for name, value in aux.items())


@pytest.mark.parametrize('regime', ['madry', 'joint', 'advprop', 'fast-advprop'])
def test_the_attack_passes_the_model_and_training_its_wrapper(regime, one_process):
    model, (images, target) = split_model().train(), make_batch(10)
    alone, task = task_of(regime, deepcopy(model)), task_of(regime, model)
    task.prepare_distributed()
    wrapper = task.get_trainable_module()
    assert isinstance(wrapper, DistributedDataParallel) and task.unwrapped_module is model
    passes = []
    wrapper.register_forward_hook(lambda module, args, output: passes.append('wrapper'))
    model.register_forward_hook(lambda module, args, output: passes.append('model'))
    results = []
    for each in (alone, task):
        torch.manual_seed(1)
        results.append(each(images, target)['loss'])
        results[-1].backward()
    steps = 1 if regime == 'fast-advprop' else 5
    assert passes == ['model'] * (steps + 1) + ['wrapper']
    torch.testing.assert_close(*results)
    assert_all_close(gradients_of(model), gradients_of(alone.get_trainable_module()))


# What a task says


@pytest.mark.parametrize('regime, words', [
    ('vanilla', 'vanilla: 1.0 ×'),
    ('madry', 'madry, PGD-5, eps 4/255, alpha 1/255, untargeted: 4.3 ×'),
    ('joint', 'joint, PGD-5, eps 4/255, alpha 1/255, random target, adversarial loss × 1: 5.3 ×'),
    ('advprop', 'advprop, PGD-5, eps 4/255, alpha 1/255, random target, adversarial loss × 1: 5.3 ×'),
    ('fast-advprop', 'fast-advprop 4:1, PGD-1, eps 1/255, alpha 1/255, untargeted, adversarial losses × 0.5: 1.2 ×'),
])
def test_each_regime_tells_its_attack_and_its_cost(regime, words, caplog):
    for verbose in (True, False):
        model = timm.create_model('test_resnet_ap' if 'advprop' in regime else 'test_resnet')
        caplog.clear()
        with caplog.at_level('INFO', 'timm_advprop'):
            REGIMES[regime](model, verbose=verbose)
        assert (f'{words} the arithmetic of vanilla' in caplog.text) == verbose
    assert not caplog.text


def test_accuracy_of_soft_targets_counts_the_largest_weight():
    model, (images, target) = split_model().train(), make_batch()
    soft = torch.full((6, CLASSES), 0.1).double().scatter_(1, target[:, None], 0.6)
    hard, mixed = (VanillaTask(plain_twin(model, 0).train(), verbose=False)(images, labels)['clean_top1']
                   for labels in (target, soft))
    assert hard == mixed


def test_top1_is_in_percent():
    output = torch.eye(4)
    assert top1(output, torch.arange(4)) == 100
    assert top1(output, torch.tensor([0, 1, 0, 0])) == percent_right(output, torch.tensor([0, 1, 0, 0])) == 50


def test_accuracy_of_a_single_logit_is_that_of_its_sign():
    output, target = torch.tensor([[2.], [-1.], [0.5], [-3.]]), torch.tensor([1, 0, 0, 0])
    for labels in (target, target.unsqueeze(1), target.float().unsqueeze(1)):
        assert top1(output, labels) == 75


def test_losses_of_a_name_are_added_and_accuracies_averaged():
    losses = [torch.tensor(value, requires_grad=True) for value in (1., 2., 4.)]
    outputs = [torch.eye(2)] * 3
    targets = [torch.tensor(labels) for labels in ([0, 1], [0, 0], [1, 0])]
    metrics = part_metrics(('clean', 'adv', 'adv'), losses, outputs, targets)
    assert {name: value.item() for name, value in metrics.items()} == dict(
        clean_loss=1, adv_loss=6, clean_top1=100, adv_top1=25)
    assert not any(value.requires_grad for value in metrics.values())


def test_a_weight_is_a_number_of_at_least_0():
    assert check_weight(None, 0.5) == 0.5 and check_weight(0, 0.5) == 0 and check_weight(2, 0.5) == 2
    for wrong in (-0.1, float('nan')):
        with pytest.raises(ValueError, match=f'weight of the adversarial loss must be at least 0, got {wrong}'):
            check_weight(wrong, 0.5)
