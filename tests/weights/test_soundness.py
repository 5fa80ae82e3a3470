"""Published tensors that are no weights: nothing is loaded, and the tensor is named."""
import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import timm_advprop
from tests.hub.publishing import error_line
from timm_advprop.cli.hub import main as hub_main
from timm_advprop.errors import InputError
from timm_advprop.norms import split_state_dict


@pytest.fixture
def publish(tmp_path):
    """A function that writes a publication whose tensors were changed, and returns its folder."""
    def write(changed=None, num_aux=1):
        state_dict = timm.create_model('test_resnet_ap', num_classes=3).state_dict()
        for key, value in (changed or {}).items():
            state_dict[key] = value(state_dict[key]) if callable(value) else value
        main, aux = split_state_dict(state_dict)
        save_file(main, tmp_path / 'model.safetensors')
        save_file(aux, tmp_path / 'aux.safetensors')
        about = dict(timm_advprop=dict(num_aux=1)) if num_aux else {}
        (tmp_path / 'config.json').write_text(json.dumps(dict(architecture='test_resnet', num_classes=3, **about)))
        return str(tmp_path)
    return write


def with_first(number):
    def change(value):
        value = value.clone()
        value.view(-1)[0] = number
        return value
    return change


@pytest.mark.parametrize('key, change, words', [
    ('fc.weight', with_first(float('nan')), 'model.safetensors of .*: fc.weight has values that are not finite'),
    ('fc.weight', with_first(float('-inf')), 'fc.weight has values that are not finite'),
    ('fc.bias', lambda value: with_first(float('inf'))(value).half(), 'fc.bias has values that are not finite'),
    ('bn1.running_var', with_first(-.1), 'bn1.running_var has variances below 0'),
    ('bn1.aux_bn.0.running_var', with_first(-.1), 'aux.safetensors of .*: bn1.aux_bn.0.running_var has variances'),
    ('bn1.aux_bn.0.weight', with_first(float('nan')), 'aux.safetensors of .*: bn1.aux_bn.0.weight has values that'),
    ('fc.weight', torch.Tensor.cfloat, 'fc.weight is complex'),
    ('fc.weight', torch.Tensor.int, 'fc.weight is of type int32'),
    ('fc.weight', torch.Tensor.char, 'fc.weight is of type int8'),
    ('bn1.weight', torch.Tensor.bool, 'bn1.weight is of type bool'),
    ('bn1.aux_bn.0.weight', torch.Tensor.int, 'bn1.aux_bn.0.weight is of type int32'),
])
def test_what_is_no_weight_is_refused(publish, tmp_path, capsys, key, change, words):
    folder = publish({key: change})
    with pytest.raises(InputError, match=words):
        timm_advprop.create_model(f'local-dir:{folder}')
    assert key in error_line(capsys, hub_main, ['pull', f'local-dir:{folder}', '--to', f'{folder}/x.safetensors'])
    assert not (tmp_path / 'x.safetensors').exists()


def test_a_plain_model_is_checked_too(publish):
    folder = publish({'fc.weight': torch.Tensor.int}, num_aux=0)
    with pytest.raises(InputError, match='fc.weight is of type int32'):
        timm_advprop.create_model(f'local-dir:{folder}', num_aux=0)


def test_other_types_of_weights_are_converted(publish):
    folder = publish({'fc.weight': torch.Tensor.bfloat16, 'fc.bias': torch.Tensor.double,
                      'bn1.num_batches_tracked': torch.tensor(99.5)})  # as averages of checkpoints have it
    state = timm_advprop.create_model(f'local-dir:{folder}').state_dict()
    assert (state['fc.weight'].dtype, state['fc.bias'].dtype) == (torch.float32, torch.float32)
    assert state['bn1.num_batches_tracked'] == 99
