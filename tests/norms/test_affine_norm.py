"""Split norms without running statistics: layer norms, group norms and their kin."""
import pickle
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn as nn
from timm import layers

from timm_advprop.norms import (
    SplitGroupNorm,
    SplitLayerNorm,
    SplitLayerNorm2d,
    SplitNorm,
    SplitSyncBatchNorm,
    convert_split_norm,
    convert_sync_batchnorm,
    norm_route,
    set_norm_route,
    split_norms,
    split_state_dict,
    strip_aux,
    train_aux,
)
from timm_advprop.regimes import AdvPropTask, Attack

TOKENS, MAPS = (6, 5, 8), (6, 8, 4, 4)


class LayerNormOfAUser(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class LayerNormWithAKeyword(nn.LayerNorm):
    def forward(self, x, *, scale=2.):
        return scale * super().forward(x)


LAYERS = [
    pytest.param(lambda: nn.LayerNorm(8), TOKENS, SplitLayerNorm, id='LayerNorm'),
    pytest.param(lambda: layers.LayerNorm(8), TOKENS, SplitLayerNorm, id='timm-LayerNorm'),
    pytest.param(lambda: LayerNormWithAKeyword(8), TOKENS, SplitLayerNorm, id='LayerNorm-keyword'),
    pytest.param(lambda: nn.LayerNorm(8, bias=False), TOKENS, SplitLayerNorm, id='LayerNorm-no-bias'),
    pytest.param(lambda: layers.LayerNorm2d(8), MAPS, SplitLayerNorm2d, id='LayerNorm2d'),
    pytest.param(lambda: layers.LayerNormAct2d(8), MAPS, SplitLayerNorm, id='LayerNormAct2d'),
    pytest.param(lambda: nn.GroupNorm(4, 8), MAPS, SplitGroupNorm, id='GroupNorm'),
    pytest.param(lambda: layers.GroupNorm(8, num_groups=2), MAPS, SplitGroupNorm, id='timm-GroupNorm'),
    pytest.param(lambda: layers.GroupNorm1(8), TOKENS[:1] + (8, 5), SplitGroupNorm, id='GroupNorm1'),
    pytest.param(lambda: layers.GroupNormAct(8, num_groups=2), MAPS, SplitGroupNorm, id='GroupNormAct'),
    pytest.param(lambda: nn.InstanceNorm2d(8, affine=True), MAPS, nn.Module, id='InstanceNorm2d'),
    pytest.param(lambda: layers.RmsNorm(8), TOKENS, nn.Module, id='RmsNorm'),
    pytest.param(lambda: layers.RmsNorm2d(8), MAPS, nn.Module, id='RmsNorm2d'),
    pytest.param(lambda: layers.SimpleNorm2d(8), MAPS, nn.Module, id='SimpleNorm2d'),
    pytest.param(lambda: layers.EvoNorm2dS0(8, groups=2), MAPS, nn.Module, id='EvoNorm2dS0'),
    pytest.param(lambda: layers.FilterResponseNormTlu2d(8), MAPS, nn.Module, id='FilterResponseNorm'),
    pytest.param(lambda: LayerNormOfAUser(8), TOKENS, SplitLayerNorm, id='subclass'),
]


def create_swin():
    return timm.create_model(
        'swin_tiny_patch4_window7_224', img_size=56, window_size=7, embed_dim=16, depths=(1, 1), num_heads=(2, 2),
        drop_path_rate=0., num_classes=5)

NETS = {
    'test_vit': (lambda: timm.create_model('test_vit', num_classes=5), 160),
    'test_convnext': (lambda: timm.create_model('test_convnext', num_classes=5), 32),
    'test_efficientnet_gn': (lambda: timm.create_model('test_efficientnet_gn', num_classes=5), 32),
    'swin': (create_swin, 56),
}


def randomize_parameters(norm):
    for parameter in norm.parameters(recurse=False):
        nn.init.uniform_(parameter, .5, 1.5)


@pytest.fixture(params=NETS)
def net(request):
    """A plain network whose norms are not at their default initialisation, and images for it."""
    create, size = NETS[request.param]
    model = create()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, .5, 1.5)
    return model, torch.randn(4, 3, size, size)


