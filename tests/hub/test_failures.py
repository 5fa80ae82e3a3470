"""What cannot be published or loaded is one line, and nothing is half-done."""
import json
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import constants
from timm.models import save_for_hf

import timm_advprop
from tests.hub.publishing import OVERLAY, REPO, equal_states, error_line, files_asked_for, state_of
from timm_advprop.cli.hub import main as hub_main
from timm_advprop.cli.train import main as train_main
from timm_advprop.cli.validate import main as validate_main
from timm_advprop.errors import InputError
from timm_advprop.hub import push_to_hub


def test_what_cannot_be_published_is_refused_before_anything_is_sent(hub, split_model, use_hub):
    hub.add_repo('user/other', {'config.json': json.dumps(dict(architecture='resnet50'))})
    hub.add_repo('somebody/model', {'README.md': 'theirs'})
    before = state_of(hub)
    with pytest.raises(InputError, match='is taken'):
        push_to_hub(split_model, 'user/other', revision='v2')
    assert list(hub.repos['user/other'].branches) == ['main']
    with pytest.raises(InputError, match="'a b' is not the name of a branch"):
        push_to_hub(split_model, 'user/other', revision='a b')
    hub.add_repo('user/pickled', {'pytorch_model.bin': 'weights of somebody', 'README.md': 'by hand'})
    hub.add_repo('user/list', {'config.json': '[1]'})
    before = state_of(hub)
    for repo_id, message in (
            ('user/pickled', 'The name user/pickled is taken: it holds pytorch_model.bin but no config.json'),
            ('user/list', 'The name user/list is taken: it holds a config.json that is not'),
            ('user/other', 'The name user/other is taken: it holds resnet50, not test_resnet'),
            ('somebody/model', 'the token is of user, who does not own somebody'),
            ('model', 'give user/name'),
            ('user/a/b', 'give user/name'),
    ):
        with pytest.raises(InputError, match=message):
            push_to_hub(split_model, repo_id)
    for token, message in (
            (None, 'no Hub token: log in'), ('hf_wrong' * 4, 'refuses the token'), ('hf_a b', 'characters')):
        use_hub(hub, token=token)
        with pytest.raises(InputError, match=message):
            push_to_hub(split_model, REPO)
    use_hub(hub)
    hub.add_repo('user/public', {})
    with pytest.raises(InputError, match='exists and is public'):
        push_to_hub(split_model, 'user/public', private=True)
    with pytest.raises(InputError, match='is not a timm classifier'):
        push_to_hub(torch.nn.BatchNorm2d(3), REPO)
    with pytest.raises(InputError, match='No checkpoint file'):
        push_to_hub('missing.pth', REPO)
    split_model.layer1[0].bn1 = timm_advprop.strip_aux(split_model.layer1[0].bn1)  # one norm is not split
    with pytest.raises(InputError, match='The auxiliary norms of .* do not fit test_resnet, such as layer1.0.bn1'):
        push_to_hub(split_model, REPO)
    changed = timm.create_model('test_resnet_ap', num_classes=2)
    changed.act1 = torch.nn.Sigmoid()
    with pytest.raises(InputError, match='is not the same when it is created again from its config.json .outputs'):
        push_to_hub(changed, REPO)
    torch.nn.init.constant_(changed.fc.bias, float('nan'))
    with pytest.raises(InputError, match='fc.bias has values that are not finite'):
        push_to_hub(changed, REPO)
    assert state_of(hub) == {**before, 'user/public': state_of(hub)['user/public']}


def test_no_network(hub, split_model, use_hub):
    push_to_hub(split_model, REPO)
    timm_advprop.create_model(f'hf-hub:{REPO}')
    use_hub(SimpleNamespace(endpoint='http://127.0.0.1:9'))  # nobody listens there
    with pytest.raises(InputError, match='cannot be reached'):
        push_to_hub(split_model, REPO)
    warm = timm_advprop.create_model(f'hf-hub:{REPO}')
    assert equal_states(warm.state_dict(), split_model.state_dict())
    message = 'config.json of user/unknown, and it is not in the cache: .*cannot be reached'
    with pytest.raises(InputError, match=message):
        timm_advprop.create_model('hf-hub:user/unknown')


def test_offline(hub, split_model, use_hub, capsys):
    push_to_hub(split_model, REPO)
    use_hub(hub, offline=True)
    message = error_line(capsys, hub_main, ['pull', REPO])
    assert 'HF_HUB_OFFLINE is set' in message and REPO in message
    use_hub(hub)
    timm_advprop.create_model(f'hf-hub:{REPO}')
    use_hub(hub, offline=True)
    hub.requests.clear()
    for model in (timm_advprop.create_model(f'hf-hub:{REPO}'), timm.create_model('test_resnet_ap', **OVERLAY)):
        assert equal_states(model.state_dict(), split_model.state_dict())
    assert not files_asked_for(hub)


