"""One route of a model as a module of pixels, compared with what it is by definition."""
import copy
import pickle

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

import timm_advprop
from timm_advprop import Attack, InputError, norm_route, routed
from timm_advprop.attacks.values import _on_device as per_channel_on_device
from timm_advprop.norms import split_norms

MEAN, STD = (.5, .4, .3), (.2, .3, .25)
LABELS = torch.tensor([0, 3, 1, 2])


@pytest.fixture
def model(randomize_norms):
    model = randomize_norms(timm.create_model('test_resnet_ap', num_classes=5, num_aux=2)).eval()
    model.pretrained_cfg = dict(model.pretrained_cfg, mean=MEAN, std=STD)
    return model


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32)


def normalised(images, mean=MEAN, std=STD):
    mean, std = (torch.tensor(values, dtype=images.dtype).view(3, 1, 1) for values in (mean, std))
    return (images - mean) / std


def routes_of(model):
    return [norm.route for norm in split_norms(model)]


def fgsm(model, images, labels, eps):
    """An attack as libraries have them: of any module that takes images in 0–1."""
    device = next(model.parameters()).device
    given_training = model.training
    model.eval()
    images = images.to(device).detach().requires_grad_()
    gradient = torch.autograd.grad(F.cross_entropy(model(images), labels.to(device)), images)[0]
    if given_training:
        model.train()
    return (images + eps * gradient.sign()).clamp(0, 1).detach()


@pytest.mark.parametrize('route', ['main', 'clean', 'aux', 0, 1, 2])
def test_images_are_normalised_and_pass_the_route(model, images, route):
    with norm_route(model, route):
        expected = model(normalised(images))
    assert torch.equal(routed(model, route)(images), expected)


def test_a_pass_in_inference_mode_leaves_gradients_possible(model, images):
    per_channel_on_device.cache_clear()
    pixels = routed(model)
    with torch.inference_mode():
        pixels(images)
    assert fgsm(pixels, images, LABELS, 8 / 255).ne(images).any()


def test_routes_differ(model, images):
    outputs = [routed(model, route)(images) for route in (0, 1, 2)]
    assert torch.equal(routed(model)(images), outputs[0])
    assert all((one - other).abs().max() > .01 for one, other in zip(outputs, [*outputs[1:], outputs[0]]))


def test_given_normalisation_replaces_the_models(model, images):
    own, black = routed(model, mean=(0, 0, 0), std=(1, 1, 1)), routed(model, mean=(0, 0, 0))
    assert torch.equal(own(images), model(images))
    assert torch.equal(black(images), model(normalised(images, mean=(0, 0, 0))))


def test_route_afterwards_is_what_it_was_for_each_norm(model, images):
    for index, norm in enumerate(split_norms(model)):
        norm.route = index % 3
    before = routes_of(model)
    assert len(set(before)) == 3
    routed(model, 'aux')(images)
    assert routes_of(model) == before
    with pytest.raises(RuntimeError):
        routed(model, 'aux')(images[:, :, 0])
    assert routes_of(model) == before


def test_creation_leaves_the_model_alone(model):
    model.train()
    routed(model, 'aux')
    assert model.training and set(routes_of(model)) == {0}


@pytest.mark.parametrize('route', ['main', 'aux', 2])
def test_an_attack_of_a_library_is_our_own(model, images, route):
    model, images = model.double(), images.double()
    attack = Attack(eps_px=4, alpha_px=4, steps=1, target='none', random_start=0.)
    with norm_route(model, route):
        own, _ = attack(model, normalised(images), LABELS)
    adv = fgsm(routed(model, route), images, LABELS, eps=4 / 255)
    torch.testing.assert_close(normalised(adv), own, atol=1e-6, rtol=0)
    others = [fgsm(routed(model, other), images, LABELS, eps=4 / 255) for other in (0, 1, 2)]
    assert sum(torch.equal(adv, other) for other in others) == 1


# models without the route

@pytest.mark.parametrize('route', ['main', 'clean', 0])
def test_a_plain_model_has_route_main(images, route):
    plain = timm.create_model('test_resnet', num_classes=5).eval()
    plain.pretrained_cfg = dict(plain.pretrained_cfg, mean=MEAN, std=STD)
    assert torch.equal(routed(plain, route)(images), plain(normalised(images)))


@pytest.mark.parametrize('route', ['aux', 1, 'mian'])
def test_a_plain_model_has_no_other_route(route):
    with pytest.raises(InputError, match=rf"ResNet has no split norms, so no route {route!r}: give main"):
        routed(timm.create_model('test_resnet'), route)


@pytest.mark.parametrize('route, message', [
    (3, 'Route 3 needs 3 auxiliary norms, the model has 2'),
    ('axu', "Unknown route 'axu': give main, aux or the number of a norm.$"),
    (-1, 'Unknown route -1'), ('split', 'Route split divides batches in training'),
])
def test_unknown_routes(model, route, message):
    with pytest.raises(InputError, match=message):
        routed(model, route)


def test_unknown_normalisation():
    with pytest.raises(InputError, match='Sequential does not say how its inputs are normalised: pass mean and std'):
        routed(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), mean=MEAN)
    with pytest.raises(InputError, match='std above 0'):
        routed(nn.Flatten(), mean=MEAN, std=(0, 1, 1))


