"""Checkpoint files: what is read from them, and what of it fits a model."""
import logging
import re
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from timm_advprop import (
    convert_split_norm,
    has_split_norm,
    load_checkpoint,
    norm_route,
    set_norm_route,
    split_state_dict,
)
from timm_advprop.errors import InputError
from timm_advprop.norms import norm_parameters
from timm_advprop.weights import load_read_checkpoint, open_checkpoint, read_checkpoint, weights_digest


@pytest.fixture
def trained(randomize_norms):
    return randomize_norms(timm.create_model('test_resnet_ap')).eval()


@pytest.fixture
def foreign(trained, tmp_path):
    """The checkpoint of a `torch.nn.DataParallel` model, as the reference code and Fast AdvProp write it."""
    state_dict = {f'module.{key.replace("aux_bn.0.", "aux_bn.")}': value for key, value in trained.state_dict().items()}
    assert 'module.bn1.aux_bn.weight' in state_dict
    optimizer = torch.optim.SGD(trained.parameters(), lr=np.float64(.1), momentum=.9)
    path = tmp_path / 'checkpoint.pth.tar'
    torch.save(dict(
        epoch=105,
        state_dict=state_dict,
        acc=np.float32(76.5),
        best_acc=torch.tensor(77.42),
        optimizer=optimizer.state_dict(),
    ), path)
    return str(path)


def assert_equal_models(left, right):
    images = torch.randn(2, 3, 64, 64)
    for route in ('main', 'aux'):
        outputs = []
        for model in (left, right):
            set_norm_route(model.eval(), route)
            outputs.append(model(images))
        assert torch.equal(*outputs)


def test_checkpoint_of_other_advprop_code_loads_and_is_recognised(foreign, trained, caplog):
    model = timm.create_model('test_resnet_ap')
    with caplog.at_level(logging.INFO):
        load_checkpoint(model, foreign)
    assert_equal_models(model, trained)
    norms = len({key.rpartition('aux_bn.')[0] for key in split_state_dict(trained.state_dict())[1]})
    assert f'the reference AdvProp code and Fast AdvProp do: {norms} norms' in caplog.text


def test_timms_own_loader_takes_it_too(foreign, trained, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(torch.load(foreign, weights_only=False)['state_dict'], path)  # timm allows no numpy numbers
    model = timm.create_model('test_resnet_ap', checkpoint_path=str(path))
    assert_equal_models(model, trained)


@pytest.mark.parametrize('num_classes', [1000, 7])
def test_it_serves_as_pretrained_weights(foreign, trained, num_classes):
    state_dict = read_checkpoint(foreign)
    model = timm.create_model(
        'test_resnet_ap', pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=dict(state_dict=state_dict))
    for key, value in split_state_dict(model.state_dict())[1].items():
        assert torch.equal(value, trained.state_dict()[key])


def test_second_auxiliary_norm_starts_from_the_main_norm(foreign, trained):
    model = timm.create_model('test_resnet_ap', num_aux=2)
    load_checkpoint(model, foreign)
    state, source = model.state_dict(), trained.state_dict()
    assert torch.equal(state['bn1.aux_bn.0.weight'], source['bn1.aux_bn.0.weight'])
    assert torch.equal(state['bn1.aux_bn.1.weight'], source['bn1.weight'])


@pytest.mark.parametrize('num_aux', [1, 2])
def test_plain_checkpoint_fills_the_auxiliary_norms_and_says_so(num_aux, trained, tmp_path, caplog):
    path = str(tmp_path / 'plain.safetensors')
    save_file(split_state_dict(trained.state_dict())[0], path)
    model = timm.create_model('test_resnet_ap', num_aux=num_aux)
    with caplog.at_level(logging.INFO):
        load_checkpoint(model, path)
    assert 'auxiliary norms start as copies of the main norms' in caplog.text
    state = model.state_dict()
    for key, value in split_state_dict(state)[1].items():
        assert torch.equal(value, state[re.sub(r'aux_bn\.\d\.', '', key)])


def test_own_checkpoint_loads_into_the_same_model(trained, tmp_path, caplog):
    path = str(tmp_path / 'own.pth')
    torch.save(trained.state_dict(), path)
    model = timm.create_model('test_resnet_ap')
    with caplog.at_level(logging.INFO):
        load_checkpoint(model, path)
    assert_equal_models(model, trained)
    assert 'reference' not in caplog.text and 'copies' not in caplog.text


@pytest.mark.parametrize('name, kwargs, message', [
    ('test_resnet', {}, r'has 1 auxiliary norm\(s\) for each norm, test_resnet has 0: take its \*_ap model, or call '),
    ('test_resnet_ap', dict(num_classes=7), r'does not fit test_resnet_ap: .*fc.weight: torch.Size\(\[1000, '),
    ('test_efficientnet_ap', {}, 'missing keys conv_stem.weight, .* and [0-9]+ more; unexpected keys conv1.0.weight'),
], ids=str)
def test_checkpoint_that_does_not_fit_is_one_line_that_names_the_keys(name, kwargs, message, foreign):
    model = timm.create_model(name, **kwargs)
    with pytest.raises(InputError, match=message) as error:
        load_checkpoint(model, foreign)
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize('name', ['test_resnet', 'test_mambaout'])
def test_advice_for_a_plain_model_holds(name, tmp_path):
    """There is no `*_ap` model of the second one."""
    path = str(tmp_path / 'split.pth')
    torch.save(convert_split_norm(timm.create_model(name), num_aux=2).state_dict(), path)
    model = timm.create_model(name)
    with pytest.raises(InputError, match=r'take its \*_ap model, or call convert_split_norm\(model, num_aux=2\) first'):
        load_checkpoint(model, path)
    assert not has_split_norm(model)
    load_checkpoint(convert_split_norm(model, num_aux=2), path)


def test_model_without_a_cfg_is_named_by_its_class(foreign):
    model = timm.create_model('test_resnet')
    model.pretrained_cfg = None
    with pytest.raises(InputError, match='ResNet has 0'):
        load_checkpoint(model, foreign)


def test_norms_that_lack_their_auxiliary_norm_are_named(trained, tmp_path, caplog):
    path = str(tmp_path / 'part.pth')
    torch.save({key: value for key, value in trained.state_dict().items() if 'bn1.aux_bn' not in key}, path)
    model = timm.create_model('test_resnet_ap')
    load_checkpoint(model, path)
    assert 'lacks' in caplog.text and 'bn1.aux_bn.0' in caplog.text
    assert torch.equal(model.bn1.aux_bn[0].running_var, trained.bn1.running_var)


@pytest.mark.parametrize('strict', [True, False])
def test_more_auxiliary_norms_are_never_dropped_silently(strict):
    state_dict = timm.create_model('test_resnet_ap', num_aux=3).state_dict()
    with pytest.raises(RuntimeError, match='bn1.aux_bn: 2 more auxiliary norms .* num_aux=3'):
        timm.create_model('test_resnet_ap').load_state_dict(state_dict, strict=strict)


def test_more_auxiliary_norms_than_the_model_has_are_refused(trained, tmp_path):
    path = str(tmp_path / 'two.pth')
    torch.save(timm.create_model('test_resnet_ap', num_aux=2).state_dict(), path)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    with pytest.raises(InputError, match='create it with num_aux=2'):
        load_checkpoint(trained, path)
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())