def test_wrong_names_are_one_line(hub, split_model, use_hub, capsys):
    push_to_hub(split_model, REPO)
    push_to_hub(split_model, 'user/secret', private=True)
    use_hub(hub, token=None)
    for name, message in (
            ('user/missing', 'no repository user/missing on the Hub, or it is private'),
            ('user/secret', 'no repository user/secret on the Hub, or it is private'),
            (f'{REPO}@v9', f'{REPO} has no revision v9'),
            ('a/b@c@d', 'give user/name'),
            ('a@b', 'give user/name'),
    ):
        assert message in error_line(capsys, hub_main, ['pull', name])
        assert message in error_line(capsys, validate_main, ['--model', f'hf-hub:{name}', '--data-dir', '.'])
    use_hub(hub, token='hf_wrong' * 4, cache='other')
    assert 'refuses the token' in error_line(capsys, hub_main, ['pull', REPO])


def test_repository_that_holds_something_else(hub, tmp_path, capsys):
    save_for_hf(timm.create_model('test_resnet'), tmp_path / 'other', safe_serialization='both')
    config = (tmp_path / 'other/config.json').read_bytes()
    pickled = (tmp_path / 'other/pytorch_model.bin').read_bytes()
    weights = (tmp_path / 'other/model.safetensors').read_bytes()
    hub.add_repo('user/pickled', {'config.json': config, 'pytorch_model.bin': pickled})
    hub.add_repo('user/bert', {'config.json': '{"architectures": ["BertModel"]}', 'model.safetensors': weights})
    hub.add_repo('user/empty', {'README.md': 'nothing'})
    hub.add_repo('user/text', {'config.json': 'nothing', 'model.safetensors': weights})
    hub.add_repo('user/other', {'config.json': config, 'model.safetensors': weights})
    announcing = json.dumps(dict(json.loads(config), timm_advprop=dict(num_aux=1)))
    hub.add_repo('user/lost', {'config.json': announcing, 'model.safetensors': weights})
    for repo_id, entries in (
            ('user/many', dict(timm_advprop=dict(num_aux=10 ** 9))),
            ('user/negative', dict(model_args=dict(num_aux=-1))),
            ('user/worded', dict(model_args=dict(num_aux='two'))),
            ('user/evil', dict(model_args=dict(cache_dir=str(tmp_path / 'evil')))),
    ):
        text = json.dumps({**json.loads(config), **entries})
        hub.add_repo(repo_id, {'config.json': text, 'model.safetensors': weights})
    for name, message in (
            ('user/pickled', 'has no model.safetensors, and pickled weights, such as pytorch_model.bin, could run'),
            ('user/bert', 'user/bert@.* does not hold a timm model'),
            ('user/empty', 'user/empty does not hold a timm model'),
            ('user/text', 'config.json of user/text is damaged'),
            ('user/many', 'config.json of user/many is damaged'),
            ('user/negative', 'config.json of user/negative is damaged'),
            ('user/worded', 'config.json of user/worded is damaged'),
            ('user/evil', 'config.json of user/evil@.* has the model argument cache_dir, which is not one'),
            ('user/lost', 'has no aux.safetensors'),
    ):
        with pytest.raises(InputError, match=message):
            timm_advprop.create_model(f'hf-hub:{name}')
        flags = ['--model', f'hf-hub:{name}', '--pretrained', '--data-dir', str(tmp_path)]
        line = error_line(capsys, train_main, flags)
        assert line.startswith('error: ') and name in line
    assert not any('pytorch_model' in request for request in hub.requests)
    assert not (tmp_path / 'evil').exists()
    overlay = dict(hf_hub_id='user/other')
    with pytest.raises(InputError, match='holds test_resnet, not test_efficientnet, the base of test_efficientnet_ap'):
        timm.create_model('test_efficientnet_ap', pretrained=True, pretrained_cfg_overlay=overlay)


def test_truncated_download_is_resumed_or_refused(hub, split_model):
    push_to_hub(split_model, REPO)
    hub.fail('GET .*/aux.safetensors', body='truncated')
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), split_model.state_dict())


def test_damaged_file_is_downloaded_again_once(hub, split_model, tmp_path, caplog, monkeypatch):
    push_to_hub(split_model, REPO)
    hub.fail('GET .*/model.safetensors', body='corrupted')
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), split_model.state_dict())
    assert 'It is downloaded again' in caplog.text
    config = next((tmp_path / 'cache').glob('**/snapshots/*/config.json'))
    config.write_text('{')
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), split_model.state_dict())
    cached = next((tmp_path / 'cache').glob('**/snapshots/*/aux.safetensors'))
    cached.write_bytes(cached.read_bytes()[:-8])  # truncated on this disk
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), split_model.state_dict())
    cached.write_bytes(cached.read_bytes()[:-8])
    with monkeypatch.context() as offline:
        offline.setattr(constants, 'HF_HUB_OFFLINE', True)
        with pytest.raises(InputError, match='aux.safetensors of user/model@.* in the cache is damaged, and HF_HUB_OFF'
                                             'LINE is set: download it again without HF_HUB_OFFLINE'):
            timm_advprop.create_model(f'hf-hub:{REPO}')
    hub.fail('GET .*/aux.safetensors', times=2, body='corrupted')
    with pytest.raises(InputError, match='aux.safetensors of user/model@.* is damaged: its contents are not what was'):
        timm_advprop.create_model(f'hf-hub:{REPO}')
