"""The training loop: updates, accumulation, clipping, averages, what is logged."""
import math
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.task import ClassificationTask
from timm.utils import ModelEmaV3, NativeScaler

from tests.engine.runs import CPU, equal_states
from timm_advprop import Attack, convert_split_norm
from timm_advprop.engine import loop
from timm_advprop.engine.loop import NonFiniteLoss, Trainer
from timm_advprop.engine.pending_values import PendingValues
from timm_advprop.engine.placement import Placement
from timm_advprop.engine.saver import Position
from timm_advprop.regimes import AdvPropTask, FastAdvPropTask

ATTACK = Attack(eps_px=1, steps=1, target='none', random_start=0.)


def batches(count=4, size=3):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 3, 32, 32, generator=generator).double(),
             torch.randint(10, (size,), generator=generator)) for _ in range(count)]


def split_model(name='test_convnext'):
    """In float64; with layer norms an image's gradient is the same in a batch of any size."""
    torch.manual_seed(0)
    return convert_split_norm(timm.create_model(name, num_classes=10)).double()


class PlainTask(ClassificationTask):
    """Records what it is called with."""

    def __init__(self, model, loss_of=None):
        super().__init__(model, nn.CrossEntropyLoss(), verbose=False)
        self.seen, self.loss_of = [], loss_of

    @property
    def model(self):
        return self.get_trainable_module()

    def forward(self, input, target):
        result = super().forward(input, target)
        self.seen.append(dict(
            input=input, target=target, autocast=torch.is_autocast_enabled('cpu'), output=result['output'],
            state={name: value.clone() for name, value in self.model.state_dict().items()}))
        if self.loss_of is not None:
            result['loss'] = result['loss'] * self.loss_of(len(self.seen) - 1)
        return result


def linear_task(**kwargs):
    torch.manual_seed(0)
    return PlainTask(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).double(), **kwargs)


def trainer_of(task, loader, lr=0.1, placement=CPU, **kwargs):
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=lr)
    return Trainer(task=task, loader=loader, optimizer=optimizer, placement=placement, **kwargs)


