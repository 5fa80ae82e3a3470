"""Models that were published are loaded: by this package, by stock timm, from a repository or a folder."""
import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import timm_advprop
from tests.hub.loopback_hub import LoopbackHub
from tests.hub.publishing import OVERLAY, REPO, TOKEN, equal_states, files_asked_for, published
from timm_advprop.hub import layout, push_to_hub
from timm_advprop.hub.release import release_model
from timm_advprop.weights import open_publication


@pytest.mark.parametrize('storage', ['lfs', 'regular'])
def test_published_model_loads_bit_for_bit(storage, use_hub, split_model, monkeypatch):
    monkeypatch.setattr(layout, 'draw_pictures', lambda *args: None)
    with LoopbackHub(storage) as hub:
        use_hub(hub)
        url = push_to_hub(split_model, REPO)
        commit = hub.commits(REPO)[-1].sha
        assert url.endswith(commit)
        for model in (timm_advprop.create_model(f'hf-hub:{REPO}'), timm.create_model('test_resnet_ap', **OVERLAY)):
            assert equal_states(model.state_dict(), split_model.state_dict())
            assert model.num_classes == 7
        assert f'GET /{REPO}/resolve/{commit}/aux.safetensors' in hub.requests  # of the commit of config.json


def test_publication_is_one_commit_of_a_plain_model_and_its_auxiliary_norms(hub, split_model):
    push_to_hub(split_model, REPO, message='First')
    assert [commit.message for commit in hub.commits(REPO)][1:] == ['First']
    files = published(hub)
    assert {'model.safetensors', 'aux.safetensors', 'config.json', 'README.md'} == files.keys() - {'.gitattributes'}
    config = json.loads(files['config.json'])
    assert config['architecture'] == 'test_resnet'
    assert 'num_aux' not in config.get('model_args', {})
    assert config['timm_advprop']['num_aux'] == 2
    assert 'regime' not in config['timm_advprop']  # nobody said


@pytest.mark.parametrize('kwargs', [
    dict(num_classes=4), dict(in_chans=1), dict(num_classes=4, in_chans=1), dict(num_classes=0)], ids=str)
def test_changed_model_gets_all_norms(kwargs, hub, split_model):
    push_to_hub(split_model, REPO)
    expected = split_model.state_dict()
    for model in (timm_advprop.create_model(f'hf-hub:{REPO}', **kwargs),
                  timm.create_model('test_resnet_ap', **OVERLAY, **kwargs)):
        state = model.state_dict()
        norms = [name for name in expected if not name.startswith(('fc.', 'conv1.0'))]
        assert norms and all(torch.equal(state[name], expected[name]) for name in norms)
        assert torch.equal(state['conv1.0.weight'], expected['conv1.0.weight']) == ('in_chans' not in kwargs)
        assert model.num_classes == kwargs.get('num_classes', 7)


def test_grey_model_with_other_normalisation_stays_what_it_is(hub):
    model = timm.create_model('test_resnet_ap', num_classes=3, in_chans=1)
    model.pretrained_cfg = dict(model.pretrained_cfg, mean=(0.25,), std=(0.125,))
    push_to_hub(model, REPO)
    loaded = timm_advprop.create_model(f'hf-hub:{REPO}')
    assert equal_states(loaded.state_dict(), model.state_dict())
    for source in (loaded, timm.create_model(f'hf-hub:{REPO}', pretrained=True)):
        config = timm.data.resolve_model_data_config(source)
        assert config['input_size'][0] == 1 and tuple(config['mean']) == (0.25,) and tuple(config['std']) == (0.125,)


def test_efficientnet_is_published_as_the_architecture_of_its_weights(hub):
    model = timm.create_model('efficientnet_b0_ap', num_classes=3)
    push_to_hub(model, REPO)
    assert json.loads(published(hub)['config.json'])['architecture'] == 'tf_efficientnet_b0'
    loaded = timm_advprop.create_model(f'hf-hub:{REPO}')
    assert loaded.pretrained_cfg['architecture'] == 'efficientnet_b0_ap'
    assert equal_states(loaded.state_dict(), model.state_dict())


