"""Publishing to the Hub and loading from it, with the Hub's own client and a Hub on the loopback address."""
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.utils import ModelEmaV3

import timm_advprop
from timm_advprop.checkpoints import weights_digest
from timm_advprop.errors import InputError
from timm_advprop.evaluation import main as validate_main
from timm_advprop.hub import folder as hub_folder
from timm_advprop.hub import main as hub_main
from timm_advprop.hub import push_to_hub
from timm_advprop.hub.pictures import draw_adversarial_images
from timm_advprop.hub.recipe import publishable_recipe
from timm_advprop.hub.release import open_release, release_model
from timm_advprop.hub.results import read_results
from timm_advprop.train import main as train_main
from timm_advprop.train.args import parse_args
from timm_advprop.train.loop import Trainer

TOKEN = 'hf_loopback_token_of_user'
REPO = 'user/model'
OVERLAY = dict(pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id=REPO))
RECIPE = dict(
    regime='advprop', model='test_resnet_ap', adv_attack='pgd', adv_eps=[4.], adv_alpha=1., adv_steps=None,
    adv_target='random', adv_random_start=0.8)
RUN = ['--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32', '--workers', '0', '--device', 'cpu',
       '--batch-size', '16', '--epochs', '1', '--warmup-epochs', '0', '--adv-eps', '1', '--log-interval', '100']


@pytest.fixture
def use_hub(monkeypatch, tmp_path):
    """A function that makes a Hub the one of this process, with an empty cache; huggingface_hub reads it at import."""
    def use(hub, token=TOKEN, cache='cache', offline=False):
        monkeypatch.setattr(constants, 'ENDPOINT', hub.endpoint)
        monkeypatch.setattr(
            constants, 'HUGGINGFACE_CO_URL_TEMPLATE', hub.endpoint + '/{repo_id}/resolve/{revision}/{filename}')
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / cache))
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no token'))
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)
        monkeypatch.delenv('HF_TOKEN', raising=False)
        if token:
            monkeypatch.setenv('HF_TOKEN', token)
        return hub
    return use


@pytest.fixture
def hub(loopback_hub, use_hub, monkeypatch):
    """The Hub of this process. Nobody waits between attempts, and pictures, which take long, are not drawn."""
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    monkeypatch.setattr(hub_folder, '_draw_pictures', lambda *args: None)
    return use_hub(loopback_hub)


@pytest.fixture
def split_model(randomize_norms):
    return randomize_norms(timm.create_model('test_resnet_ap', num_aux=2, num_classes=7))


@pytest.fixture
def checkpoint(tmp_path, randomize_norms):
    """A function that writes a checkpoint as the training program does, and returns its path and its model."""
    def write(averaged=False, summary='epoch,eval_top1,eval_top5\n3,71.5,93.25\n'):
        model = randomize_norms(timm.create_model('test_resnet_ap', num_classes=10))
        folder = tmp_path / 'run'
        folder.mkdir(exist_ok=True)
        (folder / 'summary.csv').write_text(summary)
        args = parse_args(['--data-dir', str(tmp_path / 'digits'), *RUN])
        content = dict(epoch=3, arch='test_resnet_ap', state_dict=model.state_dict(), args=args)
        if averaged:
            average = ModelEmaV3(model)
            for value in average.parameters():
                value.data.mul_(0.5)
            model, content['state_dict_ema'] = average.module, average.module.state_dict()
        torch.save(content, folder / 'model_best.pth.tar')
        return folder / 'model_best.pth.tar', model
    return write


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def published(hub, repo_id=REPO, revision='main'):
    """Files of the head of a branch."""
    return hub.commits(repo_id, revision)[-1].files


def files_asked_for(hub):
    return {request.split('/')[-1] for request in hub.requests if '/resolve/' in request}


def state_of(hub):
    return {name: {branch: [commit.sha for commit in commits] for branch, commits in repo.branches.items()}
            for name, repo in hub.repos.items()}