def parameters_of(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_an_epoch_is_plain_sgd_on_its_batches():
    task = linear_task()
    reference = deepcopy(task.model)
    losses = []
    for images, target in batches():
        loss = F.cross_entropy(reference(images), target)
        losses.append(loss.item())
        reference.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= 0.1 * parameter.grad
    metrics = trainer_of(task, batches()).train_epoch(0)
    for name, value in reference.named_parameters():
        torch.testing.assert_close(dict(task.model.named_parameters())[name], value)
    assert metrics == {'loss': pytest.approx(sum(losses) / 4)}


def test_batches_weigh_by_their_images_in_the_mean_loss():
    loader = batches(1, size=6) + batches(1, size=2)
    task = linear_task()
    metrics = trainer_of(task, loader, lr=0.).train_epoch(0)
    losses = [F.cross_entropy(task.model(images), target).item() for images, target in loader]
    assert metrics['loss'] == pytest.approx((6 * losses[0] + 2 * losses[1]) / 8)


def test_the_model_is_put_into_train_mode():
    task = linear_task()
    task.model.eval()
    trainer_of(task, batches(1)).train_epoch(0)
    assert task.model.training


# accumulation

@pytest.mark.parametrize('num_batches, steps, updates', [(4, 1, 4), (4, 2, 2), (4, 3, 2), (4, 9, 1), (5, 2, 3)])
def test_number_of_updates(num_batches, steps, updates):
    trainer = trainer_of(linear_task(), batches(num_batches), grad_accum_steps=steps)
    made = []
    trainer.optimizer.register_step_post_hook(lambda *args: made.append(1))
    trainer.train_epoch(0)
    assert len(made) == trainer.updates_per_epoch == updates


def test_parameters_stay_within_an_update():
    task = linear_task()
    trainer_of(task, batches(4), grad_accum_steps=3).train_epoch(0)
    states = [entry['state'] for entry in task.seen]
    assert equal_states(states[0], states[1]) and equal_states(states[1], states[2])
    assert not equal_states(states[2], states[3])


@pytest.mark.parametrize('parts', [(3, 3), (2, 2, 2)])
def test_accumulated_gradients_equal_one_large_batch(parts):
    (images, target), = batches(1, size=6)

    def update(loader):
        model = split_model()
        before = parameters_of(model)
        task = AdvPropTask(model, sources=ATTACK, verbose=False)
        trainer_of(task, loader, lr=1., grad_accum_steps=len(loader)).train_epoch(0)
        return {name: before[name] - value for name, value in parameters_of(model).items()}

    whole = update([(images, target)])
    accumulated = update(list(zip(images.split(parts), target.split(parts))))
    assert any(value.any() for name, value in whole.items() if 'aux_bn' in name)
    for name in whole:
        torch.testing.assert_close(accumulated[name], whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('make', [
    lambda model: ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False),
    lambda model: AdvPropTask(model, sources=ATTACK, verbose=False),
    lambda model: FastAdvPropTask(model, attack=ATTACK, verbose=False),
], ids=['vanilla', 'advprop', 'fast-advprop'])
def test_an_update_of_batch_norms_is_that_of_the_mean_loss(make):
    # each batch with its own statistics, and an attack that sees the running ones as earlier batches left them
    loader = batches(3, size=10)
    models = [split_model('test_resnet') for _ in range(2)]
    before = parameters_of(models[0])
    task = make(models[0].train())
    for images, target in loader:
        (task(images, target)['loss'] / 3).backward()
    trainer_of(make(models[1]), loader, lr=1., grad_accum_steps=3).train_epoch(0)
    for name, value in models[0].named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(before[name] - parameters_of(models[1])[name], value.grad, rtol=1e-9, atol=1e-12)
    for name, value in models[0].named_buffers():
        torch.testing.assert_close(dict(models[1].named_buffers())[name], value)


def test_accumulated_fast_advprop_equals_one_large_batch():
    (images, target), = batches(1, size=10)
    order = [0, 1, 2, 3, 5, 6, 7, 8, 4, 9]  # a fifth of each batch is attacked, its last images

    def update(loader):
        model = split_model()
        before = parameters_of(model)
        trainer_of(FastAdvPropTask(model, attack=ATTACK, verbose=False), loader, lr=1.,
                   grad_accum_steps=len(loader)).train_epoch(0)
        return {name: before[name] - value for name, value in parameters_of(model).items()}
    accumulated, whole = update(list(zip(images.split(5), target.split(5)))), update([(images[order], target[order])])
    for name in whole:
        torch.testing.assert_close(accumulated[name], whole[name], rtol=1e-9, atol=1e-12)


def test_the_last_update_of_an_epoch_is_the_mean_of_the_batches_it_has():
    loader = batches(3)
    task = linear_task()
    before = parameters_of(task.model)
    trainer_of(task, [loader[0]] * 2 + [loader[2]], lr=1., grad_accum_steps=2).train_epoch(0)
    reference = linear_task()
    trainer_of(reference, [loader[0], loader[2]], lr=1.).train_epoch(0)
    for name, value in parameters_of(reference.model).items():
        torch.testing.assert_close(parameters_of(task.model)[name], value)
        assert not torch.equal(before[name], value)


def test_processes_talk_once_an_update():
    task, synchronised = linear_task(), []

    class NoSync:
        def __enter__(self):
            synchronised[-1] = False

        def __exit__(self, *error):
            pass

    task.no_sync = NoSync
    forward = task.forward
    task.forward = lambda *batch: forward(*batch)
    loader = batches(5)

    class Loader(list):
        def __iter__(self):
            for batch in loader:
                synchronised.append(True)
                yield batch

    trainer_of(task, Loader(loader), grad_accum_steps=2).train_epoch(0)
    assert synchronised == [False, True, False, True, True]


# clipping

def change_of(clip, mode, scale=100.):
    task = linear_task(loss_of=lambda index: scale)
    before = parameters_of(task.model)
    trainer_of(task, batches(1), lr=1., clip_grad=clip, clip_mode=mode).train_epoch(0)
    return {name: value - before[name] for name, value in parameters_of(task.model).items()}, before


def norm_of(values):
    return math.sqrt(sum(value.square().sum().item() for value in values))


def test_clipping_by_norm_bounds_the_update_and_keeps_its_direction():
    free, _ = change_of(None, 'norm')
    clipped, _ = change_of(0.5, 'norm')
    assert norm_of(free.values()) > 10
    assert norm_of(clipped.values()) == pytest.approx(0.5, rel=1e-5)
    cosine = sum((free[name] * clipped[name]).sum() for name in free) / norm_of(free.values()) / 0.5
    assert cosine == pytest.approx(1., rel=1e-5)
    small, _ = change_of(1e6, 'norm')
    assert norm_of(small.values()) == pytest.approx(norm_of(free.values()))


def test_clipping_by_value_bounds_every_number():
    free, _ = change_of(None, 'norm')
    clipped, _ = change_of(0.5, 'value')
    for name in free:
        torch.testing.assert_close(clipped[name], free[name].clamp(-0.5, 0.5))


def test_adaptive_clipping_bounds_units_by_their_weights_and_spares_the_head():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.Linear(8, 10)).double()
    task = PlainTask(model, loss_of=lambda index: 1e4)
    before = parameters_of(model)
    trainer_of(task, batches(1), lr=1., clip_grad=0.01, clip_mode='agc').train_epoch(0)
    change = {name: value - before[name] for name, value in parameters_of(model).items()}
    ratio = change['1.weight'].norm(dim=1) / before['1.weight'].norm(dim=1)
    assert (ratio <= 0.01 * (1 + 1e-6)).all() and ratio.max() > 0.0099
    assert change['2.weight'].norm() > before['2.weight'].norm()


