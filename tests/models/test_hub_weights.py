"""timm's published weights, fetched from a Hub."""
import subprocess
import sys
from pathlib import Path

import pytest
from timm.models import get_pretrained_cfg

from timm_advprop.models import base_of

HUB_SCRIPT = '''
import timm, torch, timm_advprop
from timm_advprop import split_state_dict

def split(model):
    main, aux = split_state_dict(model.state_dict())
    assert aux
    for key, value in aux.items():
        norm, _, name = key.partition('.aux_bn.0.')
        assert torch.equal(value, main[f'{norm}.{name}']), key
    return model.eval()

images = torch.randn(2, 3, 64, 64)
plain = timm.create_model('tf_efficientnet_b0.ap_in1k', pretrained=True).eval()
expected = plain(images)
for name in ('efficientnet_b0_ap', 'efficientnet_b0_ap.ap_in1k'):
    model = split(timm.create_model(name, pretrained=True))
    assert torch.equal(model(images), expected), name
model = split(timm.create_model('efficientnet_b0_ap', pretrained=True, num_classes=10))
assert torch.equal(model.forward_features(images), plain.forward_features(images))
model = split(timm.create_model('efficientnet_b0_ap', pretrained=True, features_only=True))
features = timm.create_model('tf_efficientnet_b0.ap_in1k', pretrained=True, features_only=True).eval()
assert all(torch.equal(a, b) for a, b in zip(model(images), features(images)))

expected = timm.create_model('test_resnet.r160_in1k', pretrained=True).eval()(images)
for kwargs in (dict(pretrained_cfg=timm.get_pretrained_cfg('test_resnet')), dict(pretrained_cfg='plain_r160_in1k'), {}):
    name = 'test_resnet_ap' if kwargs else 'test_resnet_ap.plain_r160_in1k'
    assert torch.equal(split(timm.create_model(name, pretrained=True, **kwargs))(images), expected), kwargs
print('done')
'''


def test_published_weights_come_from_the_hub(loopback_hub, tmp_path, save_weights):
    urls = []
    for name in ('tf_efficientnet_b0.ap_in1k', 'test_resnet'):
        repo_id = get_pretrained_cfg(name).hf_hub_id
        loopback_hub.add_repo(repo_id, {'model.safetensors': Path(save_weights(name)[0])})
        urls.append(f'GET /{repo_id}/resolve/main/model.safetensors')
    assert urls[0] == 'GET /timm/tf_efficientnet_b0.ap_in1k/resolve/main/model.safetensors'
    result = subprocess.run(
        [sys.executable, '-c', HUB_SCRIPT],
        env={**loopback_hub.environment(tmp_path / 'home'), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'done\n'
    assert [request for request in loopback_hub.requests if request.endswith('.safetensors')
            and request.startswith('GET')] == urls


SIZE_SCRIPT = '''
import sys, timm, torch, timm_advprop
from timm_advprop import split_state_dict

name = sys.argv[1]
plain = timm.create_model(f'tf_{name}.ap_in1k', pretrained=True).state_dict()
main, aux = split_state_dict(timm.create_model(f'{name}_ap', pretrained=True).state_dict())
assert list(main) == list(plain)
assert all(torch.equal(value, plain[key]) for key, value in main.items())
assert aux and all(torch.equal(value, plain[key.replace('aux_bn.0.', '')]) for key, value in aux.items())
print('done')
'''


@pytest.mark.slow
@pytest.mark.parametrize('name', [f'efficientnet_b{i}_ap' for i in range(9)])
def test_published_weights_of_every_size_come_from_the_hub(name, loopback_hub, tmp_path, save_weights):
    plain = f'{base_of(name)}.ap_in1k'
    loopback_hub.add_repo(f'timm/{plain}', {'model.safetensors': Path(save_weights(plain)[0])})
    result = subprocess.run(
        [sys.executable, '-c', SIZE_SCRIPT, name.removesuffix('_ap')],
        env={**loopback_hub.environment(tmp_path / 'home'), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'done\n'