def test_auxiliary_norms_with_and_without_index_are_refused(tmp_path):
    path = str(tmp_path / 'both.pth')
    torch.save({'bn1.aux_bn.weight': torch.ones(3), 'bn1.aux_bn.0.weight': torch.ones(3)}, path)
    with pytest.raises(InputError, match='both with and without an index'):
        read_checkpoint(path)


@pytest.mark.parametrize('index, message', [
    (20000, 'aux_bn.20000: there may be 100 for each norm'), (100, 'aux_bn.100: there may be 100'),
    (99, 'auxiliary norms up to aux_bn.99, and none is aux_bn.1'), (2, 'up to aux_bn.2, and none is aux_bn.1')])
def test_indices_of_auxiliary_norms_have_no_gap_and_a_bound(index, message, trained, tmp_path):
    path = str(tmp_path / 'many.pth')
    torch.save({**trained.state_dict(), f'bn1.aux_bn.{index}.weight': torch.ones(3)}, path)
    with pytest.raises(InputError, match=message):
        read_checkpoint(path)


class Code:
    def __reduce__(self):
        return print, ('this ran',)


@pytest.mark.parametrize('content', [
    Code(), dict(state_dict={'a': torch.ones(1)}, acc=Code()), dict(state_dict=np.array([Code()], dtype=object)),
], ids=['code', 'beside weights', 'in an array'])
def test_no_code_in_a_checkpoint_is_run(content, tmp_path, capsys):
    path = str(tmp_path / 'code.pth')
    torch.save(content, path)
    with pytest.raises(InputError, match='without code'):
        read_checkpoint(path)
    assert 'this ran' not in capsys.readouterr().out


def test_auxiliary_norms_that_a_regime_did_not_train_are_taken_for_copies_of_the_main_ones(tmp_path, caplog):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet_ap').train()
    model(torch.randn(4, 3, 32, 32))  # a vanilla step moves the main statistics alone
    torch.save(model.state_dict(), tmp_path / 'vanilla.pth')
    loaded = timm.create_model('test_resnet_ap')
    with caplog.at_level('INFO'):
        load_checkpoint(loaded, str(tmp_path / 'vanilla.pth'))
    assert 'were not trained' in caplog.text
    state = loaded.state_dict()
    torch.testing.assert_close(state['bn1.aux_bn.0.running_mean'], model.state_dict()['bn1.running_mean'])
    with norm_route(model, 'aux'):
        model(torch.randn(4, 3, 32, 32))
    torch.save(model.state_dict(), tmp_path / 'trained.pth')
    load_checkpoint(loaded, str(tmp_path / 'trained.pth'))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name, kwargs', [
    ('test_vit_ap', {}), ('test_convnext_ap', {}), ('test_resnet_ap', dict(share='statistics'))], ids=str)
