"""`folded`: the same function of the images, fewer operations, and nothing of it left behind."""
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import timm_advprop
from timm_advprop import convert_split_norm, norm_route, set_norm_route
from timm_advprop.norms import batch_statistics, folded, split_norms

pytestmark = pytest.mark.usefixtures('one_thread')

MANY = 10 ** 6  # passes: every convolution has fewer weights than it makes values then


class Shortcut(nn.Module):
    """A convolution whose output a norm takes, and a shortcut, too, where asked for."""

    def __init__(self, shortcut=False, runs=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.shortcut, self.runs = shortcut, runs

    def forward(self, x):
        for _ in range(self.runs):
            y = self.conv(x)
            x = self.norm(y) + (y if self.shortcut else 0)
        return x.flatten(1)


class TwoPlaces(nn.Module):
    """A convolution that runs in two places, or a norm that does."""

    def __init__(self, twice):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
        self.twice = twice

    def forward(self, x):
        y = self.norm(self.conv(x))
        return (y + (self.conv(x) if self.twice == 'conv' else self.norm(self.other(x)))).flatten(1)


def randomised(model):
    """A model in eval mode and double precision without gradients, all of whose norms differ."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.double().eval().state_dict().items():
        if value.is_floating_point() and ('bn' in name or 'norm' in name):
            value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5)
    return model.requires_grad_(False)


def images_of(size=32, num_images=2):
    return torch.randn(num_images, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def output_and_gradient(model, images):
    images = images.clone().requires_grad_()
    output = model(images)
    return output.detach(), torch.autograd.grad(output.square().sum(), images)[0]


def folded_convolutions(model, images, num_passes=MANY):
    """Names of the convolutions that have other weights inside of the block."""
    before = dict(model.named_parameters(remove_duplicate=False))
    with folded(model, images, num_passes):
        return {name.rpartition('.')[0] for name, module in model.named_modules()
                for name, value in module.named_parameters(prefix=name, recurse=False) if value is not before.get(name)}


@pytest.mark.parametrize('name, num_folded', [
    ('test_resnet', 15), ('test_efficientnet', 13), ('mobilenetv3_small_050', 34), ('repvgg_a0', 44),
    ('densenet121', 59)])
@pytest.mark.parametrize('route', ['plain', 'main', 1, 2])
def test_a_folded_model_computes_what_it_did(name, num_folded, route):
    model = timm.create_model(name, num_classes=5)
    if route != 'plain':
        set_norm_route(convert_split_norm(model, num_aux=2), route)
    model, images = randomised(model), images_of()
    plain = output_and_gradient(model, images)
    assert len(folded_convolutions(model, images)) == num_folded
    with folded(model, images, MANY):
        torch.testing.assert_close(output_and_gradient(model, images), plain)
    assert all(torch.equal(*pair) for pair in zip(output_and_gradient(model, images), plain))


@pytest.mark.parametrize('share', ['none', 'statistics', 'statistics-of-main'])
def test_routes_that_share_statistics_are_folded_by_their_own_weights(share):
    model = timm.create_model('test_resnet', num_classes=5)
    model, images = randomised(convert_split_norm(model, share=share)), images_of()
    for route in ('main', 'aux'):
        with norm_route(model, route):
            plain = output_and_gradient(model, images)
            with folded(model, images, MANY):
                torch.testing.assert_close(output_and_gradient(model, images), plain)
            assert len(folded_convolutions(model, images)) == 15


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('conv, norm, shape', [
    (nn.Conv1d, nn.BatchNorm1d, (4, 3, 9)), (nn.Conv2d, nn.BatchNorm2d, (4, 3, 9, 9)),
    (nn.Conv3d, nn.BatchNorm3d, (4, 3, 5, 5, 5))], ids=['1d', '2d', '3d'])
def test_every_kind_of_convolution_with_and_without_bias(conv, norm, shape, bias):
    model = randomised(nn.Sequential(conv(3, 4, 3, bias=bias), norm(4), nn.ReLU()))
    model[1].load_state_dict({name: value + 0.5 if value.is_floating_point() else value
                              for name, value in model[1].state_dict().items()})
    images = torch.randn(shape, dtype=torch.float64)
    plain = output_and_gradient(model, images)
    assert folded_convolutions(model, images) == {'0'}
    with folded(model, images, 1):
        torch.testing.assert_close(output_and_gradient(model, images), plain)


@pytest.mark.parametrize('model', [
    Shortcut(shortcut=True), Shortcut(runs=2), TwoPlaces('conv'), TwoPlaces('norm')],
    ids=['taken twice', 'run twice', 'conv twice', 'norm twice'])
def test_an_output_that_others_take_is_left(model):
    assert folded_convolutions(randomised(Shortcut()), images_of()) == {'conv'}
    model, images = randomised(model), images_of()
    plain = output_and_gradient(model, images)
    assert folded_convolutions(model, images) == set()
    with folded(model, images, MANY):
        assert all(torch.equal(*pair) for pair in zip(output_and_gradient(model, images), plain))


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_a_checkpointed_block_computes_what_it_did(use_reentrant):
    class Net(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=use_reentrant)

    model, images = randomised(Net(Shortcut(), nn.Unflatten(1, (3, 32, 32)), Shortcut(shortcut=True))), images_of()

    def loss_and_gradient():
        inputs = images.clone().requires_grad_()
        loss = model(inputs).square().sum()
        loss.backward()
        return loss.detach(), inputs.grad

    plain = loss_and_gradient()
    with folded(model, images, MANY):
        torch.testing.assert_close(loss_and_gradient(), plain)
    assert folded_convolutions(model, images) == (set() if use_reentrant else {'0.conv'})


class PreActivation(nn.Module):
    """A block whose sum is made in place, before the norm of the next one."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv1(x)
        y += x
        return self.conv2(self.norm(y)).flatten(1)


@pytest.mark.parametrize('model', [
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)), PreActivation()],
    ids=['activation', 'in place', 'sum in place'])
