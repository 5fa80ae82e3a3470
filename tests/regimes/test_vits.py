"""Transformers and ConvNeXt, whose layer norms are split: every regime, loss, source and option works on them."""
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.layers import DropPath
from timm.loss import SoftTargetCrossEntropy

from tests.regimes.regime_models import (
    CLASSES,
    DETERMINISTIC,
    HALF,
    assert_all_close,
    gradients_of,
    make_batch,
    recorded_batches,
    task_of,
    toy_problem,
)
from timm_advprop import AdvPropTask, JointTask, TradesTask
from timm_advprop.norms import SplitNorm, norm_parameters, split_norms
from timm_advprop.regimes import Attack, PyramidAttack
from timm_advprop.regimes.pairing import kl

pytestmark = pytest.mark.usefixtures('one_thread')

TINY_VIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
MODELS = {
    'vit_tiny_patch16_224': TINY_VIT,
    'deit3_small_patch16_224': TINY_VIT,
    'convnext_tiny': dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
}
NAMES = pytest.mark.parametrize('name', MODELS)
PYRAMID = PyramidAttack(target='none', eps_px=1., alpha_px=0.5, steps=2, scales=(8, 4, 1), weights=(8., 4., 1.), **HALF)


def model_of(name, dtype=torch.float64, **kwargs):
    """A split model in which no two norms are alike, and residual branches count."""
    torch.manual_seed(0)
    model = timm.create_model(f'{name}_ap', num_classes=CLASSES, **MODELS[name], **kwargs)
    for parameter in (value for group in norm_parameters(model) for value in group):
        torch.nn.init.uniform_(parameter, 0.2, 1.)
    for key, parameter in model.named_parameters():
        if 'gamma' in key:  # layer scale, which starts from nearly nothing
            torch.nn.init.uniform_(parameter, 0.5, 1.)
    torch.nn.init.normal_(model.get_classifier().weight, std=0.5)
    return model.to(dtype).train()


def twin_of(name, model, route, **kwargs):
    """The stock timm model that one route is, made by key names alone."""
    twin = timm.create_model(name, num_classes=CLASSES, **MODELS[name], **kwargs).to(torch.float64).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    of_route = {key.replace(f'aux_bn.{route - 1}.', ''): value for key, value in state.items()}
    twin.load_state_dict({key: (of_route if route else state)[key] for key in twin.state_dict()}, strict=True)
    return twin


def assert_gradients_are_those_of(model, twins):
    of_twins = [gradients_of(twin) for twin in twins]
    expected = {}
    for name in of_twins[0]:
        prefix, _, leaf = name.rpartition('.')
        norm = dict(model.named_modules()).get(prefix)
        if isinstance(norm, SplitNorm):
            expected[name], expected[f'{prefix}.aux_bn.0.{leaf}'] = (gradients[name] for gradients in of_twins)
        else:
            expected[name] = sum(gradients[name] for gradients in of_twins)
    assert_all_close(gradients_of(model), expected, rtol=1e-6, atol=1e-9)


@NAMES
def test_all_layer_norms_are_split_and_nothing_else(name):
    model = model_of(name)
    norms = [module for module in timm.create_model(name, **MODELS[name]).modules()
             if isinstance(module, torch.nn.LayerNorm)]
    assert len(list(split_norms(model))) == len(norms) > 4


@NAMES
@pytest.mark.parametrize('attack', [
    pytest.param(Attack(eps_px=4, alpha_px=2, steps=2, **DETERMINISTIC, **HALF), id='pgd'),
    pytest.param(PYRAMID, id='pyramid')])
def test_an_advprop_step_with_a_pairing_is_that_of_two_plain_models(name, attack):
    model, (images, target) = model_of(name), make_batch()
    twins = [twin_of(name, model, route) for route in (0, 1)]
    made, _ = attack(twin_of(name, model, 1), images, target)
    outputs = [twin(part) for twin, part in zip(twins, (images, made))]
    loss = F.cross_entropy(outputs[0], target) + 0.5 * F.cross_entropy(outputs[1], target)
    loss = loss + 6 * kl(*outputs, target)
    loss.backward()
    result = AdvPropTask(
        model, sources=attack, weight=0.5, pairing='kl', match_masks=True, verbose=False, **HALF)(images, target)
    torch.testing.assert_close(result['loss'].detach(), loss.detach())
    result['loss'].backward()
    assert_gradients_are_those_of(model, twins)


