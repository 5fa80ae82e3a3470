"""Models, batches and reference implementations for the tests of regimes."""
from contextlib import contextmanager
from copy import deepcopy

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import timm_advprop
from timm_advprop import has_split_norm
from timm_advprop.norms import num_aux_norms
from timm_advprop.regimes import RegimeSettings, create_task

CLASSES = 5
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# Strengths that are exact in binary, so that a reference in other precision or order finds the same images.
WEAK, STRONG, ALPHA = 255 / 256, 255 / 64, 255 / 256
NAMES = ['test_resnet_ap', 'test_efficientnet_ap']
DETERMINISTIC = dict(target='none', random_start=0.)


def task_of(regime, model, criterion=None, **flags):
    """The task that a command line asks for, with values by the names of its flags."""
    settings = RegimeSettings.from_values(dict(regime=regime, **flags))
    return create_task(settings, model, criterion, verbose=False, **HALF)


def negative(model, images, target):
    """A source that is as easy to check as to write: negatives, with the next label."""
    return -images, (target + 1) % CLASSES


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
                if value is not None:
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


def plain_twins(model):
    """A stock timm model in train mode for each route."""
    return [plain_twin(model, route).train() for route in range(num_aux_norms(model) + 1)]


def hand_attack(model, images, target, eps_px, steps, alpha_px=ALPHA, sign=1, training=False, loss=F.cross_entropy):
    """L∞ PGD without a random start, for images normalised by mean and std 0.5."""
    model = deepcopy(model).train(training)
    eps, alpha = eps_px / 255 / 0.5, alpha_px / 255 / 0.5
    delta = torch.zeros_like(images)
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        loss(model(images + delta), target).backward()
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


def assert_step_equals_plain_models(model, twins, parts, weights, result, criterion=F.cross_entropy):
    """A step's loss, gradients and statistics are those of one plain model for each route, which sees one part.

    Args:
        model: The model after the step's forward pass.
        twins: `plain_twins` of the model as it was before the step.
        parts: Images and target of each route.
        weights: Weight of the loss of each part.
        result: What the task returned.
        criterion: Loss of a part.

    Returns:
        The loss of each part, detached.
    """
    result['loss'].backward()
    losses = [criterion(twin(images), target) for twin, (images, target) in zip(twins, parts, strict=True)]
    loss = sum(weight * part_loss for weight, part_loss in zip(weights, losses, strict=True))
    loss.backward()
    torch.testing.assert_close(result['loss'].detach(), loss.detach())
    gradients = [gradients_of(twin) for twin in twins]
    norms = {name.split('aux_bn.')[0] for name in model.state_dict() if 'aux_bn.' in name}
    expected = {}
    for name, of_main in gradients[0].items():
        prefix, leaf = name.rsplit('.', 1)
        if f'{prefix}.' in norms:
            expected[name] = of_main
            expected.update({f'{prefix}.aux_bn.{i}.{leaf}': values[name] for i, values in enumerate(gradients[1:])})
        else:
            expected[name] = sum(values[name] for values in gradients)
    assert_all_close(gradients_of(model), expected, rtol=1e-7, atol=1e-10)
    for route, twin in enumerate(twins):
        assert_all_close(plain_twin(model, route).state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-12)
    return [part_loss.detach() for part_loss in losses]


def percent_right(output, target):
    return 100 * (output.argmax(1) == target).double().mean().item()


@contextmanager
def recorded_batches(module):
    """The batches that pass a module, in order."""
    batches = []
    handle = module.register_forward_pre_hook(lambda module, args: batches.append(args[0].detach().clone()))
    yield batches
    handle.remove()


def toy_problem(count=16, classes=4):
    """Images that show one of four patterns under noise, and their labels."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(count) % classes
    pattern = F.interpolate(torch.randn(classes, 3, 4, 4, generator=generator), 32)[target]
    images = (0.3 * pattern + 0.1 * torch.randn(count, 3, 32, 32, generator=generator)).clamp(-1, 1)
    return images, target