def test_what_comes_between_convolution_and_norm_is_seen(model):
    model, images = randomised(model), images_of()
    plain = output_and_gradient(model, images)
    assert folded_convolutions(model, images) == set()
    with folded(model, images, MANY):
        assert all(torch.equal(*pair) for pair in zip(output_and_gradient(model, images), plain))


@pytest.mark.parametrize('model, passes, expected', [
    (nn.Conv2d(3, 4, 3, bias=False), 1, {'0'}), (nn.Conv2d(3, 4, 9, bias=False), 1, set()),
    (nn.Conv2d(3, 4, 9, bias=False), 5, {'0'})], ids=['few', 'many', 'passes'])
def test_a_convolution_of_more_weights_than_values_is_left(model, passes, expected):
    # 10 × 10 pixels: 8 × 8 × 4 values an image and 108 weights, or 2 × 2 × 4 values and 972 weights
    model, images = randomised(nn.Sequential(model, nn.BatchNorm2d(4))), images_of(10, num_images=13)
    assert folded_convolutions(model, images, passes) == expected
    assert folded_convolutions(model, images[:2], passes) == (expected if passes == 1 else set())


def test_parameters_and_methods_are_back_also_after_an_error():
    model, images = randomised(timm.create_model('test_resnet_ap')), images_of()
    set_norm_route(model, 'aux')
    before, plain = dict(model.named_parameters()), output_and_gradient(model, images)
    with pytest.raises(KeyError), folded(model, images, MANY):
        raise KeyError
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(after[name] is value for name, value in before.items())
    assert not any('forward' in vars(module) for module in model.modules())
    assert all(torch.equal(*pair) for pair in zip(output_and_gradient(model, images), plain))


def test_another_route_inside_is_refused():
    model, images = randomised(timm.create_model('test_resnet_ap')), images_of()
    with norm_route(model, 'aux'), folded(model, images, MANY):
        with norm_route(model, 'main'), pytest.raises(RuntimeError, match='choose it before'):
            model(images)
        model(images)


def observe(model):
    model.layer1.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize('change', [
    observe,
    lambda model: model.requires_grad_(True),
    lambda model: model.train(),
    lambda model: model.compile(backend='eager'),
    lambda model: [weight_norm(module) for module in model.modules() if isinstance(module, nn.Conv2d)],
], ids=['hook', 'trained', 'train mode', 'compiled', 'parametrised'])
def test_what_cannot_be_folded_is_left(change):
    model = randomised(timm.create_model('test_resnet_ap'))
    set_norm_route(model, 'aux')
    change(model)
    assert folded_convolutions(model, images_of()) == set()


def test_batch_statistics_are_no_constants():
    model = randomised(timm.create_model('test_resnet_ap'))
    with batch_statistics(model):
        assert folded_convolutions(model, images_of()) == set()


