"""Models, batches and reference implementations for the tests of norms."""
import re
from copy import deepcopy

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d

from timm_advprop.norms import convert_split_norm, num_aux_norms

NUM_CLASSES = 5
AUX_KEY = re.compile(r'(.*?)aux_bn\.(\d+)\.(.*)')
NORM_TENSORS = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


def create_small_net():
    """A network with every kind of batch norm that can be split in one process."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, bias=False),
        BatchNormAct2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, NUM_CLASSES),
    )


NETS = {
    'small_net': create_small_net,
    'test_resnet': lambda: timm.create_model('test_resnet', num_classes=NUM_CLASSES),
    'test_efficientnet': lambda: timm.create_model('test_efficientnet', num_classes=NUM_CLASSES),
}


def make_batch(size=8, **kwargs):
    return torch.randn(size, 3, 32, 32, **kwargs), torch.randint(NUM_CLASSES, (size,))


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal_states(left, right):
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def main_key(key):
    """The main norm's key for the key of an auxiliary norm, any other key as it is."""
    match = AUX_KEY.fullmatch(key)
    return match[1] + match[3] if match else key


def norm_index(key):
    """Route that a state-dict key belongs to: i for the i-th auxiliary norm, 0 for all that a plain model has."""
    match = AUX_KEY.fullmatch(key)
    return int(match[2]) + 1 if match else 0


def aux_equals_main(model):
    state = model.state_dict()
    aux = [key for key in state if norm_index(key)]
    return bool(aux) and all(torch.equal(state[key], state[main_key(key)]) for key in aux)


def split_with_own_norms(plain, randomize_norms, num_aux=1):
    """A split copy of a plain model, each of its norms different from the others."""
    return randomize_norms(convert_split_norm(deepcopy(plain), num_aux))


def plain_models_of(split, plain):
    """Plain models that carry the main norms, the first auxiliary norms, … of a split model, and all else of it."""
    state = split.state_dict()
    models = []
    for index in range(1 + num_aux_norms(split)):
        carried = {main_key(key): value for key, value in state.items() if norm_index(key) == index}
        model = deepcopy(plain)
        model.load_state_dict({key: carried.get(key, state[key]) for key in plain.state_dict()})
        models.append(model.train(split.training))
    return models


def train_step(model, images, target):
    model.zero_grad()
    output = model(images)
    F.cross_entropy(output, target).backward()
    return output


def named_grads(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}