def test_model_outside_the_zoo_keeps_its_norms(hub, randomize_norms):
    name = 'test_mambaout' if 'test_mambaout' in timm.list_models() else 'test_vit2'
    assert f'{name}_ap' not in timm.list_models()
    model = randomize_norms(timm_advprop.convert_split_norm(timm.create_model(name, num_classes=5)))
    push_to_hub(model, REPO)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), model.state_dict())


STOCK_SCRIPT = '''
import sys
sys.modules['timm_advprop'] = None  # importing it fails
import timm, torch
from safetensors.torch import load_file
strict = []
load_state_dict = torch.nn.Module.load_state_dict
def recording(self, state_dict, strict_load=True, **kwargs):
    strict.append(kwargs.get('strict', strict_load))
    return load_state_dict(self, state_dict, strict=strict[-1])
torch.nn.Module.load_state_dict = lambda self, state_dict, strict=True, **kwargs: recording(self, state_dict, strict)
model = timm.create_model('hf-hub:user/model', pretrained=True).eval()
assert strict == [True], strict
assert 'timm_advprop' not in [name for name, module in sys.modules.items() if module]
weights = load_file(sys.argv[1])
state = model.state_dict()
assert state.keys() == {name for name in weights if 'aux_bn' not in name}
assert all(torch.equal(value, weights[name]) for name, value in state.items())
other = timm.create_model('hf-hub:user/model', pretrained=True, num_classes=2, in_chans=1)
assert torch.equal(other.state_dict()['bn1.weight'], weights['bn1.weight'])
try:
    import timm_advprop
except ImportError:
    print('stock timm')
'''


