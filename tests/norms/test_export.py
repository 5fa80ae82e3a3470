"""Compilers and exporters: TorchScript, traces, FX, torch.export, torch.compile, ONNX."""
from copy import deepcopy

import onnxruntime
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import create_feature_extractor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.norms.norm_models import NETS, make_batch, plain_models_of, split_with_own_norms, train_step
from timm_advprop.norms import convert_split_norm, norm_route, set_norm_route, split_state_dict, strip_aux

EXPORTERS = {
    'script': lambda model, images: torch.jit.script(model),
    'trace': lambda model, images: torch.jit.trace(model, images),
    'fx': lambda model, images: torch.fx.symbolic_trace(model),
    'export': lambda model, images: torch.export.export(model, (images,)).module(),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('exporter', EXPORTERS)
@pytest.mark.parametrize('name, route', [('test_resnet', 'main'), ('test_efficientnet', 'split')])
def test_exported_eval_model_is_the_main_route(name, exporter, route, randomize_norms):
    split = split_with_own_norms(NETS[name](), randomize_norms).eval()
    images, _ = make_batch()
    expected = strip_aux(split)(images)
    set_norm_route(split, route)
    exported = EXPORTERS[exporter](split, images)
    torch.testing.assert_close(exported(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('route', ['aux', 'split'])
@pytest.mark.parametrize('norm', [nn.BatchNorm2d, nn.LayerNorm])
def test_scripting_another_route_than_the_main_one_is_refused(norm, route):
    split = convert_split_norm(nn.Sequential(nn.Flatten(1, 2), norm(8)) if norm is nn.LayerNorm else norm(3)).train()
    set_norm_route(split, route)
    with pytest.raises(ValueError, match='A scripted model is the main route.*set_norm_route'):
        torch.jit.script(split)
    set_norm_route(split, 'main')
    torch.jit.script(split)


@pytest.mark.filterwarnings('ignore')
def test_scripted_model_trains_as_the_plain_one(plain):
    scripted = torch.jit.script(convert_split_norm(deepcopy(plain)).train())
    images, target = make_batch()
    expected = train_step(plain.train(), images, target)
    torch.testing.assert_close(train_step(scripted, images, target), expected)
    main, _ = split_state_dict(scripted.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(main[key], value)


def test_feature_extractor_follows_routes(resnet, randomize_norms):
    split = split_with_own_norms(resnet, randomize_norms).eval()
    images, _ = make_batch()
    expected = [create_feature_extractor(model, ['layer3'])(images) for model in plain_models_of(split, resnet)]
    extractor = create_feature_extractor(split, ['layer3'])
    for route, features in zip(('main', 'aux'), expected):
        set_norm_route(extractor, route)
        assert torch.equal(extractor(images)['layer3'], features['layer3'])


@pytest.mark.parametrize('name, backend', [
    ('small_net', 'eager'),
    pytest.param('test_resnet', 'aot_eager', marks=pytest.mark.slow),
    pytest.param('test_efficientnet', 'eager', marks=pytest.mark.slow),
])
def test_compiled_model_keeps_a_small_number_of_graphs(name, backend, randomize_norms):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    split = split_with_own_norms(NETS[name](), randomize_norms)
    compiled = torch.compile(split, backend=counter)
    counts = []
    for _ in range(4):
        images, target = make_batch()
        split.eval()
        set_norm_route(split, 'main')
        with torch.no_grad():
            for batch in (images, images[:5]):
                torch.testing.assert_close(compiled(batch), split(batch), rtol=1e-4, atol=1e-5)

        images.requires_grad_()
        split.requires_grad_(False)
        with norm_route(compiled, 'aux'):
            grads = [torch.autograd.grad(model(images).square().sum(), images)[0] for model in (compiled, split)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
        split.requires_grad_(True)

        set_norm_route(split.train(), 'split')
        both = torch.cat([images.detach(), images.detach() + 1])
        expected = deepcopy(split)(both)
        output = compiled(both)
        F.cross_entropy(output, target.repeat(2)).backward()
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        counts.append(counter.frame_count)
    assert counts == [counts[0]] * 4
    assert counts[0] <= 4  # one for each route, one more for the smaller last batch of a validation


MODELS = {'test_resnet_ap': 64, 'test_efficientnet_ap': 64, 'test_vit_ap': 160}


@pytest.mark.skipif(torch.__version__.startswith('2.6.'), reason='it fails on plain batch norms, too')
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', MODELS)
def test_onnx_file_of_the_main_route_equals_the_model(name, tmp_path, randomize_norms):
    model = randomize_norms(timm.create_model(name)).eval()
    images, path = torch.randn(2, 3, MODELS[name], MODELS[name]), str(tmp_path / 'model.onnx')
    torch.onnx.export(model, (images,), path, dynamo=True)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = {}
    for route in ('main', 'aux'):
        set_norm_route(model, route)
        expected[route] = model(images).detach()
    torch.testing.assert_close(torch.from_numpy(output), expected['main'], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(torch.from_numpy(output), expected['aux'], rtol=1e-2, atol=1e-2)
