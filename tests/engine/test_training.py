"""What a training run is built of: what each setting does to the model and the task."""
from dataclasses import replace

import pytest
import timm
import torch
from timm.layers import DropPath
from torch.nn.modules.batchnorm import _BatchNorm

from tests.engine.runs import CONFIG, CPU, equal_states, train_settings
from timm_advprop.engine.placement import Placement
from timm_advprop.engine.training import build_model, build_task, check_settings, schedule_of, train
from timm_advprop.errors import InputError
from timm_advprop.norms import has_split_norm, num_aux_norms, split_norms
from timm_advprop.regimes import Attack, AugmentedView, GaussianNoise


def model_of(placement=CPU, seed=0, **values):
    torch.manual_seed(seed)
    return build_model(train_settings(**values), placement)


def task_of(seed=0, placement=CPU, **values):
    settings = train_settings(**values)
    torch.manual_seed(seed)
    return build_task(settings, build_model(settings, placement), CONFIG, placement)


def all_norms(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


# the model

def test_the_model_is_timms():
    built, expected = model_of(model='test_resnet'), None
    torch.manual_seed(0)
    expected = timm.create_model('test_resnet', num_classes=10)
    assert type(built) is type(expected) and equal_states(built.state_dict(), expected.state_dict())


def test_batch_norm_settings_reach_main_and_aux_norms():
    model = model_of(bn_momentum=.3, bn_eps=1e-3)
    aux = [norm for split in split_norms(model) for norm in split.aux_bn]
    assert len(all_norms(model)) == 2 * len(aux) > 0
    assert {(norm.momentum, norm.eps) for norm in all_norms(model)} == {(.3, 1e-3)}
    assert {(norm.momentum, norm.eps) for norm in all_norms(model_of())} == {(.1, 1e-5)}


def test_head_settings_change_the_head_alone():
    plain, changed = model_of().state_dict(), model_of(head_init_scale=.5, head_init_bias=-1.).state_dict()
    torch.testing.assert_close(changed['fc.weight'], .5 * plain['fc.weight'])
    assert (changed['fc.bias'] == -1).all() and plain['fc.weight'].any()
    assert all(torch.equal(changed[name], plain[name]) for name in plain if not name.startswith('fc.'))
    scaled = model_of(head_init_scale=.5).state_dict()
    torch.testing.assert_close(scaled['fc.bias'], .5 * plain['fc.bias'])


@pytest.mark.parametrize('values, words', [
    (dict(model='levit_128s', head_init_scale=.1), '--head-init-scale and --head-init-bias need a model with one'),
    (dict(model='dla46x_c', grad_checkpointing=True), 'gradient checkpointing not supported'),
], ids=str)
def test_what_a_model_does_not_have_is_one_line(values, words):
    with pytest.raises(InputError, match=words):
        model_of(**values)


@pytest.mark.parametrize('values, rate', [
    (dict(drop_path=.2), .2), (dict(drop_connect=.2), .2), (dict(drop_path=.1, drop_connect=.3), .1),
    (dict(drop_path=0., drop_connect=.3), 0.), (dict(), 0.),
], ids=str)
def test_drop_path_is_the_rate_of_the_deepest_block(values, rate):
    model = model_of(model='test_efficientnet_ap', **values)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath) and module.drop_prob]
    assert max(rates, default=0.) == pytest.approx(rate, rel=.3)  # of the last block, which is 3 of 4 deep
    assert bool(rates) == bool(rate)


def test_dropout_and_pooling():
    model = model_of(drop=.3, gp='max')
    assert model.drop_rate == .3
    assert model.global_pool.pool_type == 'max'


def test_drop_block_is_of_the_models_that_have_it():
    assert any(type(module).__name__ == 'DropBlock2d' and module.drop_prob == .1
               for module in model_of(model='resnet18_ap', drop_block=.1).modules())


