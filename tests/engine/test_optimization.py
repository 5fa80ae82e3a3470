"""Loss, optimizer and schedule of a training run: what each setting does."""
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

from timm_advprop.engine.optimization import (
    build_criterion,
    build_optimizer,
    build_scheduler,
    learning_rate,
    mean_lr,
    shorten,
)
from timm_advprop.engine.run_settings import AugmentationSettings, OptimizerSettings, ScheduleSettings
from timm_advprop.errors import InputError


@pytest.fixture
def model():
    return timm.create_model('test_resnet', num_classes=4)


@pytest.fixture
def batch():
    return torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])


# the loss

def smooth(target, classes, amount):
    return F.one_hot(target, classes).double() * (1 - amount) + amount / classes


def bce(output, weights, **kwargs):
    return F.binary_cross_entropy_with_logits(output, weights, **kwargs)


@pytest.mark.parametrize('settings, expected', [
    (dict(), lambda output, target: F.cross_entropy(output, smooth(target, 4, .1))),
    (dict(smoothing=.3), lambda output, target: F.cross_entropy(output, smooth(target, 4, .3))),
    (dict(smoothing=0.), F.cross_entropy),
    (dict(bce_loss=True, smoothing=0.), lambda output, target: bce(output, smooth(target, 4, 0.))),
    (dict(bce_loss=True, smoothing=.2), lambda output, target: bce(output, smooth(target, 4, .2))),
    (dict(bce_loss=True, smoothing=0., bce_sum=True),
     lambda output, target: bce(output, smooth(target, 4, 0.), reduction='sum') / len(target)),
    (dict(bce_loss=True, smoothing=0., bce_pos_weight=3.),
     lambda output, target: bce(output, smooth(target, 4, 0.), pos_weight=torch.tensor(3.))),
    (dict(bce_loss=True, smoothing=.4, bce_target_thresh=.2),
     lambda output, target: bce(output, smooth(target, 4, 0.))),
], ids=lambda value: '' if callable(value) else str(value))
def test_the_loss_of_hard_labels(batch, settings, expected):
    torch.testing.assert_close(build_criterion(AugmentationSettings(**settings))(*batch), expected(*batch))


@pytest.mark.parametrize('mixing', [dict(mixup=.2), dict(cutmix=1.), dict(cutmix_minmax=(.2, .4))], ids=str)
def test_the_loss_of_mixed_labels_does_not_smooth_them_again(batch, mixing):
    output, _ = batch
    soft = torch.rand(6, 4, dtype=torch.float64).softmax(1)
    loss = build_criterion(AugmentationSettings(**mixing, smoothing=.1))(output, soft)
    torch.testing.assert_close(loss, F.cross_entropy(output, soft))
    loss = build_criterion(AugmentationSettings(**mixing, bce_loss=True, smoothing=.1))(output, soft)
    torch.testing.assert_close(loss, bce(output, soft))


def test_the_loss_of_augmentation_splits(batch):
    output, target = batch
    loss = build_criterion(AugmentationSettings(jsd_loss=True, aug_splits=3, smoothing=0.))(output, target[:2])
    parts = output.softmax(1).split(2)
    mean = sum(parts) / 3
    divergence = sum(F.kl_div(mean.log(), part, reduction='batchmean') for part in parts) / 3
    torch.testing.assert_close(loss, F.cross_entropy(output[:2], target[:2]) + 12 * divergence)


# the optimizer

@pytest.mark.parametrize('settings, batch, expected', [
    (dict(lr=.3), 1024, .3),
    (dict(), 256, .1),
    (dict(), 512, .2),
    (dict(lr_base=.5, lr_base_size=64), 128, 1.),
    (dict(lr_base_scale='sqrt'), 1024, .2),
    (dict(opt='adamw'), 1024, .2),
    (dict(opt='lamb'), 1024, .2),
    (dict(opt='adamw', lr_base_scale='linear'), 1024, .4),
], ids=str)
def test_the_learning_rate_follows_from_the_batch(settings, batch, expected):
    assert learning_rate(OptimizerSettings(**settings), batch, verbose=False) == pytest.approx(expected)


