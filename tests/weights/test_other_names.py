"""Checkpoints of models that were wrapped, and of EfficientNet-PyTorch."""
import logging

import pytest
import timm
import torch
import torch.nn as nn
from timm.task import ClassificationTask

from timm_advprop import AdvPropTask, Attack, load_checkpoint, set_norm_route
from timm_advprop.errors import InputError
from timm_advprop.weights import open_checkpoint
from timm_advprop.weights.other_names import rename_efficientnet, unwrap


class Module(nn.Module):
    """What a LightningModule is to its state dict."""
    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


@pytest.fixture
def trained(randomize_norms):
    return randomize_norms(timm.create_model('test_resnet_ap', num_classes=5)).eval()


def advprop_task(model):
    return AdvPropTask(model, nn.CrossEntropyLoss(), sources=Attack(eps_px=1, steps=1))


def lightning(module):
    """A checkpoint as Lightning's trainer writes it."""
    return {
        'epoch': 3, 'global_step': 100, 'pytorch-lightning_version': '2.5.0', 'state_dict': module.state_dict(),
        'loops': {'fit_loop': {'state_dict': {}}}, 'lr_schedulers': [], 'optimizer_states': [],
        'callbacks': {"ModelCheckpoint{'monitor': 'val_acc'}": {'best_model_score': torch.tensor(.5)}},
        'hparams_name': 'kwargs', 'hyper_parameters': {'lr': .1, 'model': 'anything'},
    }


WRAPPED = {
    'lightning, model': lambda model: lightning(Module(model=model)),
    'lightning, model beside others': lambda model: lightning(Module(model=model, metric=nn.Linear(1, 1))),
    'lightning, compiled model': lambda model: lightning(Module(model=Module(_orig_mod=model))),
    'lightning, task': lambda model: lightning(Module(task=advprop_task(model))),
    'lightning, task beside others': lambda model: lightning(Module(metric=nn.Linear(1, 1), task=advprop_task(model))),
    'weights of a module with a model': lambda model: Module(model=model).state_dict(),
    'task': lambda model: advprop_task(model).state_dict(),
    'task of timm': lambda model: ClassificationTask(model, nn.CrossEntropyLoss()).state_dict(),
    'task in DDP': lambda model: Module(module=Module(trainable_module=Module(module=model))).state_dict(),
    'task in a checkpoint': lambda model: dict(state_dict=advprop_task(model).state_dict(), epoch=1),
}


@pytest.mark.parametrize('kind', WRAPPED)
def test_a_wrapped_model_loads_and_is_recognised(kind, trained, tmp_path, caplog):
    content = WRAPPED[kind](trained)
    path = str(tmp_path / 'wrapped.ckpt')
    torch.save(content, path)
    model = timm.create_model('test_resnet_ap', num_classes=5).eval()
    with caplog.at_level(logging.INFO):
        load_checkpoint(model, path)
    images = torch.randn(2, 3, 64, 64)
    for route in ('main', 'aux'):
        assert torch.equal(*(set_norm_route(each.eval(), route) or each(images) for each in (model, trained)))
    prefix = 'model' if 'model' in kind and 'task' not in kind else 'trainable_module'
    assert f'{prefix}' in caplog.text and 'holds a model under ' in caplog.text
    assert ('2 other entries are left out: metric.weight, metric.bias' in caplog.text) == ('beside' in kind)


@pytest.mark.parametrize('use_ema', [True, False])
def test_a_task_has_averaged_weights_too(use_ema, trained, tmp_path):
    task = ClassificationTask(trained, nn.CrossEntropyLoss())
    task.setup_ema()
    with torch.no_grad():
        trained.fc.weight.add_(1)
    torch.save(task.state_dict(), tmp_path / 'task.pth')
    checkpoint = open_checkpoint(str(tmp_path / 'task.pth'), use_ema)
    expected = task.trainable_module_ema.module if use_ema else trained
    assert checkpoint.averaged == use_ema
    assert checkpoint.state_dict.keys() == expected.state_dict().keys()
    assert torch.equal(checkpoint.state_dict['fc.weight'], expected.fc.weight)


