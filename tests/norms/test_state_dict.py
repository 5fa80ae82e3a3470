"""State dicts: loading them, dividing them, their keys."""
from copy import deepcopy

import pytest
import torch
import torch.nn as nn

from tests.norms.norm_models import (
    NORM_TENSORS,
    aux_equals_main,
    equal_states,
    main_key,
    make_batch,
    norm_index,
    snapshot,
    split_with_own_norms,
)
from timm_advprop import norms
from timm_advprop.norms import (
    SplitBatchNorm2d,
    convert_split_norm,
    index_aux_key,
    num_aux_in,
    set_norm_route,
    split_state_dict,
)


@pytest.mark.parametrize('kwargs', [
    dict(strict=True), dict(strict=False), dict(assign=True), dict(strict=False, assign=True),
], ids=str)
def test_plain_checkpoint_fills_the_auxiliary_norms(plain, kwargs, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2)
    checkpoint = plain.state_dict()
    keys, values = list(checkpoint), snapshot(plain)
    result = split.load_state_dict(checkpoint, **kwargs)
    assert not result.missing_keys and not result.unexpected_keys
    assert aux_equals_main(split)
    assert equal_states(split_state_dict(split.state_dict())[0], values)
    assert list(checkpoint) == keys
    with torch.no_grad():
        for key, value in split.state_dict(keep_vars=True).items():
            if norm_index(key):
                value.add_(1)
    assert equal_states(split_state_dict(split.state_dict())[0], values)
    assert equal_states(checkpoint, values)


def test_plain_checkpoint_fills_the_auxiliary_norms_of_a_model_on_the_meta_device(plain):
    checkpoint = plain.state_dict()
    split = convert_split_norm(deepcopy(plain).to('meta'))
    split.load_state_dict(checkpoint, assign=True)
    assert aux_equals_main(split)
    assert equal_states(split_state_dict(split.state_dict())[0], checkpoint)


def test_plain_checkpoint_fills_the_auxiliary_norms_of_a_submodule(plain, randomize_norms):
    wrapped = nn.ModuleDict(dict(model=split_with_own_norms(plain, randomize_norms), head=nn.Linear(2, 2)))
    wrapped.load_state_dict(nn.ModuleDict(dict(model=plain, head=nn.Linear(2, 2))).state_dict())
    assert aux_equals_main(wrapped)


def test_plain_checkpoint_without_batch_counters_loads(plain, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms)
    checkpoint = {key: value for key, value in plain.state_dict().items() if not key.endswith('num_batches_tracked')}
    split.load_state_dict(checkpoint)
    assert aux_equals_main(split)


def test_checkpoint_with_auxiliary_norms_loads_exactly(plain, randomize_norms):
    source = split_with_own_norms(plain, randomize_norms, num_aux=2).train()
    set_norm_route(source, 2)
    source(make_batch()[0])
    split = convert_split_norm(plain, num_aux=2)
    split.load_state_dict(source.state_dict())
    assert not aux_equals_main(split)
    assert equal_states(split.state_dict(), source.state_dict())


def test_checkpoint_with_fewer_auxiliary_norms_fills_the_others(plain, randomize_norms):
    source = split_with_own_norms(plain, randomize_norms).state_dict()
    split = split_with_own_norms(plain, randomize_norms, num_aux=2)
    split.load_state_dict(source)
    for key, value in split.state_dict().items():
        assert torch.equal(value, source[main_key(key) if norm_index(key) == 2 else key]), key


def test_checkpoint_with_more_auxiliary_norms_is_refused(plain, randomize_norms):
    source = split_with_own_norms(plain, randomize_norms, num_aux=2)
    split = convert_split_norm(plain)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*aux_bn\.1'):
        split.load_state_dict(source.state_dict())
    with pytest.raises(RuntimeError, match='aux_bn: 1 more auxiliary norms .* num_aux=2'):
        split.load_state_dict(source.state_dict(), strict=False)


@pytest.mark.parametrize('tensor', ['weight', 'bias', 'running_mean', 'running_var'])
def test_checkpoint_that_lacks_a_part_of_an_auxiliary_norm_is_refused(resnet, tensor):
    split = convert_split_norm(resnet)
    checkpoint = split.state_dict()
    del checkpoint[f'layer2.0.bn1.aux_bn.0.{tensor}']
    with pytest.raises(RuntimeError, match=rf'Missing key.*layer2\.0\.bn1\.aux_bn\.0\.{tensor}'):
        split.load_state_dict(checkpoint)
    assert split.load_state_dict(checkpoint, strict=False).missing_keys == [f'layer2.0.bn1.aux_bn.0.{tensor}']


def test_split_state_dict_divides_all_entries(plain, randomize_norms):
    split = split_with_own_norms(plain, randomize_norms, num_aux=2)
    state = split.state_dict()
    main, aux = split_state_dict(state)
    plain.load_state_dict(main, strict=True)
    assert set(aux) == {key for key in state if norm_index(key)}
    assert not set(main) & set(aux)
    assert equal_states({key: {**main, **aux}[key] for key in state}, state)


def test_split_state_dict_knows_the_keys_of_a_single_norm():
    main, aux = split_state_dict(SplitBatchNorm2d(3).state_dict())
    assert list(main) == list(NORM_TENSORS)
    assert list(aux) == [f'aux_bn.0.{name}' for name in NORM_TENSORS]


@pytest.mark.parametrize('num_aux', [1, 3])
def test_number_of_auxiliary_norms_is_read_from_a_state_dict(plain, num_aux):
    assert num_aux_in(plain.state_dict()) == 0
    assert num_aux_in(convert_split_norm(plain, num_aux).state_dict()) == num_aux
    assert num_aux_in(SplitBatchNorm2d(3, num_aux=num_aux).state_dict()) == num_aux


def test_auxiliary_norms_without_an_index_are_the_first_ones(resnet, randomize_norms):
    source = split_with_own_norms(resnet, randomize_norms).state_dict()
    unindexed = {key.replace('aux_bn.0.', 'aux_bn.'): value for key, value in source.items()}
    assert {index_aux_key(key) for key in unindexed} == set(source)
    split = convert_split_norm(resnet)
    split.load_state_dict(unindexed, strict=True)
    assert equal_states(split.state_dict(), source)


@pytest.mark.parametrize('key, main, indexed', [
    ('bn1.aux_bn.0.weight', 'bn1.weight', 'bn1.aux_bn.0.weight'),
    ('aux_bn.12.act.weight', 'act.weight', 'aux_bn.12.act.weight'),
    ('bn1.aux_bn.weight', 'bn1.aux_bn.weight', 'bn1.aux_bn.0.weight'),
    ('aux_bn.weight', 'aux_bn.weight', 'aux_bn.0.weight'),
    ('bn1.weight', 'bn1.weight', 'bn1.weight'),
    ('my_aux_bn.0.weight', 'my_aux_bn.0.weight', 'my_aux_bn.0.weight'),
])
def test_keys_of_main_and_auxiliary_norms(key, main, indexed):
    assert norms.main_key(key) == main
    assert index_aux_key(key) == indexed
    assert num_aux_in([key]) == {'bn1.aux_bn.0.weight': 1, 'aux_bn.12.act.weight': 13}.get(key, 0)


def test_a_name_that_only_ends_like_an_auxiliary_norm_is_left_as_it_is():
    assert index_aux_key('layer.my_aux_bn.weight') == 'layer.my_aux_bn.weight'
    assert index_aux_key('layer.aux_bn.weight') == 'layer.aux_bn.0.weight'
