"""The parameters that only some routes use."""
from functools import partial

import pytest
import torch.nn as nn
from timm.layers import GroupNormAct

import timm_advprop
from tests.norms.norm_models import main_key, make_batch, named_grads, norm_index, train_step
from timm_advprop.norms import (
    blend_routes,
    convert_split_norm,
    freeze_norms,
    norm_parameters,
    split_norms,
    strip_aux,
    train_aux,
)


def test_train_aux_takes_auxiliary_norms_alone_out_of_training_and_back(plain):
    split = convert_split_norm(plain, num_aux=2)
    train_aux(split, False)
    assert all(value.requires_grad == (norm_index(name) == 0) for name, value in split.named_parameters())
    split.train()
    train_step(split, *make_batch())
    assert {norm_index(name) for name, grad in named_grads(split).items() if grad is not None} == {0}
    frozen = next(split_norms(split))
    frozen.bias.requires_grad_(False)
    train_aux(split)
    assert not any(norm.bias.requires_grad for norm in (frozen, *frozen.aux_bn))
    assert sum(not value.requires_grad for value in split.parameters()) == 3


def test_train_aux_leaves_a_plain_model_alone(resnet):
    train_aux(resnet, False)
    assert all(value.requires_grad for value in resnet.parameters())


@pytest.mark.parametrize('num_aux', [1, 2])
def test_parameters_of_main_and_auxiliary_norms_are_told_apart(plain, num_aux):
    split = convert_split_norm(plain, num_aux)
    names = {id(parameter): name for name, parameter in split.named_parameters()}
    main, aux = ([names[id(parameter)] for parameter in group] for group in norm_parameters(split))
    expected_aux = [name for name in names.values() if norm_index(name)]
    assert sorted(aux) == sorted(expected_aux)
    assert sorted(main) == sorted({main_key(name) for name in expected_aux})


def test_a_plain_model_has_no_parameters_of_some_routes_alone(resnet):
    assert norm_parameters(resnet) == ([], [])


def test_parameters_of_an_activation_in_a_norm_are_the_norms():
    norm = GroupNormAct(4, num_groups=2, act_layer=nn.PReLU, inplace=False)
    main, aux = norm_parameters(timm_advprop.convert_split_norm(nn.Sequential(norm)))
    assert {id(parameter) for parameter in main} == {id(value) for value in (norm.weight, norm.bias, norm.act.weight)}
    assert len(aux) == 3 and not {id(parameter) for parameter in aux} & {id(parameter) for parameter in main}


@pytest.mark.parametrize('plain_copy', [strip_aux, partial(blend_routes, weights=.3)], ids=['strip', 'blend'])
@pytest.mark.parametrize('main', [False, True])
def test_frozen_norms_train_again_in_a_plain_copy(plain_copy, main, resnet):
    split = convert_split_norm(resnet).train()
    freeze_norms(split, main=main)
    split.layer1[0].bn1.weight.requires_grad_(False)  # frozen in another way where main norms are not
    copy = plain_copy(split)
    assert all(module.training for module in copy.modules())
    assert [name for name, value in copy.named_parameters() if not value.requires_grad] == (
        [] if main else ['layer1.0.bn1.weight'])
    assert split.bn1.training == split.bn1.bias.requires_grad == (not main)