# gradients

@pytest.mark.parametrize('name', ['test_resnet_ap', 'test_efficientnet_ap', 'test_vit_ap'])
def test_gradients_are_of_the_route_with_checkpointing_too(name, images, randomize_norms):
    model = randomize_norms(timm.create_model(name, num_classes=5)).eval()
    images = F.interpolate(images, model.pretrained_cfg['input_size'][1:]).requires_grad_()

    def gradient(route):
        return torch.autograd.grad(routed(model, route)(images).square().sum(), images)[0]

    expected = {route: gradient(route) for route in ('main', 'aux')}
    model.set_grad_checkpointing()
    flags = [module for module in model.modules() if getattr(module, 'grad_checkpointing', False)]
    assert flags and not torch.allclose(expected['main'], expected['aux'], rtol=.1)
    for route in expected:
        torch.testing.assert_close(gradient(route), expected[route])
    assert all(module.grad_checkpointing for module in flags)


def test_a_plain_model_goes_on_checkpointing(images):
    plain = timm.create_model('test_resnet').eval()
    plain.set_grad_checkpointing()
    calls = []
    plain.layer2.register_forward_hook(lambda *args: calls.append(plain.grad_checkpointing))
    plain.layer2[0].conv1.register_forward_hook(lambda *args: calls.append('again'))
    routed(plain)(images.requires_grad_()).sum().backward()
    assert calls.count('again') == 2  # once in the backward pass


def test_inside_of_a_context_the_whole_attack_is_on_the_route(model, images):
    # what a model has to do that checkpoints by itself
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.pretrained_cfg = model, model.pretrained_cfg

        def forward(self, images):
            return checkpoint(self.model, images, use_reentrant=False)

    expected = fgsm(routed(model, 'aux'), images, LABELS, .1)
    own = Checkpointed().eval()
    with norm_route(own, 'aux'):
        assert torch.equal(fgsm(routed(own, 'aux'), images, LABELS, .1), expected)


# a module as any other

def test_mode_is_the_models(model):
    adapter = routed(model)
    assert not adapter.training
    model.train()
    assert adapter.training
    adapter.eval()
    assert not model.training and not any(module.training for module in adapter.modules())
    adapter.train()
    assert all(module.training for module in model.modules())


def test_a_library_leaves_single_modules_in_eval_mode_alone(model, images):
    # one that restores train mode only where the module that it got was in train mode
    adapter = routed(model.train())
    model.eval()
    fgsm(adapter, images, LABELS, .1)
    assert not any(module.training for module in model.modules())


def test_state_is_the_models(model):
    adapter = routed(model, 'aux')
    assert list(adapter.state_dict()) == [f'model.{name}' for name in model.state_dict()]
    assert [*adapter.parameters()] == [*model.parameters()] and not {*adapter.buffers()} - {*model.buffers()}


@pytest.mark.parametrize('copy_of', [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_apart(model, images, copy_of):
    adapter = routed(model, 'aux')
    expected = adapter(images)
    twin = copy_of(adapter)
    assert torch.equal(twin(images), expected)
    with torch.no_grad():
        for norm in split_norms(model):
            norm.aux_bn[0].weight.zero_()
    assert not torch.equal(adapter(images), expected) and torch.equal(twin(images), expected)


@pytest.mark.parametrize('moved', ['model', 'adapter'])
def test_model_and_adapter_move_together(model, images, moved):
    adapter = routed(model, 'aux')
    (model if moved == 'model' else adapter).double()
    with norm_route(model, 'aux'):
        expected = model(normalised(images.double()))
    assert adapter(images.double()).dtype == torch.float64
    torch.testing.assert_close(adapter(images.double()), expected)
    assert adapter.to('meta')(images.to('meta').double()).shape == (4, 5)


def test_logits_of_autocast_are_float32(model, images):
    adapter = routed(model, 'aux')
    with torch.autocast('cpu', dtype=torch.bfloat16), norm_route(model, 'aux'):
        assert model(normalised(images)).dtype == torch.bfloat16
        assert adapter(images).dtype == torch.float32


def test_some_of_the_classes(model, images):
    keep = torch.tensor([4, 0, 2])
    assert torch.equal(routed(model, 'aux', output_indices=keep)(images), routed(model, 'aux')(images)[:, keep])


def test_the_first_of_several_outputs_counts(images):
    class Two(nn.Flatten):
        def forward(self, images):
            return super().forward(images), None

    assert torch.equal(routed(Two(), mean=(0, 0, 0), std=(1, 1, 1))(images), images.flatten(1))


@pytest.mark.parametrize('compiled', [
    lambda model, route, backend: routed(torch.compile(model, backend=backend), route),
    lambda model, route, backend: torch.compile(routed(model, route), backend=backend),
], ids=['inside', 'outside'])
@pytest.mark.slow
def test_compiled(model, images, compiled):
    graphs = CompileCounter()
    adapters = {route: compiled(model, route, graphs) for route in ('main', 'aux')}
    for route in ('main', 'aux', 'main', 'aux'):
        torch.testing.assert_close(adapters[route](images), routed(model, route)(images))
    assert graphs.frame_count == 2 and set(routes_of(model)) == {0}


def test_it_belongs_to_the_package():
    assert timm_advprop.routed is routed and 'routed' in timm_advprop.__all__