def test_norms_that_divide_a_batch_have_no_constants():
    model = randomised(timm.create_model('test_resnet_ap'))
    outer = nn.Sequential(model).train()
    set_norm_route(outer, 'split')
    model.eval()
    assert folded_convolutions(model, images_of()) == set()
    outer.eval()
    assert len(folded_convolutions(model, images_of())) == 15


def test_a_model_is_looked_at_once_and_again_when_it_is_another():
    model, images, passes = randomised(timm.create_model('test_resnet')), images_of(), []
    forward = model.forward
    model.forward = lambda x: passes.append(len(x)) or forward(x)
    first = [folded_convolutions(model, images) for _ in range(3)][0]
    assert passes == [2]
    model.conv1 = nn.Sequential(model.conv1, nn.Identity())
    randomised(model)
    assert {name.replace('conv1.0', 'conv1', 1) for name in folded_convolutions(model, images)} == first
    assert passes == [2, 2]


def test_under_autocast_weights_are_rounded_once():
    model, images = randomised(timm.create_model('test_resnet_ap')).float(), images_of().float()
    set_norm_route(model, 'aux')
    norm = next(split_norms(model))
    with torch.autocast('cpu', torch.bfloat16), folded(model, images, MANY):
        weights = {module.weight.dtype for module in model.modules() if isinstance(module, nn.Conv2d)}
        assert weights == {torch.bfloat16} and 'forward' in vars(norm)
        rounded = model(images)
    torch.testing.assert_close(rounded.float(), model(images), rtol=0.1, atol=0.1)


class Island(nn.Module):
    """Two pairs, the second of which computes in full precision under autocast, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.other, self.last = (
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        with torch.autocast('cpu', enabled=False):
            return self.last(self.other(x.float())).flatten(1)


@pytest.mark.parametrize('first', [False, True])
def test_where_a_model_turns_autocast_off_weights_keep_their_precision(first):
    model, images = randomised(Island()).float(), images_of().float()
    with torch.autocast('cpu', torch.bfloat16, enabled=first):
        assert folded_convolutions(model, images) == {'conv', 'other'}
    with torch.autocast('cpu', torch.bfloat16):
        expected = model(images)
        with folded(model, images, MANY):
            assert [model.conv.weight.dtype, model.other.weight.dtype] == [torch.bfloat16, torch.float32]
            torch.testing.assert_close(model(images), expected, rtol=.05, atol=.05)


class Tied(nn.Module):
    """A weight or a bias that something beside the convolution reads; or another convolution that has the same."""

    def __init__(self, reads):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3)
        self.other.weight, self.reads = self.conv.weight, reads

    def forward(self, x):
        y = self.norm(self.conv(x))
        return self.reads(self, y, x).flatten(1)


@pytest.mark.parametrize('reads, expected', [
    (lambda model, y, x: F.conv_transpose2d(y, model.conv.weight), set()),
    (lambda model, y, x: y.relu() @ model.conv.weight.sum().expand(y.shape[-1:]), set()),
    (lambda model, y, x: y * model.conv.bias.view(-1, 1, 1), set()),
    (lambda model, y, x: y + model.other(x), {'conv'}),
], ids=['transposed', 'sum', 'bias', 'module'])
@pytest.mark.parametrize('autocast', [False, True])
def test_weights_that_something_else_reads_are_left(reads, expected, autocast):
    model, images = randomised(Tied(reads)).float(), images_of().float()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        assert folded_convolutions(model, images) == expected
        plain = model(images)
        with folded(model, images, MANY):
            torch.testing.assert_close(model(images), plain, **dict(rtol=.1, atol=.1) if autocast else {})
    assert model.other.weight is model.conv.weight and not model.conv.weight.requires_grad


def test_an_attack_on_a_folded_model_is_the_same_attack():
    model = timm.create_model('test_efficientnet_ap', num_classes=5).double().train()
    images, target = images_of(num_images=4).clamp(-1, 1), torch.arange(4)
    attack = timm_advprop.Attack(eps_px=2, steps=3, random_start=0., target='none', mean=[0.5] * 3, std=[0.5] * 3)
    found = []
    with norm_route(model, 'aux'):
        found.append(attack(model, images, target)[0])
        observe_all = model.register_forward_hook(lambda *_: None)  # is not folded
        found.append(attack(model, images, target)[0])
        observe_all.remove()
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
