"""Export to ONNX and with torch.export: of the main route as it is, of any other as the plain model of that route.

Needs `pip install onnx onnxruntime onnxscript`.

    python examples/export.py [FOLDER]
"""
import sys
import tempfile
from pathlib import Path

import onnxruntime
import timm
import torch

import timm_advprop


def main(folder):
    """Export both routes, run the files, and return the largest difference of their logits."""
    torch.manual_seed(0)
    model = timm.create_model('test_efficientnet_ap', num_classes=10)
    images, labels = torch.randn(2, 3, 160, 160), torch.tensor([3, 8])
    timm_advprop.AdvPropTask(model.train(), verbose=False)(images, labels)  # both routes have statistics of their own
    model.eval()
    plain = {
        'main': timm_advprop.strip_aux(model),         # a plain timm model; exporting `model` itself gives the same
        'aux': timm_advprop.blend_routes(model, 1.),   # the plain model of the first auxiliary norms
    }
    differences = {}
    for route, exported in plain.items():
        with torch.inference_mode(), timm_advprop.norm_route(model, route):
            expected = model(images)
        path = Path(folder, f'{route}.onnx')
        torch.onnx.export(exported, (images,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path)
        logits, = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        program = torch.export.export(exported, (images,)).module()
        differences[route] = max(
            (output - expected).abs().max().item() for output in (torch.tensor(logits), program(images)))
        print(f'{route} norms: {path.name}, largest difference {differences[route]:.1e}')
    return differences


if __name__ == '__main__':
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