def test_a_rate_that_follows_is_told(caplog):
    with caplog.at_level('INFO'):
        learning_rate(OptimizerSettings(lr=.3), 512)
        assert not caplog.messages
        learning_rate(OptimizerSettings(), 512)
    assert caplog.messages == ['Learning rate 0.2, from --lr-base 0.1 by linear scaling.']


def test_settings_reach_the_optimizer(model):
    optimizer = build_optimizer(
        OptimizerSettings(opt='adamw', opt_eps=1e-3, opt_betas=(.5, .6), weight_decay=.3, opt_kwargs=dict(amsgrad=True),
                          lr=7.), model, lr=.25)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert (group['lr'], group['eps'], group['betas'], group['amsgrad']) == (.25, 1e-3, (.5, .6), True)
    decayed = {group['weight_decay']: group['params'] for group in optimizer.param_groups}
    assert set(decayed) == {0., .3}
    assert all(parameter.dim() == 1 for parameter in decayed[0.])
    assert sum(len(parameters) for parameters in decayed.values()) == len(list(model.parameters()))


def test_momentum_of_sgd_is_nesterovs(model):
    group = build_optimizer(OptimizerSettings(momentum=.7), model, lr=.1).param_groups[0]
    assert (group['momentum'], group['nesterov']) == (.7, True)
    assert not build_optimizer(OptimizerSettings(opt='momentum'), model, lr=.1).param_groups[0]['nesterov']


def test_layers_near_the_input_learn_more_slowly(model):
    optimizer = build_optimizer(OptimizerSettings(layer_decay=.5, layer_decay_min_scale=.2), model, lr=.1)
    scale = {id(parameter): group['lr_scale'] for group in optimizer.param_groups for parameter in group['params']}
    assert scale[id(model.fc.weight)] == 1.
    assert scale[id(model.conv1[0].weight)] == .2  # would be less without the limit
    assert 0.2 <= scale[id(model.layer3[0].conv1.weight)] < 1.


def test_layers_below_a_scale_are_frozen(model):
    build_optimizer(OptimizerSettings(layer_decay=.5, layer_decay_no_opt_scale=.2), model, lr=.1)
    assert not model.conv1[0].weight.requires_grad and model.fc.weight.requires_grad


@pytest.mark.parametrize('settings, words', [
    (dict(opt='sgdd'), 'sgdd'), (dict(opt_kwargs=dict(lr=-1.)), 'multiple|learning rate'),
])
def test_a_wrong_optimizer_is_one_line(model, settings, words):
    with pytest.raises((InputError, TypeError), match=words):
        build_optimizer(OptimizerSettings(**settings), model, lr=.1)


# the schedule