@pytest.mark.parametrize('values', [dict(in_chans=1), dict(input_size=(1, 32, 32))], ids=str)
def test_input_channels(values):
    assert model_of(**values)(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_model_kwargs_come_last():
    assert model_of(model_kwargs=dict(num_classes=7)).num_classes == 7


def test_channels_last_is_of_every_kernel():
    def kernels(placement):
        return [value for value in model_of(placement).parameters() if value.dim() == 4 and value.shape[-1] > 1]

    last = kernels(Placement(torch.device('cpu'), channels_last=True))
    assert last and all(value.is_contiguous(memory_format=torch.channels_last) for value in last)
    assert not any(value.is_contiguous(memory_format=torch.channels_last) for value in kernels(CPU))


def test_gradient_checkpointing_recomputes_and_changes_no_gradient():
    def step(**values):
        task = task_of(model='test_efficientnet_ap', adv_target='none', adv_random_start=0., **values)
        model, calls = task.get_trainable_module().train(), []
        model.blocks[0][0].register_forward_pre_hook(lambda *args: calls.append(1))
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
        task(images, torch.arange(4))['loss'].backward()
        return len(calls), {name: value.grad for name, value in model.named_parameters()}, model.state_dict()

    calls, gradients, state = step()
    more_calls, recomputed, same_state = step(grad_checkpointing=True)
    assert more_calls > calls
    for name, value in gradients.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert any('aux_bn' in name and value.any() for name, value in gradients.items())
    # running statistics move once more at each recomputation, as in plain timm
    assert same_state.keys() == state.keys()


@pytest.mark.parametrize('values, num_aux', [
    (dict(), 1), (dict(adv_eps=[1., 2.]), 2), (dict(regime='vanilla'), 1), (dict(regime='fast-advprop'), 1),
    (dict(adv_eps=[1., 2.], split_bn=True, aug_splits=2), 3),
    (dict(model='test_resnet', regime='advprop', adv_eps=[1., 2.]), 0),  # split by its task
    (dict(model='test_resnet', regime='joint'), 0), (dict(model='test_resnet', regime='trades'), 0),
    (dict(regime='trades'), 1),
], ids=str)
def test_auxiliary_norms_are_as_many_as_the_regime_needs(values, num_aux):
    assert num_aux_norms(model_of(**values)) == num_aux


def test_weights_that_a_run_starts_from(tmp_path):
    plain = timm.create_model('test_resnet', num_classes=10)
    file = str(tmp_path / 'plain.pth')
    torch.save(plain.state_dict(), file)
    for values in (dict(initial_checkpoint=file), dict(pretrained_path=file)):
        state = model_of(**values).state_dict()
        for name, value in plain.state_dict().items():
            assert torch.equal(state[name], value), name
        assert torch.equal(state['bn1.aux_bn.0.weight'], plain.state_dict()['bn1.weight'])


def test_published_weights_take_a_head_of_another_size(tmp_path):
    plain = timm.create_model('test_resnet', num_classes=10)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    model = model_of(pretrained_path=str(tmp_path / 'plain.pth'), num_classes=7)
    assert model.num_classes == 7
    assert torch.equal(model.conv1[0].weight, plain.conv1[0].weight)


@pytest.mark.parametrize('values, converts', [
    (dict(regime='advprop'), True), (dict(regime='vanilla'), False), (dict(regime=None), False),
    (dict(regime='trades'), False),
], ids=str)
def test_a_plain_model_takes_auxiliary_norms_where_its_regime_uses_them(tmp_path, values, converts):
    split = timm.create_model('test_resnet_ap', num_classes=10)
    torch.nn.init.constant_(split.bn1.aux_bn[0].weight, 3.)
    file = str(tmp_path / 'split.pth')
    torch.save(split.state_dict(), file)
    values = dict(values, model='test_resnet', initial_checkpoint=file, adv_eps=None)
    if not converts:
        with pytest.raises(InputError, match='auxiliary norm'):
            model_of(**values)
        return
    assert equal_states(model_of(**values).state_dict(), split.state_dict())


# the task

def test_an_attack_is_as_set():
    task = task_of(adv_attack='gd', adv_target='none', adv_norm_stats='train', adv_amp_dtype='bfloat16', adv_eps=[3.],
                   adv_alpha=.5, adv_steps=2, adv_random_start=.25, adv_norm='linf')
    (attack,) = task.sources
    assert attack == replace(
        Attack(kind='gd', eps_px=3., alpha_px=.5, steps=2, target='none', random_start=.25, norm_stats='train',
               amp_dtype='bfloat16'), mean=(.5,) * 3, std=(.5,) * 3)


def test_strengths_are_a_source_each():
    assert [source.eps_px for source in task_of(adv_eps=[1., 2.]).sources] == [1., 2.]
    assert [type(source) for source in task_of(adv_eps=[4., 8.], adv_source='gaussian-noise').sources] == [
        GaussianNoise, GaussianNoise]
    views = task_of(split_bn=True, aug_splits=3, regime='advprop').sources
    assert [type(source) for source in views] == [AugmentedView, AugmentedView, Attack]


@pytest.mark.parametrize('weight', [.5, 2.])
def test_the_weight_is_of_the_adversarial_loss(weight):
    task = task_of(adv_weight=weight, smoothing=0.)
    task.get_trainable_module().train()
    result = task(torch.rand(4, 3, 32, 32), torch.arange(4))
    torch.testing.assert_close(result['loss'], result['clean_loss'] + weight * result['adv_loss'])


@pytest.mark.parametrize('model, values, name', [
    ('test_resnet', dict(adv_eps=None), 'vanilla'), ('test_resnet_ap', {}, 'advprop'),
    ('test_resnet', dict(regime='madry'), 'madry'), ('test_resnet_ap', dict(regime='joint'), 'joint'),
], ids=str)
def test_the_regime_follows_the_model_where_it_is_not_set(model, values, name):
    assert task_of(model=model, **values).name == name


def test_a_plain_model_is_converted_by_its_regime():
    task = task_of(model='test_resnet', regime='advprop')
    assert has_split_norm(task.get_trainable_module())


def test_an_attack_on_a_plain_model_needs_a_regime():
    with pytest.raises(InputError, match='say which regime the attack is for'):
        task_of(model='test_resnet')


# the schedule

@pytest.mark.parametrize('values, epochs, milestone', [
    (dict(regime='fast-advprop'), 5, 2),
    (dict(regime='fast-advprop', adv_budget='epochs'), 6, 3),
    (dict(regime='joint', adv_budget='vanilla'), 2, 1),  # PGD-1 costs 8/3
    (dict(regime='joint'), 6, 3),
    (dict(regime='vanilla', adv_budget='vanilla'), 6, 3),
], ids=str)
def test_a_budget_shortens_the_schedule_and_leaves_the_settings(values, epochs, milestone):
    settings = train_settings(epochs=6, decay_milestones=[3], **values)
    given = dict(settings.given)
    task = build_task(settings, build_model(settings, CPU), CONFIG, CPU)
    schedule = schedule_of(settings, task)
    assert (schedule.epochs, schedule.decay_milestones) == (epochs, (milestone,))
    assert settings.given == given and settings.schedule.epochs == 6


def test_an_epoch_is_the_least_that_a_budget_leaves():
    settings = train_settings(epochs=1, regime='joint', adv_budget='vanilla')
    task = build_task(settings, build_model(settings, CPU), CONFIG, CPU)
    assert schedule_of(settings, task).epochs == 1


# what does not go together

@pytest.mark.parametrize('values, words', [
    (dict(start_epoch=1), '--start-epoch 1 is beyond the end: the run has 1 epoch, from 0'),
    (dict(start_epoch=9, epochs=3, warmup_epochs=2, warmup_prefix=True, cooldown_epochs=4), 'the run has 9 epochs'),
    (dict(adv_eps=300.), r'eps_px \(--adv-eps\) must be at most 255'),
    (dict(regime='madry', adv_eps=300.), r'eps_px \(--adv-eps\) must be at most 255'),
    (dict(adv_source='os:getcwd'), 'must take .model, images, target.'),
    (dict(jsd_loss=True), '--jsd-loss needs --aug-splits'),
    (dict(split_bn=True, aug_splits=0), '--split-bn needs --aug-splits'),
    (dict(split_bn=True, aug_splits=2, jsd_loss=True), 'two uses of --aug-splits'),
    (dict(split_bn=True, aug_splits=2, regime='joint'), '--split-bn'),
    (dict(split_bn=True, aug_splits=2, regime='vanilla'), '--split-bn'),
    (dict(aug_splits=2, regime='fast-advprop'), '--aug-splits'),
    (dict(regime='fast-advprop', batch_size=4), 'batches of at least 5 images, got --batch-size 4'),
    (dict(regime='madry', adv_weight=2.), 'madry has no use for --adv-weight'),
    (dict(aug_splits=2, mixup=.1), '--aug-splits takes no mixup or cutmix'),
    (dict(aug_splits=2, no_prefetcher=True), '--aug-splits needs the prefetcher'),
    (dict(cutmix=1., batch_size=15), 'even batch, got --batch-size 15'),
    (dict(model='hf-hub:a/b', pretrained_path='file'), '--pretrained-path gives hf-hub:a/b other weights'),
    (dict(val_split=''), '--eval-metric must be loss'),
    (dict(data_dir='nowhere'), 'nowhere'),
    (dict(train_split='nope'), "No split 'nope'"),
    (dict(val_split='nope'), "No split 'nope'"),
    (dict(adv_eps=None, data_dir=None), 'No data set'),
], ids=str)
def test_settings_that_do_not_go_together(few_digits, values, words):
    with pytest.raises(InputError, match=words):
        check_settings(train_settings(**{'data_dir': few_digits, **values}))


@pytest.mark.parametrize('values', [
    dict(), dict(aug_splits=2), dict(aug_splits=2, jsd_loss=True), dict(aug_splits=2, split_bn=True),
    dict(regime='fast-advprop', batch_size=5), dict(mixup=.1, batch_size=14), dict(val_split='', eval_metric='loss'),
    dict(pretrained_path='file'), dict(regime='madry'), dict(start_epoch=2, epochs=3),
    dict(start_epoch=3, epochs=3, cooldown_epochs=1), dict(adv_eps=300., adv_norm='l2', adv_steps=1),
], ids=str)
def test_settings_that_go_together(few_digits, values):
    check_settings(train_settings(**{'data_dir': few_digits, **values}))


def test_a_shorter_schedule_has_an_earlier_end(few_digits, tmp_path):
    values = dict(data_dir=few_digits, output=str(tmp_path), epochs=6, start_epoch=4, adv_budget='vanilla')
    check_settings(train_settings(**values))
    with pytest.raises(InputError, match='--start-epoch 4 is beyond the end: the run has 2 epochs'):
        train(train_settings(**values))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, values', [
    ('wandb', dict(log_wandb=True)), *((name, dict(log_to=[name])) for name in ('tensorboard', 'trackio', 'wandb'))],
    ids=str)
def test_the_package_of_a_tracker_must_be_there(few_digits, monkeypatch, name, values):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    needed = rf"--log-to {name} needs the package {name}: pip install 'timm-advprop\[track\]'"
    with pytest.raises(InputError, match=needed):
        check_settings(train_settings(data_dir=few_digits, **values))


def test_settings_are_read_only_inside_too():
    settings = train_settings(model_kwargs=dict(a=1), opt_kwargs=dict(b=2), adv_steps=3)
    for group in (settings.model.model_kwargs, settings.optimizer.opt_kwargs, settings.regime.attack, settings.given):
        with pytest.raises(TypeError, match='does not support item assignment'):
            group['c'] = 3


def test_a_budget_is_one_of_two():
    with pytest.raises(ValueError, match='budget must be one of epochs, vanilla'):
        train_settings(adv_budget='x')
