"""Vanilla training: of a split model what it is of the plain one."""
import pytest
import torch
import torch.nn.functional as F
from timm.task import ClassificationTask

from tests.regimes.regime_models import (
    HALF,
    assert_all_close,
    gradients_of,
    make_batch,
    percent_right,
    plain_twin,
    split_model,
    task_of,
)
from timm_advprop import AdvPropTask, set_norm_route
from timm_advprop.regimes import VanillaTask

pytestmark = pytest.mark.usefixtures('one_thread')


def test_vanilla_trains_a_split_model_as_the_plain_model():
    model, (images, target) = split_model().train(), make_batch()
    twin = plain_twin(model, 0).train()
    aux_before = {key: value.clone() for key, value in model.state_dict().items() if 'aux_bn' in key}
    task = VanillaTask(model, verbose=False)
    assert isinstance(task, ClassificationTask)
    assert all(p.requires_grad == ('aux_bn' not in name) for name, p in model.named_parameters())
    result = task(images, target)
    result['loss'].backward()
    output = twin(images)
    F.cross_entropy(output, target).backward()
    assert set(result) == {'loss', 'output', 'clean_loss', 'clean_top1'}
    torch.testing.assert_close(result['output'], output)
    assert result['clean_top1'].item() == pytest.approx(percent_right(output, target))
    assert_all_close(gradients_of(model), gradients_of(twin))
    assert_all_close(plain_twin(model, 0).state_dict(), twin.state_dict())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in aux_before.items())


@pytest.mark.parametrize('resting_route', ['aux', 'split'])
def test_vanilla_puts_a_model_back_on_the_main_route(resting_route):
    # adversarial training first, clean fine-tuning after it
    model, (images, target) = split_model().train(), make_batch()
    expected = plain_twin(model, 0).train()(images)
    set_norm_route(model, resting_route)
    result = VanillaTask(model, verbose=False)(images, target)
    torch.testing.assert_close(result['output'], expected)


def test_advprop_after_vanilla_trains_the_auxiliary_norms_again():
    model, (images, target) = split_model().train(), make_batch()
    model.conv1[1].weight.requires_grad_(False)  # the user's choice
    VanillaTask(model, verbose=False)
    AdvPropTask(model, verbose=False, **HALF)(images, target)['loss'].backward()
    frozen = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert frozen == {'conv1.1.weight', 'conv1.1.aux_bn.0.weight'}


def test_vanilla_has_no_use_for_an_attack_but_takes_a_recipe_that_has_one():
    task = task_of('vanilla', split_model(), adv_eps=8., adv_steps=3, adv_weight=2.)
    assert type(task) is VanillaTask and task.describe() == 'vanilla' and task.relative_cost() == 1