# averages, schedules, recovery

@pytest.mark.parametrize('decay', [0.5, 0.9])
def test_the_average_is_that_of_every_update(decay):
    task = linear_task()
    task.setup_ema(decay=decay)
    trainer_of(task, batches(6), grad_accum_steps=2).train_epoch(0)
    expected = task.seen[2]['state']  # the first update is all there is to average
    for state in (task.seen[4]['state'], parameters_of(task.model)):
        expected = {name: decay * value + (1 - decay) * state[name] for name, value in expected.items()}
    average = task.get_trainable_module(ema=True)
    assert isinstance(average, ModelEmaV3)
    for name, value in expected.items():
        torch.testing.assert_close(average.module.state_dict()[name], value)


def test_updates_are_counted_over_epochs():
    steps = dict(ema=[], schedule=[], saved=[])

    class Scheduler:
        def step_update(self, num_updates, metric):
            steps['schedule'].append(num_updates)

    class Saver:
        def save_recovery(self, epoch, update, shares):
            steps['saved'].append((epoch, update))

    task = linear_task()
    task.update_ema = lambda step: steps['ema'].append(step)
    trainer = trainer_of(task, batches(5), grad_accum_steps=2, lr_scheduler=Scheduler(), keeper=Saver(),
                         recovery_interval=2)
    for epoch in range(2):
        trainer.train_epoch(epoch)
    assert steps == dict(ema=[1, 2, 3, 4, 5, 6], schedule=[1, 2, 3, 4, 5, 6], saved=[(0, 2), (1, 2)])


@pytest.mark.parametrize('steps', [1, 2])
def test_an_epoch_that_was_stopped_after_its_last_update_reads_nothing(steps):
    class Loader(list):
        def __iter__(self):
            raise UnboundLocalError('no batch')  # as the prefetcher of timm 1.0.27

    trainer = trainer_of(linear_task(), Loader(batches(5)), grad_accum_steps=steps, totals=dict(loss=(6., 3)))
    assert trainer.train_epoch(2, Position(2, trainer.updates_per_epoch)) == dict(loss=2.)
    assert not trainer.task.seen


def test_lookahead_is_synchronised_after_the_epoch():
    trainer, seen = trainer_of(linear_task(), batches(2)), []
    trainer.optimizer.sync_lookahead = lambda: seen.append(len(trainer.task.seen))
    trainer.train_epoch(0)
    assert seen == [2]


@pytest.mark.parametrize('clip', [dict(), dict(clip_grad=0.1), dict(clip_grad=0.001, clip_mode='value')], ids=str)
def test_a_loss_scaler_changes_no_update(clip):
    updated = []
    for scaler in (None, NativeScaler(device='cpu')):
        task = linear_task()
        trainer_of(task, batches(4), grad_accum_steps=2, loss_scaler=scaler, **clip).train_epoch(0)
        updated.append(parameters_of(task.model))
    assert equal_states(*updated)  # a scale is a power of two
    assert scaler.state_dict()['_growth_tracker'] == 2


def test_an_overflow_of_gradients_is_passed_over_by_the_scaler():
    task, scaler = linear_task(), NativeScaler(device='cpu')
    task.model[1].weight.register_hook(lambda grad: grad * (math.inf if len(task.seen) == 2 else 1.))
    before = scaler.state_dict()['scale']
    trainer_of(task, batches(4), loss_scaler=scaler).train_epoch(0)
    states = [seen['state'] for seen in task.seen]
    assert [equal_states(*pair) for pair in zip(states, states[1:])] == [False, True, False]
    assert scaler.state_dict()['scale'] == before / 2


# where and how

def test_images_take_the_type_the_format_and_the_precision_of_the_placement():
    torch.manual_seed(0)
    task = PlainTask(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 10)))
    placement = Placement(torch.device('cpu'), dtype=torch.float32, amp_dtype=torch.bfloat16, channels_last=True)
    trainer_of(task, batches(1), placement=placement).train_epoch(0)
    seen, = task.seen
    assert seen['input'].dtype == torch.float32
    assert seen['input'].is_contiguous(memory_format=torch.channels_last)
    assert seen['autocast'] and seen['output'].dtype == torch.bfloat16
    task.seen.clear()
    trainer_of(task, batches(1), placement=Placement(torch.device('cpu'), dtype=torch.float32)).train_epoch(0)
    seen, = task.seen
    assert not seen['autocast'] and seen['output'].dtype == torch.float32
    assert not seen['input'].is_contiguous(memory_format=torch.channels_last)