@pytest.mark.parametrize('create, shape, split_type', LAYERS)
def test_layer_is_itself_until_told_otherwise(create, shape, split_type):
    plain, x = create(), torch.randn(shape)
    randomize_parameters(plain)
    split = convert_split_norm(deepcopy(plain), num_aux=2)
    assert isinstance(split, split_type) and isinstance(split, type(plain))
    for training in (True, False):
        assert torch.equal(split.train(training)(x), plain.train(training)(x))
    main, aux = split_state_dict(split.state_dict())
    assert list(main) == list(plain.state_dict())
    assert list(aux) == [f'aux_bn.{i}.{key}' for i in (0, 1) for key in main]
    assert all(torch.equal(value, main[key[len('aux_bn.0.'):]]) for key, value in aux.items())


@pytest.mark.parametrize('create, shape, split_type', LAYERS)
def test_each_route_is_a_norm_of_its_own(create, shape, split_type):
    norms = [create() for _ in range(3)]
    for norm in norms:
        randomize_parameters(norm)
    split = convert_split_norm(deepcopy(norms[0]), num_aux=2)
    for aux, norm in zip(split.aux_bn, norms[1:]):
        aux.load_state_dict(norm.state_dict())
    x = torch.randn(shape)
    for route, norm in enumerate(norms):
        with norm_route(split, route):
            assert torch.equal(split(x), norm(x))
    set_norm_route(split, 'split')
    assert torch.equal(split(x), torch.cat([norm(part) for norm, part in zip(norms, x.chunk(3))]))
    set_norm_route(split, 'split', sizes=(1, 3, 2))
    assert torch.equal(split(x), torch.cat([norm(part) for norm, part in zip(norms, x.split((1, 3, 2)))]))
    assert torch.equal(split.eval()(x), norms[0](x))


@pytest.mark.parametrize('create, shape, split_type', LAYERS)
@pytest.mark.parametrize('copy', [deepcopy, lambda norm: pickle.loads(pickle.dumps(norm))], ids=['deepcopy', 'pickle'])
def test_copies_and_plain_layers_come_back(create, shape, split_type, copy):
    plain, x = create(), torch.randn(shape)
    split = convert_split_norm(deepcopy(plain))
    for norm in split_norms(split):
        randomize_parameters(norm.aux_bn[0])
    twin = copy(split)
    assert type(twin) is type(split)
    for route in ('main', 'aux'):
        set_norm_route(split, route)
        set_norm_route(twin, route)
        assert torch.equal(twin(x), split(x))
    stripped = strip_aux(twin)
    assert type(stripped) is type(plain)
    assert repr(stripped) == repr(plain)
    assert torch.equal(stripped(x), plain(x))


def test_constructors_take_the_arguments_of_the_plain_layers():
    for norm, shape in (
            (SplitLayerNorm((4, 8), eps=.5, num_aux=3), (2, 4, 8)),
            (SplitLayerNorm2d(8, eps=.5, num_aux=3), (2, 8, 3, 3)),
            (SplitGroupNorm(2, 8, eps=.5, num_aux=3), (2, 8, 3, 3)),
    ):
        assert len(norm.aux_bn) == 3
        assert all(type(aux) is norm.plain_type and aux.eps == .5 for aux in norm.aux_bn)
        x = torch.randn(shape)
        assert torch.equal(norm(x), strip_aux(norm)(x))
    with pytest.raises(ValueError, match='num_aux'):
        SplitLayerNorm(8, num_aux=0)


def test_parameters_of_an_activation_are_split_with_the_norm():
    split = convert_split_norm(layers.GroupNormAct(8, num_groups=2, act_layer=nn.PReLU, inplace=None))
    assert len({id(parameter) for parameter in split.parameters()}) == 6
    train_aux(split, False)
    assert split.act.weight.requires_grad and not split.aux_bn[0].act.weight.requires_grad
    train_aux(split)
    assert split.aux_bn[0].act.weight.requires_grad


def test_only_models_without_batch_norms_have_their_other_norms_split():
    model = convert_split_norm(nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(8)))
    assert [type(module) for module in model][1:] == [nn.GroupNorm, nn.LayerNorm]
    model = convert_split_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.LayerNorm(8)))
    assert [type(module) for module in model] == [nn.Conv2d, SplitGroupNorm, SplitLayerNorm]


def test_norms_without_parameters_have_nothing_to_split():
    model = convert_split_norm(nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.LayerNorm(8)))
    assert [type(module) for module in model] == [nn.LayerNorm, SplitLayerNorm]
    with pytest.raises(ValueError, match='no batch norms'):
        convert_split_norm(nn.LayerNorm(8, elementwise_affine=False))