def test_untrained_norms_without_statistics_are_known_by_their_values(name, kwargs, tmp_path, caplog):
    torch.manual_seed(0)
    model, path = timm.create_model(name, **kwargs), str(tmp_path / 'vanilla.pth')
    main, aux = norm_parameters(model)
    with torch.no_grad():
        for parameter in main:
            parameter.add_(torch.randn_like(parameter))
    torch.save(model.state_dict(), path)
    loaded = timm.create_model(name, **kwargs)
    with caplog.at_level('INFO'):
        load_checkpoint(loaded, path)
    assert 'were not trained' in caplog.text
    assert all(torch.equal(*pair) for pair in zip(*norm_parameters(loaded)))
    with torch.no_grad():
        aux[0][0] += 1  # one channel is enough
    torch.save(model.state_dict(), path)
    load_checkpoint(loaded, path)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.fixture
def run_checkpoint(trained, tmp_path):
    """A checkpoint of a training run: weights, averaged weights of other values, optimizer, arguments."""
    average = {key: value + 1 for key, value in trained.state_dict().items()}
    path = tmp_path / 'last.pth.tar'
    torch.save(dict(
        epoch=4,
        arch='test_resnet_ap',
        state_dict=trained.state_dict(),
        state_dict_ema=average,
        optimizer=torch.optim.SGD(trained.parameters(), lr=.1).state_dict(),
        args=Namespace(model='test_resnet_ap', regime='advprop', eps=(1., 2.)),
        metric=np.float64(76.5),
    ), path)
    return str(path), average


@pytest.mark.parametrize('use_ema', [True, False])
def test_checkpoint_of_a_run_is_read_once(use_ema, run_checkpoint, trained, monkeypatch):
    path, average = run_checkpoint
    reads, load = [], torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: reads.append(args) or load(*args, **kwargs))
    checkpoint = open_checkpoint(path, use_ema)
    assert len(reads) == 1
    expected = average if use_ema else trained.state_dict()
    assert checkpoint.state_dict.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in checkpoint.state_dict.items())
    assert checkpoint.averaged == use_ema
    assert checkpoint.args == dict(model='test_resnet_ap', regime='advprop', eps=(1., 2.))
    assert (checkpoint.path, checkpoint.epoch) == (path, 4)
    assert checkpoint.raw['optimizer']['param_groups'][0]['lr'] == .1
    for kind, weights in (('state_dict', trained.state_dict()), ('state_dict_ema', average)):
        assert torch.equal(checkpoint.raw[kind]['bn1.weight'], weights['bn1.weight'])


def test_checkpoint_without_averaged_weights_has_its_own(trained, tmp_path):
    path = str(tmp_path / 'run.pth')
    torch.save(dict(state_dict=trained.state_dict(), state_dict_ema=None, epoch=3), path)
    checkpoint = open_checkpoint(path)
    assert not checkpoint.averaged
    assert (checkpoint.args, checkpoint.epoch) == ({}, None)  # not of a timm run
    assert torch.equal(checkpoint.state_dict['bn1.weight'], trained.bn1.weight)


@pytest.mark.parametrize('save, name', [(torch.save, 'weights.pth'), (save_file, 'weights.safetensors')])
def test_weights_alone_say_nothing_of_a_run(save, name, trained, tmp_path):
    save(trained.state_dict(), str(tmp_path / name))
    checkpoint = open_checkpoint(str(tmp_path / name))
    assert (checkpoint.averaged, checkpoint.args, checkpoint.epoch, checkpoint.raw) == (False, {}, None, {})
    assert checkpoint.state_dict.keys() == trained.state_dict().keys()


@pytest.mark.parametrize('content', [[torch.ones(1)], {}, dict(state_dict={}), dict(state_dict=dict(a=1))], ids=str)
def test_other_contents_are_no_checkpoint(content, tmp_path):
    path = str(tmp_path / 'other.pth')
    torch.save(content, path)
    with pytest.raises(InputError, match='is not a checkpoint|neither safetensors nor a PyTorch checkpoint'):
        open_checkpoint(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match='No checkpoint file .*missing.pth'):
        read_checkpoint(str(tmp_path / 'missing.pth'))


def test_plain_model_gets_the_auxiliary_norms_of_a_checkpoint_where_that_is_asked_for(foreign, trained):
    model = timm.create_model('test_resnet')
    load_read_checkpoint(model, read_checkpoint(foreign), foreign, convert=True)
    assert_equal_models(model, trained)


def test_digest_of_the_main_route_is_that_of_the_plain_weights(trained):
    state = trained.state_dict()
    main = split_state_dict(state)[0]
    assert weights_digest(state) == weights_digest(state, 'main') == weights_digest(state, 'clean')
    assert weights_digest(state) == weights_digest(main, 'aux')
    assert weights_digest(state) != weights_digest(state, 'aux')
    assert weights_digest(dict(main, **{'bn1.weight': main['bn1.weight'] + 1})) != weights_digest(main)