@NAMES
def test_pyramid_adversarial_training_shares_its_norms(name):
    model, (images, target) = model_of(name), make_batch()
    twin = twin_of(name, model, 0)
    made, _ = PYRAMID(twin_of(name, model, 0), images, target)
    loss = F.cross_entropy(twin(images), target) + F.cross_entropy(twin(made), target)
    loss.backward()
    result = JointTask(model, attack=PYRAMID, match_masks=True, verbose=False, **HALF)(images, target)
    result['loss'].backward()
    torch.testing.assert_close(result['loss'].detach(), loss.detach())
    assert_all_close(gradients_of(model), gradients_of(twin), rtol=1e-6, atol=1e-9)


@NAMES
def test_trades_through_norms_of_their_own(name):
    model, (images, target) = model_of(name), make_batch()
    twins = [twin_of(name, model, route) for route in (0, 1)]
    attack = Attack(eps_px=8, alpha_px=2, steps=2, target='none', random_start=1.)
    with recorded_batches(model) as seen:
        result = TradesTask(model, attack=attack, match_masks=True, verbose=False, **HALF)(images, target)
    outputs = [twin(part) for twin, part in zip(twins, seen[-1].chunk(2))]
    loss = F.cross_entropy(outputs[0], target) + 6 * kl(*outputs, target)
    loss.backward()
    result['loss'].backward()
    torch.testing.assert_close(result['loss'].detach(), loss.detach())
    assert_gradients_are_those_of(model, twins)


@NAMES
@pytest.mark.parametrize('regime', ['advprop', 'joint', 'trades'])
def test_dropped_paths_match_also_in_the_second_forward_of_a_checkpointed_model(name, regime):
    (images, target), gradients = make_batch(8), []
    for checkpointed in (False, True):
        model = model_of(name, drop_path_rate=0.5)
        model.set_grad_checkpointing(checkpointed)
        assert any(module.drop_prob > 0 for module in model.modules() if isinstance(module, DropPath))
        task = task_of(regime, model, adv_eps=0., adv_steps=1, adv_match_masks=True)
        outputs = []
        model.register_forward_hook(lambda module, args, output, outputs=outputs: outputs.append(output.detach()))
        torch.manual_seed(1)
        for norm in split_norms(model):  # equal norms, so that equal masks are all that makes the logits equal
            norm.aux_bn[0].load_state_dict({key: norm.state_dict()[key] for key in norm.aux_bn[0].state_dict()})
        task(images, target)['loss'].backward()
        clean, other = outputs[-1].chunk(2)
        torch.testing.assert_close(clean, other)
        gradients.append(gradients_of(model))
    assert_all_close(*gradients, rtol=1e-7, atol=1e-10)


@NAMES
def test_paths_that_are_not_matched_differ(name):
    model, (images, target) = model_of(name, drop_path_rate=0.5), make_batch(8)
    task = task_of('joint', model, adv_eps=0., adv_steps=1)
    outputs = []
    model.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    task(images, target)
    assert not torch.allclose(*outputs[-1].chunk(2))


@NAMES
@pytest.mark.parametrize('flags', [
    pytest.param(dict(regime='advprop', adv_eps=1., adv_pairing='js', adv_pairing_weight=1.), id='advprop, js'),
    pytest.param(dict(regime='joint', adv_eps=1., adv_pairing='alp'), id='joint, alp'),
    pytest.param(dict(regime='trades', adv_eps=1., adv_alpha=1., adv_steps=1, adv_weight=1.), id='trades'),
])
def test_a_few_steps_learn_a_toy_problem_with_mixed_images(name, flags):
    model = model_of(name, torch.float32, drop_path_rate=0.1)
    task = task_of(flags['regime'], model, SoftTargetCrossEntropy(), adv_match_masks=True,
                   **{key: value for key, value in flags.items() if key != 'regime'})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = toy_problem()
    mixup = Mixup(mixup_alpha=0.1, cutmix_alpha=1., prob=0.3, label_smoothing=0.1, num_classes=CLASSES)
    for _ in range(60):
        model.train()
        result = task(*mixup(images.clone(), labels))
        optimizer.zero_grad()
        result['loss'].backward()
        optimizer.step()
    accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.9
