"""Tests of the Hub of the tests, with the Hub's own client."""
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, file_download, hf_hub_download
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

from tests.hub.loopback_hub import LoopbackHub
from tests.hub.publishing import url_template

ADDRESSES = [(constants, 'ENDPOINT'), (constants, 'HUGGINGFACE_CO_URL_TEMPLATE'),
             (file_download, 'HUGGINGFACE_CO_URL_TEMPLATE')]
TOKEN = 'hf_loopback_token_of_user'
REPO = 'user/model'
FILES = {
    'model.safetensors': bytes(range(256)) * 5000,
    'folder/a file.bin': b'\0\1\n',
    'empty.bin': b'',
    'config.json': b'{"caf\xc3\xa9": 1}\n',
    'README.md': b'---\nlicense: mit\n---\n',
}


@pytest.fixture(autouse=True)
def client_of_this_process(monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    for module, name in ADDRESSES:  # which `client` sets
        monkeypatch.setattr(module, name, getattr(module, name, None), raising=False)
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)  # between attempts


@pytest.fixture
def pull(loopback_hub, tmp_path):
    """A function that returns the content of a file of the Hub."""
    def read(file, **kwargs):
        kwargs = {'cache_dir': tmp_path / 'cache', 'endpoint': loopback_hub.endpoint, 'token': False, **kwargs}
        return Path(hf_hub_download(REPO, file, **kwargs)).read_bytes()
    return read


def client(hub, token=TOKEN):
    for module, name in ADDRESSES:  # clients before 1.0 compare the address of a commit with them
        setattr(module, name, hub.endpoint if name == 'ENDPOINT' else url_template(hub))
    return HfApi(endpoint=hub.endpoint, token=token)


def push(hub, files, token=TOKEN, **kwargs):
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    return client(hub, token).create_commit(REPO, additions, commit_message='Push', **kwargs).oid