def test_synchronised_batch_norms_leave_layer_norms_alone():
    model = convert_split_norm(nn.Sequential(nn.LayerNorm(8)))
    assert convert_sync_batchnorm(model) is model
    assert type(model[0].aux_bn[0]) is nn.LayerNorm


def test_plain_batch_norms_beside_split_ones_are_synchronised_too():
    backbone = convert_split_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    model = convert_sync_batchnorm(nn.Sequential(backbone, nn.Flatten(), nn.BatchNorm1d(4)))
    assert type(model[0][1]) is SplitSyncBatchNorm
    assert type(model[0][1].aux_bn[0]) is type(model[2]) is nn.SyncBatchNorm


def test_every_norm_of_a_network_is_split_and_its_output_unchanged(net):
    plain, images = net
    split = convert_split_norm(deepcopy(plain))
    assert torch.equal(split.eval()(images), plain.eval()(images))
    kinds = (nn.LayerNorm, nn.GroupNorm)
    assert sum(1 for _ in split_norms(split)) == sum(isinstance(module, kinds) for module in plain.modules())
    assert list(split_state_dict(split.state_dict())[0]) == list(plain.state_dict())


def test_split_step_equals_the_gradients_of_two_plain_networks(net):
    plain, images = net
    plain, images = plain.double(), images.double()
    split = convert_split_norm(deepcopy(plain))
    twin = deepcopy(plain)
    for name, norm in split.named_modules():
        if hasattr(norm, 'aux_bn'):
            randomize_parameters(norm.aux_bn[0])
            twin.get_submodule(name).load_state_dict(norm.aux_bn[0].state_dict())
    set_norm_route(split, 'split')
    targets = torch.tensor([0, 1, 2, 3])
    for model, parts in ((split, (0, 4)), (plain, (0, 2)), (twin, (2, 4))):
        part = slice(*parts)
        nn.functional.cross_entropy(model.train()(images[part]), targets[part], reduction='sum').backward()
    own = {f'{name}.{key}' for name, norm in split.named_modules() if hasattr(norm, 'aux_bn')
           for key, _ in norm.named_parameters(recurse=False)}
    pairs = {name: twin.get_parameter(name).grad for name, _ in plain.named_parameters()}
    for name, parameter in split.named_parameters():
        if '.aux_bn.0.' in name:
            expected = pairs[name.replace('aux_bn.0.', '')]
        else:
            expected = plain.get_parameter(name).grad + (0 if name in own else pairs[name])
        torch.testing.assert_close(parameter.grad, expected)


def test_advprop_trains_a_network(net):
    model, images = net
    task = AdvPropTask(
        convert_split_norm(model), nn.CrossEntropyLoss(), sources=Attack(steps=1), mean=(.5,) * 3, std=(.5,) * 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    result = task(images, torch.tensor([0, 1, 2, 3]))
    result['loss'].backward()
    optimizer.step()
    assert result['loss'].isfinite()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    aux = set(split_state_dict(before)[1])
    assert aux <= changed
    assert {key.replace('aux_bn.0.', '') for key in aux} <= changed


@pytest.mark.parametrize('route', ['main', 'split'])
def test_scripted_network_is_the_main_route(net, route):
    model, images = net
    split = convert_split_norm(model).eval()
    set_norm_route(split, route)
    expected = split(images)
    torch.testing.assert_close(torch.jit.script(split)(images), expected)


def test_traced_graph_holds_the_split_norms_as_leaves(net):
    model, images = net
    try:
        layers.create_feature_extractor(deepcopy(model), [name for name, _ in model.named_modules()][-1:])
    except TypeError:
        pytest.skip('a plain model cannot be traced here, as a ViT with torch 2.6 and timm 1.0.27')
    split = convert_split_norm(model).eval()
    for norm in split_norms(split):
        randomize_parameters(norm.aux_bn[0])
    last = [name for name, module in split.named_modules() if isinstance(module, SplitNorm)][-1]
    twin, expected = deepcopy(split), []
    twin.get_submodule(last).register_forward_hook(lambda *args: expected.append(args[-1]))
    extractor = layers.create_feature_extractor(split, {last: 'features'})
    for route in ('main', 'aux', 'main'):
        for network in (twin, extractor):
            set_norm_route(network, route)
        twin(images)
        assert torch.equal(extractor(images)['features'], expected[-1])
    assert not torch.allclose(expected[0], expected[1], rtol=1e-2, atol=1e-2)