def test_a_model_is_what_everything_lies_under():
    state = {'model.weight': torch.ones(1), 'head.weight': torch.ones(1)}
    assert unwrap(state).state_dict == state  # it may be a layer of that name
    assert unwrap(state, of_lightning=True)[:3] == ({'weight': torch.ones(1)}, 'model.', ['head.weight'])


class Hyperparameters(dict):
    pass


def test_code_in_a_checkpoint_is_named_and_not_run(trained, tmp_path):
    content = dict(lightning(Module(model=trained)), hyper_parameters=Hyperparameters(lr=.1))
    torch.save(content, tmp_path / 'code.ckpt')
    with pytest.raises(InputError, match=r'without code \(.*: it names .*Hyperparameters\)\.'):
        open_checkpoint(str(tmp_path / 'code.ckpt'))


# Layers of EfficientNet-PyTorch, in the order in which they stand in its state dicts: also timm's.
SQUEEZED = ('_depthwise_conv', '_bn1', '_se_reduce', '_se_expand', '_project_conv', '_bn2')
LAYERS = {'first': SQUEEZED, 'other': ('_expand_conv', '_bn0', *SQUEEZED)}


def of_efficientnet_pytorch(model, num_blocks, num_first):
    """The state dict of a model of timm's as EfficientNet-PyTorch would write it: the same values in the same order."""
    names = ['_conv_stem', '_bn0']
    for number in range(num_blocks):
        names += [f'_blocks.{number}.{layer}' for layer in LAYERS['first' if number < num_first else 'other']]
    names += ['_conv_head', '_bn1', '_fc']
    state_dict = model.state_dict()
    layers = list(dict.fromkeys(key.rpartition('.')[0] for key in state_dict))
    assert len(layers) == len(names)
    name_of = dict(zip(layers, names))
    return {f'{name_of[key.rpartition(".")[0]]}.{key.rpartition(".")[2]}': value for key, value in state_dict.items()}


@pytest.mark.parametrize('name, num_blocks, num_first', [('tf_efficientnet_b0', 16, 1), ('tf_efficientnet_b4', 32, 2)])
def test_layers_of_efficientnet_pytorch_get_timms_names(name, num_blocks, num_first):
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=5)
    expected = model.state_dict()
    renamed = rename_efficientnet(of_efficientnet_pytorch(model, num_blocks, num_first))
    assert list(renamed) == list(expected)
    assert all(value is expected[key] or value.shape == expected[key].shape for key, value in renamed.items())
    assert rename_efficientnet(renamed) == renamed


def test_a_checkpoint_of_efficientnet_pytorch_loads(randomize_norms, tmp_path, caplog):
    source = randomize_norms(timm.create_model('tf_efficientnet_b0', num_classes=5)).eval()
    path = str(tmp_path / 'efficientnet-b0.pth')
    state_dict = of_efficientnet_pytorch(source, 16, 1)
    assert state_dict['_blocks.0._project_conv.weight'].shape[:2] == (16, 32)
    torch.save(state_dict, path)
    model = timm.create_model('efficientnet_b0_ap', num_classes=5).eval()
    with caplog.at_level(logging.INFO):
        load_checkpoint(model, path)
    assert 'as EfficientNet-PyTorch does' in caplog.text
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(images), source(images))
    with pytest.raises(InputError, match='does not fit test_resnet: missing keys'):
        load_checkpoint(timm.create_model('test_resnet'), path)


def test_a_damaged_checkpoint_of_that_kind_keeps_its_names():
    state_dict = {'_conv_stem.weight': torch.ones(1), '_blocks.0._project_conv.weight': torch.tensor(1.),
                  '_blocks.7._bn1.bias': torch.ones(1), '_blocks': torch.ones(1), '_other.weight': torch.ones(1)}
    assert set(rename_efficientnet(state_dict)) >= {'conv_stem.weight', 'blocks.0.0.conv_pw.weight', '_other.weight'}