@pytest.mark.parametrize('storage', ['lfs', 'regular'])
def test_pulled_files_are_the_pushed_ones(storage, tmp_path):
    weights = tmp_path / 'weights'
    weights.write_bytes(FILES['model.safetensors'])
    with LoopbackHub(storage) as hub:
        client(hub).create_repo(REPO)
        sha = push(hub, {**FILES, 'model.safetensors': weights})
        large = ('model.safetensors', 'folder/a file.bin') if storage == 'lfs' else ()
        assert {request for request in hub.requests if request.startswith('PUT')} == {
            f'PUT /lfs/{hub.commits(REPO)[1].oids[name]}' for name in large}
        for revision in ('main', sha):
            for name, content in FILES.items():
                path = hf_hub_download(
                    REPO, name, revision=revision, endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
                assert Path(path).read_bytes() == content
                assert sha in path
        initial, pushed = hub.commits(REPO)
        assert (pushed.sha, pushed.message) == (sha, 'Push')
        assert pushed.files == {**initial.files, **FILES}
        info = client(hub).model_info(REPO, revision=initial.sha)
        assert [file.rfilename for file in info.siblings] == ['.gitattributes']
        assert push(hub, FILES) == sha  # the client sees from the preupload's answer that nothing has changed
        assert not any('PUT' in request for request in hub.requests[-3:])


def test_commit_is_all_or_nothing(loopback_hub, pull):
    sha = loopback_hub.add_repo(REPO, {'a': 'one', 'b': 'two'})
    api = client(loopback_hub)
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.create_commit(
            REPO,
            [CommitOperationAdd('a', b'new'), CommitOperationDelete('missing')],
            commit_message='Push',
        )
    loopback_hub.fail('POST .*lfs/objects/batch', status=400)
    with pytest.raises(BadRequestError):
        push(loopback_hub, {'a': b'new', 'b.bin': b'new'})
    assert len(loopback_hub.commits(REPO)) == 1
    api.create_commit(REPO, [CommitOperationDelete('b')], commit_message='Delete')
    assert loopback_hub.commits(REPO)[-1].files == {'a': b'one'}
    assert pull('b', revision=sha) == b'two'
    with pytest.raises(EntryNotFoundError):
        pull('b')


def test_large_file_must_have_been_uploaded(loopback_hub):
    loopback_hub.add_repo(REPO, {'a': 'one'})
    url = f'{loopback_hub.endpoint}/lfs/{"0" * 64}'
    with pytest.raises(HTTPError, match='400'):
        urlopen(Request(url, b'other', method='PUT'))
    addition = CommitOperationAdd('a.bin', b'content')
    client(loopback_hub).preupload_lfs_files(REPO, [addition])
    loopback_hub.objects.clear()
    with pytest.raises(BadRequestError, match='LFS pointer'):
        client(loopback_hub).create_commit(REPO, [addition], commit_message='Push')
    assert len(loopback_hub.commits(REPO)) == 1


def test_parent_commit_is_honoured(loopback_hub):
    first = loopback_hub.add_repo(REPO, {'a': 'one'})
    second = push(loopback_hub, {'a': b'two'}, parent_commit=first)
    with pytest.raises(HfHubHTTPError, match='A commit has happened since') as error:
        push(loopback_hub, {'a': b'three'}, parent_commit=first)
    assert error.value.response.status_code == 412
    assert [commit.sha for commit in loopback_hub.commits(REPO)] == [first, second]


def test_branches(loopback_hub, pull):
    first = loopback_hub.add_repo(REPO, {'a': 'one'})
    loopback_hub.add_repo(REPO, {'a': 'two'})
    api = client(loopback_hub)
    api.create_branch(REPO, branch='dev/x', revision=first)
    with pytest.raises(HfHubHTTPError, match='409'):
        api.create_branch(REPO, branch='dev/x')
    sha = push(loopback_hub, {'a': b'three'}, revision='dev/x')
    assert [commit.sha for commit in loopback_hub.commits(REPO, 'dev/x')] == [first, sha]
    assert pull('a', revision='dev/x') == pull('a', revision=sha) == b'three'
    assert pull('a') == b'two'
    assert api.repo_exists(REPO) and api.file_exists(REPO, 'a', revision='dev/x')
    assert not api.revision_exists(REPO, 'missing')


def test_tokens(loopback_hub, pull):
    loopback_hub.tokens['hf_other'] = 'other'
    api = client(loopback_hub)
    assert api.whoami()['name'] == 'user'
    with pytest.raises(OSError, match='Invalid user token'):  # requests' error before 1.0
        client(loopback_hub, 'hf_unknown').whoami()
    for token, status in (('hf_unknown', 401), (False, 401), ('hf_other', 403)):
        with pytest.raises(HfHubHTTPError) as error:
            client(loopback_hub, token).create_repo(REPO)
        assert error.value.response.status_code == status
    assert api.create_repo('model', private=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError, match='You already created this model repo'):
        api.create_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    push(loopback_hub, {'a': b'one'})
    assert loopback_hub.repos[REPO].private and pull('a', token=TOKEN) == b'one'
    for token in (False, 'hf_other'):
        with pytest.raises(RepositoryNotFoundError):
            client(loopback_hub, token).model_info(REPO)
        with pytest.raises(RepositoryNotFoundError):
            push(loopback_hub, {'a': b'two'}, token)
    loopback_hub.repos[REPO].private = False
    for token, status in ((False, 401), ('hf_other', 403)):
        assert client(loopback_hub, token).model_info(REPO).sha == loopback_hub.commits(REPO)[-1].sha
        with pytest.raises(HfHubHTTPError) as error:
            push(loopback_hub, {'a': b'two'}, token)
        assert error.value.response.status_code == status
    assert len(loopback_hub.commits(REPO)) == 2


def test_faults(loopback_hub, pull):
    loopback_hub.add_repo(REPO, {'a.bin': FILES['model.safetensors']})
    send = partial(push, loopback_hub, {'a.bin': b'new'})
    loopback_hub.fail('POST .*/commit/', status=500)
    loopback_hub.fail('POST .*/commit/')
    loopback_hub.fail('POST .*/commit/', effect='after')
    lost = ('RemoteProtocolError', 'ConnectionError')  # of httpx2, httpx and requests, the clients' libraries
    for commits, names in ((1, ('HfHubHTTPError',)), (1, lost), (2, lost)):
        with pytest.raises(Exception) as error:  # noqa: B017
            send()
        assert type(error.value).__name__ in names
        assert len(loopback_hub.commits(REPO)) == commits
    loopback_hub.fail('PUT', times=2, status=503)
    push(loopback_hub, {'b.bin': b'retried'})
    assert sum(request.startswith('PUT') for request in loopback_hub.requests) == 4

    first = loopback_hub.commits(REPO)[0].sha
    loopback_hub.fail('resolve.*a.bin', body='corrupted')
    content = pull('a.bin', revision=first)
    assert content != FILES['model.safetensors'] and len(content) == len(FILES['model.safetensors'])
    assert pull('b.bin') == b'retried'
    if huggingface_hub.__version__.startswith('0.'):  # which does not go on where an answer ended too early
        return
    loopback_hub.fail('resolve.*a.bin', body='truncated')
    loopback_hub.requests.clear()
    assert pull('a.bin', revision=first, force_download=True) == FILES['model.safetensors']
    assert [request.split()[0] for request in loopback_hub.requests] == ['HEAD', 'GET', 'GET']


XET_SCRIPT = f'''
import os
from huggingface_hub import HfApi

api, noise = HfApi(), os.urandom(1 << 20)
api.create_repo({REPO!r})
for weights in (noise + bytes(1 << 20), noise + noise[1000:] + b'new'):
    api.upload_file(path_or_fileobj=weights, path_in_repo='model.safetensors', repo_id={REPO!r})
    with open(api.hf_hub_download({REPO!r}, 'model.safetensors'), 'rb') as file:
        assert file.read() == weights
'''


@pytest.mark.slow  # it follows internals of a client
def test_large_files_arrive_by_xet(loopback_hub, tmp_path):
    pytest.importorskip('hf_xet')
    environment = loopback_hub.environment(tmp_path, token=TOKEN, xet=True)
    result = subprocess.run([sys.executable, '-c', XET_SCRIPT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(loopback_hub.commits(REPO)) == 3
    requests = [request.split('/')[:4] for request in loopback_hub.requests]
    assert ['POST ', 'cas', 'v1', 'xorbs'] in requests and ['PUT ', 'lfs'] not in [request[:2] for request in requests]
