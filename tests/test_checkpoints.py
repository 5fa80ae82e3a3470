import logging
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from timm_advprop import load_checkpoint, norm_route, set_norm_route, split_state_dict
from timm_advprop.checkpoints import read_checkpoint
from timm_advprop.errors import InputError


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
    for route in ('clean', 'aux'):
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
    ('test_resnet', {}, r'has 1 auxiliary norm\(s\) for each norm, test_resnet has 0: take the model test_resnet_ap\.'),
    ('test_resnet_ap', dict(num_classes=7), r'does not fit test_resnet_ap: .*fc.weight: torch.Size\(\[1000, '),
    ('test_efficientnet_ap', {}, 'missing keys conv_stem.weight, .* and [0-9]+ more; unexpected keys conv1.0.weight'),
], ids=str)
def test_checkpoint_that_does_not_fit_is_one_line_that_names_the_keys(name, kwargs, message, foreign):
    model = timm.create_model(name, **kwargs)
    with pytest.raises(InputError, match=message) as error:
        load_checkpoint(model, foreign)
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize('base, advice', [
    ('tf_efficientnet_b0', 'take the model efficientnet_b0_ap'),  # timm's own tf_efficientnet_b0_ap is a plain model
    ('efficientnet_b0', r'call convert_split_norm\(model, num_aux=1\) first'),
    ('beit_base_patch16_224', r'call convert_split_norm\(model, num_aux=1\) first'),
])
def test_advice_names_a_model_that_exists(base, advice, foreign):
    with torch.device('meta'):
        model = timm.create_model(base)
    with pytest.raises(InputError, match=advice):
        load_checkpoint(model, foreign)


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
