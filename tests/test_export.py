"""ONNX files of the clean route."""
import onnxruntime
import pytest
import timm
import torch

from timm_advprop import set_norm_route

MODELS = {'test_resnet_ap': 64, 'test_efficientnet_ap': 64, 'test_vit_ap': 160}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', MODELS)
def test_onnx_file_of_the_clean_route_equals_the_model(name, tmp_path, randomize_norms):
    model = randomize_norms(timm.create_model(name)).eval()
    images, path = torch.randn(2, 3, MODELS[name], MODELS[name]), str(tmp_path / 'model.onnx')
    torch.onnx.export(model, (images,), path, dynamo=True)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = {}
    for route in ('clean', 'aux'):
        set_norm_route(model, route)
        expected[route] = model(images).detach()
    torch.testing.assert_close(torch.from_numpy(output), expected['clean'], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(torch.from_numpy(output), expected['aux'], rtol=1e-2, atol=1e-2)