def rates(updates=4, metric=None, seed=42, **settings):
    """The rate of each update of a run of 4 updates an epoch."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.)
    defaults = dict(epochs=3, warmup_epochs=0)
    scheduler, epochs = build_scheduler(ScheduleSettings(**{**defaults, **settings}), optimizer, updates, 'top1', seed)
    found = []
    for epoch in range(epochs):
        for update in range(updates):
            found.append(round(mean_lr(optimizer), 6))
            if scheduler is not None:
                scheduler.step_update(epoch * updates + update + 1)
        if scheduler is not None:
            scheduler.step(epoch + 1, metric)
    return found


def per_epoch(*values):
    return [value for value in values for _ in range(4)]


@pytest.mark.parametrize('settings, expected', [
    (dict(sched='none'), per_epoch(1, 1, 1)),
    (dict(), per_epoch(1, .75, .25)),  # half a cosine: (1 + cos(πt/3)) / 2
    (dict(min_lr=.5), per_epoch(1, .875, .625)),
    (dict(cooldown_epochs=1, min_lr=.5), per_epoch(1, .875, .625, .5)),
    (dict(sched='step', decay_epochs=1, decay_rate=.5), per_epoch(1, .5, .25)),
    (dict(sched='step', decay_epochs=2, decay_rate=.5), per_epoch(1, 1, .5)),
    (dict(sched='multistep', decay_milestones=(2,), decay_rate=.5), per_epoch(1, .5, .5)),
    (dict(sched='plateau', patience_epochs=0, decay_rate=.5), per_epoch(1, 1, .5)),
    (dict(sched='step', warmup_epochs=2, warmup_lr=.2, decay_epochs=1, decay_rate=.5), per_epoch(.2, .6, .25)),
    (dict(sched='step', warmup_epochs=2, warmup_prefix=True, warmup_lr=.2, decay_epochs=1, decay_rate=.5),
     per_epoch(.2, .6, 1, .5, .25)),
    (dict(sched='step', sched_on_updates=True, decay_epochs=.5, decay_rate=.5),
     [1, 1, .5, .5, .25, .25, .125, .125, .0625, .0625, .03125, .03125]),
    (dict(lr_cycle_limit=2, epochs=2, lr_cycle_decay=.5), per_epoch(1, .5, .5, .25)),
    (dict(sched='poly', decay_rate=1., lr_k_decay=1.), per_epoch(1, .666667, .333333)),
], ids=str)
def test_rates_follow_the_schedule(settings, expected):
    assert rates(metric=1., **settings) == pytest.approx(expected, abs=1e-5)


def test_noise_is_in_its_epochs_and_of_its_size():
    quiet = rates(sched='step', decay_epochs=9, epochs=4)
    noise = dict(sched='step', decay_epochs=9, epochs=4, lr_noise=(.5, 1.), lr_noise_pct=.1, lr_noise_std=1.)
    noisy = rates(**noise)
    assert noisy[:8] == quiet[:8] and noisy[8:] != quiet[8:]
    assert rates(**noise) == noisy != rates(seed=1, **noise)
    assert all(abs(rate - 1) <= .1 for rate in noisy)


def test_plateau_looks_at_the_metric():
    def rate(eval_metric, metrics):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.)
        settings = ScheduleSettings(sched='plateau', warmup_epochs=0, patience_epochs=0, decay_rate=.5)
        scheduler, _ = build_scheduler(settings, optimizer, 4, eval_metric, 42)
        for epoch, metric in enumerate(metrics):
            scheduler.step(epoch + 1, metric)
        return mean_lr(optimizer)

    assert rate('top1', (1., 2., 3.)) == 1. and rate('top1', (3., 2., 1.)) < 1.
    assert rate('loss', (3., 2., 1.)) == 1. and rate('loss', (1., 2., 3.)) < 1.


def test_an_unknown_schedule_is_one_line():
    with pytest.raises(InputError, match='cosin'):
        rates(sched='cosin')


def test_the_mean_rate_is_over_groups():
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([dict(params=[layer.weight], lr=1.), dict(params=[layer.bias], lr=3.)])
    assert mean_lr(optimizer) == 2.


def test_a_schedule_is_shortened_as_a_whole():
    settings = ScheduleSettings(
        epochs=12, warmup_epochs=3, cooldown_epochs=6, patience_epochs=9, mixup_off_epoch=10, decay_milestones=(3, 9),
        decay_epochs=5, min_lr=.1)
    short = shorten(settings, 2.)
    assert short == ScheduleSettings(
        epochs=6, warmup_epochs=2, cooldown_epochs=3, patience_epochs=4, mixup_off_epoch=5, decay_milestones=(2, 4),
        decay_epochs=2.5, min_lr=.1)


def test_what_is_off_stays_off_and_what_is_on_stays_on():
    short = shorten(ScheduleSettings(epochs=2, warmup_epochs=1, mixup_off_epoch=0, cooldown_epochs=0), 100.)
    assert (short.epochs, short.warmup_epochs, short.mixup_off_epoch, short.cooldown_epochs) == (1, 1, 0, 0)
