"""Distances between the norms of routes."""
import pytest
import timm
import torch

from timm_advprop import convert_split_norm
from timm_advprop.norms import norm_distances, split_norms


def test_copies_are_at_no_distance_and_opposites_at_two():
    model = timm.create_model('test_resnet_ap', num_aux=2)
    names = {f'{route}_{kind}_distance' for route in ('aux', 'aux2') for kind in ('mean', 'var', 'weight', 'bias')}
    assert norm_distances(model) == dict.fromkeys(names, 0.)
    norms = list(split_norms(model))
    with torch.no_grad():
        for norm in norms:
            norm.aux_bn[1].weight.neg_()
        norms[0].aux_bn[0].running_var.mul_(3)  # |3 - 1| / ((3 + 1) / 2)
    found = norm_distances(model)
    with_weights = [norm for norm in norms if norm.weight.any()]  # some begin at 0
    assert found['aux2_weight_distance'] == pytest.approx(2 * len(with_weights) / len(norms))
    assert found['aux_var_distance'] == pytest.approx(1 / len(norms))
    assert {name for name, value in found.items() if value} == {'aux2_weight_distance', 'aux_var_distance'}


def test_what_is_shared_or_not_there_has_no_distance():
    assert norm_distances(timm.create_model('test_resnet')) == {}
    shared = {'aux_weight_distance', 'aux_bias_distance'}
    assert norm_distances(timm.create_model('test_resnet_ap', share='statistics')).keys() == shared
    assert norm_distances(convert_split_norm(timm.create_model('test_convnext'))).keys() == shared