def test_batches_are_mixed_where_the_loader_does_not():
    task = linear_task()
    soft = torch.eye(10).double()[:3]
    trainer_of(task, batches(1), mixup_fn=lambda images, target: (images * 2, soft)).train_epoch(0)
    assert torch.equal(task.seen[0]['input'], batches(1)[0][0] * 2)
    assert torch.equal(task.seen[0]['target'], soft)


@pytest.mark.parametrize('wrong', [math.nan, math.inf])
def test_a_non_finite_loss_stops_before_its_update(wrong):
    task = linear_task(loss_of=lambda index: wrong if index == 2 else 1.)
    trainer = trainer_of(task, batches(4))
    with pytest.raises(NonFiniteLoss, match=f'The loss is {wrong} in epoch 7, batch 2; no update was made'):
        trainer.train_epoch(7)
    assert len(task.seen) == 3
    assert equal_states(task.seen[2]['state'], task.model.state_dict())
    assert not equal_states(task.seen[1]['state'], task.model.state_dict())
    assert all(torch.isfinite(value).all() for value in task.model.state_dict().values())


@pytest.mark.parametrize('scaler', [None, NativeScaler(device='cpu')], ids=['plain', 'scaler'])
def test_an_infinite_loss_of_finite_gradients_makes_no_update(scaler):
    class Task(PlainTask):
        def forward(self, input, target):
            result = super().forward(input, target)
            return dict(result, loss=result['loss'] + (math.inf if len(self.seen) == 2 else 0.))

    task = Task(linear_task().model)
    with pytest.raises(NonFiniteLoss, match='batch 1; no update'):
        trainer_of(task, batches(4), loss_scaler=scaler).train_epoch(0)
    assert equal_states(task.seen[1]['state'], task.model.state_dict())


def test_values_are_read_when_the_backward_pass_was_launched(monkeypatch):
    events = []

    class Values(PendingValues):
        def read(self):
            events.append('read')
            return super().read()

    monkeypatch.setattr(loop, 'PendingValues', Values)
    task = linear_task()
    task.model[1].weight.register_post_accumulate_grad_hook(lambda _: events.append('backward'))
    trainer = trainer_of(task, batches(3), grad_accum_steps=2)
    trainer.optimizer.register_step_pre_hook(lambda *_: events.append('step'))
    trainer.train_epoch(0)
    assert events == ['backward', 'read', 'backward', 'read', 'step', 'backward', 'read', 'step']


# what is told

def test_every_loss_and_accuracy_of_the_task_is_averaged_and_nothing_else():
    class Task(PlainTask):
        def forward(self, input, target):
            index = len(self.seen)
            return dict(super().forward(input, target), adv_loss=torch.tensor(float(index)),
                        adv_top1=torch.tensor(10. * index), other=torch.tensor(1.))

    task = Task(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).double())
    metrics = trainer_of(task, batches(4)).train_epoch(0)
    assert list(metrics) == ['loss', 'adv_loss', 'adv_top1']
    assert (metrics['adv_loss'], metrics['adv_top1']) == (1.5, 15.)


def progress(caplog, **kwargs):
    caplog.clear()
    with caplog.at_level('INFO'):
        trainer_of(linear_task(), batches(5), **kwargs).train_epoch(1)
    return [text for text in caplog.messages if text.startswith('Train: ')]


def test_progress_lines(caplog):
    lines = progress(caplog, log_interval=2, num_epochs=3)
    assert [line.split(']')[0] for line in lines] == [
        'Train: 1 [   0/5 ( 20%)', 'Train: 1 [   2/5 ( 60%)', 'Train: 1 [   4/5 (100%)']
    assert all('loss: ' in line and 'LR: 1.000e-01' in line and 'images/s' in line and 'ETA ' in line for line in lines)
    assert len(progress(caplog, log_interval=2, grad_accum_steps=2)) == 2  # of 3 updates
    assert not progress(caplog, placement=Placement(torch.device('cpu'), rank=1))


def test_pictures_of_batches(tmp_path):
    trainer_of(linear_task(), batches(5), log_interval=2, image_folder=str(tmp_path)).train_epoch(0)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f'train-batch-{index}.jpg' for index in (0, 2, 4)]
