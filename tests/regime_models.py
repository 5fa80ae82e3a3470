"""Models, batches and reference implementations for the tests of regimes."""
from copy import deepcopy

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import timm_advprop
from timm_advprop import has_split_norm

CLASSES = 5
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# Strengths that are exact in binary, so that a reference in other precision or order finds the same images.
WEAK, STRONG, ALPHA = 255 / 256, 255 / 64, 255 / 256
NAMES = ['test_resnet_ap', 'test_efficientnet_ap']
DETERMINISTIC = dict(target='none', random_start=0.)


def split_model(name='test_resnet_ap', dtype=torch.float64, seed=0, **kwargs):
    """A split model in which no two norms are alike."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=CLASSES, **kwargs)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for value, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(value, low, high)
    return model.to(dtype)


def tiny_model(num_aux=1, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    return timm_advprop.convert_split_norm(model, num_aux).to(dtype)


def make_batch(size=6, dtype=torch.float64, seed=1):
    """Normalised images that fill their bounds, and labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(size, 3, 32, 32, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)
    return (pixels * 2 - 1).to(dtype), torch.randint(0, CLASSES, (size,), generator=generator)


def plain_twin(model, route):
    """The stock timm model that one route of a split model is, made by key names alone."""
    aux = f'aux_bn.{route - 1}.'
    state = {}
    for key, value in model.state_dict().items():
        if '.aux_bn.' not in key:
            state.setdefault(key, value)
        elif aux in key and route > 0:
            state[key.replace(aux, '')] = value
    name = model.pretrained_cfg['architecture'].removesuffix('_ap')
    twin = timm.create_model(name, num_classes=CLASSES).to(next(model.parameters()).dtype)
    assert not has_split_norm(twin)
    twin.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True)
    return twin


def hand_attack(model, images, target, eps_px, steps, alpha_px=ALPHA, sign=1, training=False):
    """L∞ PGD without a random start, for images normalised by mean and std 0.5."""
    model = deepcopy(model).train(training)
    eps, alpha = eps_px / 255 / 0.5, alpha_px / 255 / 0.5
    delta = torch.zeros_like(images)
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        F.cross_entropy(model(images + delta), target, reduction='sum').backward()
        delta = (delta + sign * alpha * delta.grad.sign()).clamp(-eps, eps).detach()
        delta = (images + delta).clamp(-1, 1) - images
    return images + delta


def snapshot(model):
    return dict(
        state={key: value.clone() for key, value in model.state_dict().items()},
        training={name: module.training for name, module in model.named_modules()},
        track={name: getattr(module, 'track_running_stats', None) for name, module in model.named_modules()},
        route={name: (getattr(module, 'route', None), getattr(module, 'split_sizes', None))
               for name, module in model.named_modules()},
        requires_grad={name: parameter.requires_grad for name, parameter in model.named_parameters()},
        grad={name: None if parameter.grad is None else parameter.grad.clone()
              for name, parameter in model.named_parameters()},
    )


def assert_unchanged(model, before):
    after = snapshot(model)
    for part in ('training', 'track', 'route', 'requires_grad'):
        assert after[part] == before[part], part
    for part in ('state', 'grad'):
        for name, value in before[part].items():
            same = after[part][name] is None if value is None else torch.equal(after[part][name], value)
            assert same, f'{part} of {name}'


def gradients_of(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_all_close(actual, expected, **tolerances):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f'{name}: {text}', **tolerances)