def test_stock_timm_loads_the_plain_model_strictly(hub, split_model, tmp_path):
    push_to_hub(split_model, REPO)
    save_file(split_model.state_dict(), tmp_path / 'expected.safetensors')
    process = subprocess.run(
        [sys.executable, '-c', STOCK_SCRIPT, str(tmp_path / 'expected.safetensors')],
        env=hub.environment(tmp_path / 'home'), cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout == 'stock timm\n'


XET_SCRIPT = '''
import timm, timm_advprop, torch
from timm_advprop.hub import layout
layout.draw_pictures = lambda *args: None
model = timm.create_model('test_resnet_ap', num_classes=3)
timm_advprop.push_to_hub(model, 'user/model')
loaded = timm_advprop.create_model('hf-hub:user/model').state_dict()
assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
'''


@pytest.mark.slow  # it follows internals of a client
def test_one_commit_with_xet(tmp_path):
    with LoopbackHub() as hub:
        hub.fail('POST .*/commit/', effect='after')  # its answer is lost
        process = subprocess.run(
            [sys.executable, '-c', XET_SCRIPT], env=hub.environment(tmp_path / 'home', token=TOKEN, xet=True),
            capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        assert any('/xorbs/' in request for request in hub.requests)
        assert len(hub.commits(REPO)) == 2


def test_plain_repository_gives_copies_and_says_so(hub, tmp_path, caplog, randomize_norms):
    plain = randomize_norms(timm.create_model('test_resnet', num_classes=7))
    save_for_hf(plain, tmp_path / 'plain', safe_serialization=True)
    hub.add_repo(REPO, {name: tmp_path / 'plain' / name for name in ('config.json', 'model.safetensors')})
    for create in (lambda: timm_advprop.create_model(f'hf-hub:{REPO}'),
                   lambda: timm.create_model('test_resnet_ap', **OVERLAY),
                   lambda: timm_advprop.create_model(f'local-dir:{tmp_path / "plain"}')):
        caplog.clear()
        state = create().state_dict()
        assert torch.equal(state['bn1.aux_bn.0.running_mean'], plain.bn1.running_mean)
        assert 'has no auxiliary norms: they start as copies' in caplog.text
    caplog.clear()
    assert not timm_advprop.has_split_norm(timm_advprop.create_model(f'hf-hub:{REPO}', num_aux=0))
    assert not caplog.text


def test_revision_is_pinned(hub, split_model):
    push_to_hub(split_model, REPO)
    first = hub.commits(REPO)[-1].sha
    expected = {name: value.clone() for name, value in split_model.state_dict().items()}
    with torch.no_grad():
        split_model.fc.weight.add_(1)
    push_to_hub(split_model, REPO)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}@{first}').state_dict(), expected)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), split_model.state_dict())
    overlay = dict(hf_hub_id=f'{REPO}@{first}')
    model = timm.create_model('test_resnet_ap', pretrained=True, pretrained_cfg_overlay=overlay)
    assert equal_states(model.state_dict(), expected)


def test_local_folder_works_like_a_repository(hub, split_model, tmp_path):
    (tmp_path / 'folder').mkdir()
    layout.write_publication(release_model(split_model), str(tmp_path / 'folder'), REPO)
    model = timm_advprop.create_model(f'local-dir:{tmp_path / "folder"}')
    assert equal_states(model.state_dict(), split_model.state_dict())
    assert not files_asked_for(hub)


def test_weights_alone_are_pulled_for_the_zoo_and_nothing_is_loaded_unasked(hub, tmp_path):
    state_dict = timm.create_model('test_resnet').state_dict()
    save_file(state_dict, tmp_path / 'model.safetensors')
    hub.add_repo('timm/test_resnet.r160_in1k', {'model.safetensors': tmp_path / 'model.safetensors'})
    timm.create_model('test_resnet_ap.plain_r160_in1k', pretrained=True)
    assert files_asked_for(hub) == {'model.safetensors'}
    hub.requests.clear()
    timm.create_model('test_resnet_ap', pretrained_cfg_overlay=dict(hf_hub_id=REPO))
    assert not files_asked_for(hub)


@pytest.mark.parametrize('entries', [
    dict(file='x.npz'), dict(url='https://example.com/x.npz', custom_load=True), dict(hf_hub_filename='x.bin'),
    dict(state_dict=dict(x=1), source='file', file='x.npz'), dict(hf_hub_id='another/model')], ids=str)
def test_a_config_does_not_say_where_its_weights_are(entries, hub, split_model, tmp_path):
    layout.write_publication(release_model(split_model), str(tmp_path), REPO)
    path = tmp_path / 'config.json'
    config = json.loads(path.read_bytes())
    config['pretrained_cfg'].update(entries)
    path.write_text(json.dumps(config))
    names = ('config.json', 'model.safetensors', 'aux.safetensors')
    hub.add_repo(REPO, {name: tmp_path / name for name in names})
    for create in (lambda: timm_advprop.create_model(f'hf-hub:{REPO}'),
                   lambda: timm_advprop.create_model(f'local-dir:{tmp_path}'),
                   lambda: timm.create_model('test_resnet_ap', **OVERLAY)):
        assert equal_states(create().state_dict(), split_model.state_dict())
    assert files_asked_for(hub) == set(names)
    assert timm_advprop.create_model(f'hf-hub:{REPO}').pretrained_cfg['hf_hub_id'].startswith(REPO)
    assert not entries.keys() & open_publication('hf-hub', REPO).pretrained_cfg.keys() - {'hf_hub_id', 'source'}


def test_published_weights_are_read_whatever_an_overlay_calls_a_file(hub, split_model):
    push_to_hub(split_model, REPO)
    model = timm_advprop.create_model(f'hf-hub:{REPO}', pretrained_cfg_overlay=dict(file='x.npz'))
    assert equal_states(model.state_dict(), split_model.state_dict())