def error_line(capsys, function, *args):
    """The one line with which a program ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        function(*args)
    assert exit_info.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    return lines[0]


# What is published, and what is loaded


@pytest.mark.parametrize('storage', ['lfs', 'regular'])
def test_published_model_loads_bit_for_bit(storage, use_hub, split_model, monkeypatch):
    monkeypatch.setattr(hub_folder, '_draw_pictures', lambda *args: None)
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
from timm_advprop.hub import folder
folder._draw_pictures = lambda *args: None
model = timm.create_model('test_resnet_ap', num_classes=3)
timm_advprop.push_to_hub(model, 'user/model')
loaded = timm_advprop.create_model('hf-hub:user/model').state_dict()
assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
'''


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
    hub_folder.write_publication(release_model(split_model), str(tmp_path / 'folder'), REPO)
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


# Publishing again, and publishing that fails


def test_publishing_the_same_again_makes_no_commit(hub, split_model):
    assert push_to_hub(split_model, REPO) == push_to_hub(split_model, REPO)
    assert len(hub.commits(REPO)) == 2


def test_publication_without_auxiliary_norms_removes_former_ones(hub, split_model):
    push_to_hub(split_model, REPO, recipe=RECIPE)
    assert {'aux.safetensors', 'args.yaml'} <= published(hub).keys()
    push_to_hub(timm_advprop.strip_aux(split_model), REPO)
    assert not {'aux.safetensors', 'args.yaml'} & published(hub).keys()
    assert json.loads(published(hub)['config.json'])['timm_advprop']['num_aux'] == 0
    timm_advprop.create_model(f'hf-hub:{REPO}')


def test_branch_and_private_repository_are_made(hub, split_model):
    push_to_hub(split_model, REPO, private=True, revision='v2')
    assert hub.repos[REPO].private
    assert 'model.safetensors' in published(hub, revision='v2')
    assert 'model.safetensors' not in published(hub)
    model = timm_advprop.create_model(f'hf-hub:{REPO}@v2')
    assert equal_states(model.state_dict(), split_model.state_dict())


@pytest.mark.parametrize('pattern, status', [
    ('POST .*/preupload/', 500),
    ('POST .*/objects/batch', 503),
    ('PUT /lfs/', 500),
    ('PUT /lfs/', None),
    ('POST .*/commit/', 500),
    ('POST .*/commit/', 400),
    ('POST .*/commit/', 403),
    ('POST .*/commit/', None),
    ('POST .*/validate-yaml', None),
])
def test_failed_publication_leaves_the_repository_as_it_was(pattern, status, hub, split_model):
    push_to_hub(split_model, REPO)
    before = state_of(hub)
    with torch.no_grad():
        split_model.fc.weight.add_(1)
    hub.fail(pattern, times=100, status=status)
    with pytest.raises(InputError, match=f'^Cannot publish {REPO}: .*No file of {REPO} was changed') as error:
        push_to_hub(split_model, REPO)
    assert '\n' not in str(error.value) and TOKEN not in str(error.value)
    assert state_of(hub) == before
    assert sum('/commit/' in request for request in hub.requests) <= 5  # retried, with a bound


@pytest.mark.parametrize('status, effect', [(None, 'after'), (None, 'before'), (503, 'before'), (429, 'before')])
@pytest.mark.parametrize('times', [1, 2])
def test_commit_whose_answer_is_an_error_is_made_once(times, status, effect, hub, split_model):
    hub.fail('POST .*/commit/', times=times, status=status, effect=effect)
    url = push_to_hub(split_model, REPO)
    assert len(hub.commits(REPO)) == 2
    assert url.endswith(hub.commits(REPO)[-1].sha)


def test_commit_that_only_deletes_is_made_in_spite_of_an_error(hub, split_model):
    push_to_hub(split_model, REPO)
    hub.add_repo(REPO, {**published(hub), 'pytorch_model.bin': b'former weights'})
    hub.fail('POST .*/commit/', status=503)
    push_to_hub(split_model, REPO)
    assert 'pytorch_model.bin' not in published(hub)


def test_what_fails_once_is_tried_again(hub, split_model):
    for pattern in ('GET /api/whoami', 'POST /api/repos/create', f'GET /api/models/{REPO}', 'GET .*/config.json'):
        hub.fail(pattern, status=503)
    hub.fail('POST /api/repos/create', effect='after')
    push_to_hub(split_model, REPO)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), split_model.state_dict())
    assert len(hub.commits(REPO)) == 2


def test_model_without_norms_is_published(hub):
    model = timm.create_model('test_nfnet', num_classes=3)
    push_to_hub(model, REPO)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}', num_aux=0).state_dict(), model.state_dict())


@pytest.mark.parametrize('name, kwargs', [
    ('test_vit_ap', dict(img_size=64)), ('test_resnet_ap', dict(global_pool='max')),
    ('test_resnet', dict(global_pool='', num_classes=0))])
def test_model_arguments_are_published(name, kwargs, hub):
    model = timm.create_model(name, **kwargs).eval()
    push_to_hub(model, REPO, model_kwargs=kwargs)
    images = torch.randn(1, 3, 64, 64)
    for loaded in (timm_advprop.create_model(f'hf-hub:{REPO}'), timm.create_model(f'hf-hub:{REPO}', pretrained=True)):
        torch.testing.assert_close(loaded.eval()(images), model(images))


def test_lost_answer_and_a_hub_that_cannot_be_asked(hub, split_model):
    push_to_hub(split_model, REPO)
    with torch.no_grad():
        split_model.fc.weight.add_(1)
    hub.fail('POST .*/commit/', effect='after')
    hub.fail('HEAD .*/model.safetensors', times=100, status=503)
    with pytest.raises(InputError, match='Whether the commit was made is not known: look at http'):
        push_to_hub(split_model, REPO)
    assert len(hub.commits(REPO)) == 3


def test_change_by_somebody_else_is_not_overwritten(hub, split_model, monkeypatch):
    push_to_hub(split_model, REPO)
    with torch.no_grad():
        split_model.fc.weight.add_(1)
    hub.fail('POST .*/commit/', status=503)
    monkeypatch.setattr(time, 'sleep', lambda seconds: hub.add_repo(REPO, {'notes.txt': 'from elsewhere'}))
    with pytest.raises(InputError, match='was changed meanwhile: push again'):
        push_to_hub(split_model, REPO)
    assert set(published(hub)) >= {'notes.txt'} and len(hub.commits(REPO)) == 3


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


# Loading that fails


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


def test_damaged_file_is_downloaded_again_once(hub, split_model, tmp_path, caplog):
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
    hub.fail('GET .*/aux.safetensors', times=2, body='corrupted')
    with pytest.raises(InputError, match='aux.safetensors of user/model@.* is damaged: its contents are not what was'):
        timm_advprop.create_model(f'hf-hub:{REPO}')


# The card, the recipe, the programs


def test_checkpoint_is_published_with_recipe_summary_and_averaged_weights(hub, checkpoint, tmp_path):
    path, model = checkpoint(averaged=True)
    push_to_hub(path, REPO)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), model.state_dict())
    files = published(hub)
    assert files['summary.csv'] == (path.parent / 'summary.csv').read_bytes()
    assert str(tmp_path).encode() not in b''.join(files[name] for name in ('args.yaml', 'README.md', 'config.json'))
    (tmp_path / 'args.yaml').write_bytes(files['args.yaml'])
    recipe = vars(parse_args(['--config', str(tmp_path / 'args.yaml'), '--data-dir', str(tmp_path / 'digits')]))
    own = ('config', 'device', 'data_dir')
    expected = vars(parse_args(['--data-dir', str(tmp_path / 'digits'), *RUN]))
    assert {name: recipe[name] for name in recipe if name not in own} == {
        name: expected[name] for name in expected if name not in own}
    assert json.loads(files['config.json'])['pretrained_cfg']['input_size'] == [3, 32, 32]  # that of the run
    details = json.loads(files['config.json'])['timm_advprop']
    assert details['regime'] == 'advprop' and details['averaged']
    assert details['aux_norms'] == [dict(
        trained_on='adversarial images', attack='pgd', eps_px=1.0, alpha_px=1.0, steps=1, target='random',
        random_start=0.8)]


def test_card_shows_what_was_measured(hub, checkpoint):
    path, model = checkpoint()
    row = dict(model='test_resnet_ap', weights=weights_digest(model.state_dict(), 'aux'), route='aux', top1='70.5',
               top5='', adv_attack='PGD-10, eps 4/255', adv_top1='31.25', adv_top5='', dataset='digits', split='test')
    push_to_hub(path, REPO, results=[row])
    text = published(hub)['README.md'].decode()
    for line in ('| clean | main | 71.50 | 93.25 | digits | validation | train.py |',
                 '| clean | aux | 70.50 | – | digits | test | validate.py |',
                 '| under PGD-10, eps 4/255 | aux | 31.25 | – | digits | test | validate.py |',
                 '| 1 | adversarial images | PGD | 1/255 | 1/255 | 1 | random | 0.8 |',
                 'timm-advprop-train --config args.yaml --data-dir DATA',
                 f"timm.create_model('hf-hub:{REPO}', pretrained=True)",
                 f"timm_advprop.create_model('hf-hub:{REPO}')"):
        assert line in text
    card = ModelCard(text).data
    assert (card.library_name, card.license, card.datasets) == ('timm', 'apache-2.0', ['digits'])
    assert {(entry.metric_name, entry.metric_value, entry.dataset_split) for entry in card.eval_results} == {
        ('Top-1, clean, main norms (percent)', 71.5, 'validation'),
        ('Top-5, clean, main norms (percent)', 93.25, 'validation'),
        ('Top-1, clean, aux norms (percent)', 70.5, 'test'),
        ('Top-1, under PGD-10, eps 4/255, aux norms (percent)', 31.25, 'test'),
    }


def test_card_of_a_model_alone_has_no_numbers_that_were_not_measured(hub, split_model):
    push_to_hub(split_model, REPO)
    text = published(hub)['README.md'].decode()
    assert 'Measured results' not in text and 'Training' not in text and 'None' not in text
    assert ModelCard(text).data.eval_results is None


@pytest.mark.parametrize('change, message', [
    (dict(model='test_vit'), 'results are of test_vit, the published model is test_resnet'),
    (dict(model='hf-hub:user/other', weights='0' * 16), 'are of other weights .* validate with --use-ema'),
    (dict(route='aux'), 'are of other weights'),
    (dict(weights=None), 'do not say which weights'),
    (dict(top1='many'), 'lack a number'),
    (dict(top1='nan'), 'not accuracies in percent'),
    (dict(adv_attack='PGD'), 'lack a number'),
])
def test_results_of_something_else_are_refused(change, message, hub, checkpoint):
    path, model = checkpoint(averaged=True)
    row = dict(model='test_resnet_ap', top1=1., route='clean', weights=weights_digest(model.state_dict()))
    push_to_hub(path, 'user/right', results=[row])
    row.update(change)
    with pytest.raises(InputError, match=message):
        push_to_hub(path, REPO, results=[row])
    assert REPO not in hub.repos


def test_numbers_of_weights_that_were_not_validated_are_left_out(hub, checkpoint):
    path, _ = checkpoint(averaged=True)
    content = torch.load(path, weights_only=False)
    content['args'].model_ema_force_cpu = True  # the program validates the weights themselves then
    torch.save(content, path)
    push_to_hub(path, REPO)
    assert '71.5' not in published(hub)['README.md'].decode()


@pytest.mark.parametrize('secret', ['a-token-like-no-other', 'hf_' + 'a' * 34])
@pytest.mark.parametrize('as_argument', [True, False])
def test_token_is_nowhere(secret, as_argument, hub, use_hub, checkpoint, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    hub.tokens = {secret: 'user'}
    use_hub(hub, token=None if as_argument else secret)
    path, _ = checkpoint(summary=f'epoch,eval_top1,note\n3,71.5,{secret}\n')
    content = torch.load(path, weights_only=False)
    vars(content['args']).update(
        dataset='wds/https://me:password@host/data', val_split=secret, opt_kwargs=dict(note=secret))
    torch.save(content, path)
    hub.fail('POST .*/commit/', status=503)
    push_to_hub(path, REPO, message=f'With {secret}', token=secret if as_argument else None)
    with pytest.raises(InputError) as error:
        hub.fail('POST .*/commit/', status=400)
        push_to_hub(timm.create_model('test_resnet', num_classes=2), REPO, token=secret if as_argument else None)
    texts = b''.join(value for name, value in published(hub).items() if not name.endswith('.safetensors')).decode()
    output = capsys.readouterr()
    own = '\n'.join(record.getMessage() for record in caplog.records if not record.name.startswith('httpcore'))
    for text in (texts, hub.commits(REPO)[-1].message, output.out, output.err, own, str(error.value)):
        assert secret not in text and 'me:password' not in text
    assert hub.commits(REPO)[-1].message == 'With <token>'


def test_recipe_has_nothing_of_one_machine():
    recipe = publishable_recipe(dict(
        model='resnet18_ap', data_dir='/data/imagenet', output='out', initial_checkpoint='/home/me/w.pth', lr=0.1,
        rank=0, push_to_hub='user/name', class_map=('/a/b.txt',), resume='last.pth.tar', note='hf_' + 'a' * 34,
        teacher='local-dir:/home/me/teacher', dataset='wds/https://host/a/b'))
    assert recipe == dict(
        model='resnet18_ap', initial_checkpoint='w.pth', lr=0.1, class_map=['b.txt'], note='<token>',
        teacher='local-dir:teacher', dataset='wds/https://host/a/b')


def test_dry_run_writes_the_folder_with_pictures_and_sends_nothing(
        loopback_hub, use_hub, checkpoint, few_digits, tmp_path, capsys):
    use_hub(loopback_hub, token=None)
    path, model = checkpoint()
    content = torch.load(path, weights_only=False)
    content['args'].data_dir = few_digits
    torch.save(content, path)
    hub_main(['push', str(path), REPO, '--dry-run', '--to', str(tmp_path / 'folder')])
    out = capsys.readouterr().out
    card = (tmp_path / 'folder/README.md').read_text()
    assert card in out and 'Nothing was sent' in out
    for picture in ('norms.png', 'adversarial.png'):
        assert (tmp_path / 'folder' / picture).read_bytes()[:4] == b'\x89PNG' and f'({picture})' in card
    assert equal_states(timm_advprop.create_model(f'local-dir:{tmp_path / "folder"}').state_dict(), model.state_dict())
    draw_adversarial_images(open_release(path), str(tmp_path / 'again.png'))
    assert (tmp_path / 'again.png').read_bytes() == (tmp_path / 'folder/adversarial.png').read_bytes()
    assert not any(request.startswith('POST') for request in loopback_hub.requests)


def test_dry_run_replaces_nothing_but_a_former_publication(hub, split_model, tmp_path, capsys):
    path, folder = tmp_path / 'weights.safetensors', tmp_path / 'run'
    save_file(split_model.state_dict(), path)
    push = ['push', str(path), REPO, '--model', 'test_resnet_ap', '--dry-run', '--to', str(folder)]
    folder.mkdir()
    (folder / 'summary.csv').write_text('of a run')
    assert 'holds something else than a publication' in error_line(capsys, hub_main, push)
    (folder / 'summary.csv').rename(tmp_path / 'elsewhere')
    hub_main(push)
    (folder / 'summary.csv').write_text('of a former publication')
    assert 'does not fit' in error_line(capsys, hub_main, [*push, '--model-kwargs', 'num_aux=3', 'num_classes=4'])
    assert (folder / 'summary.csv').exists()
    hub_main(push)
    assert not (folder / 'summary.csv').exists()


def test_without_matplotlib_the_pictures_are_left_out(split_model, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    files = hub_folder.write_publication(release_model(split_model), str(tmp_path), REPO)
    assert 'A picture is left out: Pictures need matplotlib' in caplog.text
    assert 'aux.safetensors' in files and 'norms.png' not in files
    assert 'norms.png' not in (tmp_path / 'README.md').read_text()


def test_pull_writes_one_file_with_all_norms(hub, split_model, tmp_path, monkeypatch, capsys):
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    push_to_hub(split_model, REPO)
    hub_main(['pull', REPO])
    assert equal_states(load_file('model.safetensors'), split_model.state_dict())
    assert 'exists: remove it' in error_line(capsys, hub_main, ['pull', REPO])
    assert 'give it that ending' in error_line(capsys, hub_main, ['pull', REPO, '--to', 'model.pth'])
    assert 'Cannot write' in error_line(capsys, hub_main, ['pull', REPO, '--to', 'missing/model.safetensors'])
    assert [file.name for file in Path().iterdir()] == ['model.safetensors']


def test_checkpoint_that_does_not_say_its_model(hub, split_model, tmp_path, capsys):
    save_file(split_model.state_dict(), tmp_path / 'weights.safetensors')
    push = ['push', str(tmp_path / 'weights.safetensors'), REPO]
    assert 'give --model' in error_line(capsys, hub_main, push)
    hub_main([*push, '--model', 'test_resnet_ap', '--license', 'mit', '--message', 'By hand'])
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), split_model.state_dict())
    assert hub.commits(REPO)[-1].message == 'By hand'
    assert 'license: mit' in published(hub)['README.md'].decode()


def test_train_pushes_its_best_checkpoint_and_trains_on(hub, few_digits, tmp_path, capsys):
    data = ['--data-dir', few_digits, '--output', str(tmp_path), '--workers', '0', '--device', 'cpu', '-b', '16',
            '--epochs', '1', '--warmup-epochs', '0', '--adv-eps', '1']
    train_main([*data, *RUN, '--experiment', 'run', '--model-ema', '--push-to-hub', REPO, '--hub-private'])
    out = capsys.readouterr().out
    assert f'Published {REPO}: ' in out and '--result' in out
    assert hub.repos[REPO].private
    best = torch.load(tmp_path / 'run/model_best.pth.tar', weights_only=False)
    assert equal_states(timm_advprop.create_model(f'hf-hub:{REPO}').state_dict(), best['state_dict_ema'])
    top1 = f'{best["metric"]:.2f}'
    assert f'| clean | main | {top1} |' in published(hub)['README.md'].decode()
    assert 'lr: null\n' in published(hub)['args.yaml'].decode()  # as given: the run computed one

    train_main([*data, '--model', f'hf-hub:{REPO}', '--pretrained', '--experiment', 'on', '--lr', '1e-9'])
    trained_on = torch.load(tmp_path / 'on/last.pth.tar', weights_only=False)['state_dict']
    assert torch.allclose(trained_on['conv1.0.weight'], best['state_dict_ema']['conv1.0.weight'], atol=1e-5)
    assert trained_on['bn1.aux_bn.0.num_batches_tracked'] > best['state_dict_ema']['bn1.aux_bn.0.num_batches_tracked']
    push_to_hub(tmp_path / 'on/last.pth.tar', REPO)
    assert json.loads(published(hub)['config.json'])['architecture'] == 'test_resnet'

    results = tmp_path / 'results'
    validate_main(['--model', f'hf-hub:{REPO}', '--route', 'aux', '--data-dir', few_digits, '-j', '0',
                   '--device', 'cpu', '--results-file', str(results), '--results-format', 'json'])
    row, = read_results([str(results)])
    assert (row['route'], row['dataset']) == ('aux', Path(few_digits).name)
    push_to_hub(tmp_path / 'on/last.pth.tar', REPO, results=[row])
    assert '| clean | aux |' in published(hub)['README.md'].decode()


def test_interrupted_training_is_not_published(hub, few_digits, tmp_path, monkeypatch, capsys):
    train_epoch = Trainer.train_epoch

    def interrupted_in_the_second(self, epoch):
        if epoch:
            raise KeyboardInterrupt
        return train_epoch(self, epoch)

    monkeypatch.setattr(Trainer, 'train_epoch', interrupted_in_the_second)
    train_main(['--data-dir', few_digits, '--output', str(tmp_path), '--experiment', 'run', *RUN, '--epochs', '2',
                '--push-to-hub', REPO])
    assert (tmp_path / 'run/model_best.pth.tar').exists()
    assert '--result' in capsys.readouterr().out
    assert not hub.repos


def test_train_finds_out_before_the_training_that_it_cannot_push(hub, few_digits, tmp_path, use_hub, capsys):
    use_hub(hub, token=None)
    run = ['--data-dir', few_digits, '--output', str(tmp_path / 'out'), *RUN]
    assert 'no Hub token' in error_line(capsys, train_main, [*run, '--push-to-hub', REPO])
    use_hub(hub, token='hf_wrong' * 4)
    assert 'refuses the token' in error_line(capsys, train_main, [*run, '--push-to-hub', REPO])
    use_hub(hub)
    assert 'give user/name' in error_line(capsys, train_main, [*run, '--push-to-hub', 'name'])
    assert 'does not own' in error_line(capsys, train_main, [*run, '--push-to-hub', 'somebody/name'])
    assert not (tmp_path / 'out').exists()
    hub.fail('POST .*/commit/', status=400)
    line = error_line(capsys, train_main, [*run, '--experiment', 'run', '--push-to-hub', REPO])
    assert f'python -m timm_advprop.hub push {tmp_path / "out/run/model_best.pth.tar"} {REPO}' in line



@pytest.mark.parametrize('recipe, num_aux, trained_on, route', [
    (dict(regime='vanilla'), 1, ['nothing'], None),
    (dict(regime='madry', adv_eps=[4.0]), 1, ['nothing'], None),
    (dict(regime='joint'), 2, ['nothing', 'nothing'], None),
    (dict(regime='fast-advprop'), 1, ['adversarial images'], 1),
    (dict(regime='advprop', split_bn=True, aug_splits=2), 2, ['augmented images', 'adversarial images'], 2),
    (dict(regime='advprop', adv_generator='gaussian-noise', adv_eps=[8.0]), 1, ['gaussian-noise'], None),
    (dict(regime=None, adv_eps=[1.0]), 2, ['adversarial images', 'nothing'], 1),
    (dict(), 1, [None], None),
], ids=str)
def test_a_release_tells_what_its_auxiliary_norms_were_trained_on(recipe, num_aux, trained_on, route):
    release = release_model(timm.create_model('test_resnet_ap', num_aux=num_aux), recipe)
    assert [norm.get('trained_on') for norm in release.aux_norms] == trained_on
    assert release.adversarial_route == route


def test_a_release_of_arguments_that_the_regime_has_no_use_for_is_one_line():
    release = release_model(timm.create_model('test_resnet_ap'), dict(regime='fast-advprop', adv_steps=3))
    with pytest.raises(InputError, match='no use for steps'):
        _ = release.aux_norms
