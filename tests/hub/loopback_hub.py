"""A Hugging Face Hub on the loopback address: huggingface_hub's client can push to it and pull from it."""
import base64
import hashlib
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union
from urllib.parse import unquote, urlsplit

import yaml

from tests.hub.loopback_xet import shard_files, xorb_chunks

_LFS_SUFFIXES = ('.safetensors', '.bin', '.pth', '.png')
_LICENSES = ('apache-2.0', 'cc-by-4.0', 'cc-by-nc-4.0', 'mit', 'unknown', 'other')  # some of the Hub's
_DATE = '2026-01-01T00:00:00.000Z'


class Commit(NamedTuple):
    """State of a branch. `oids` are SHA-256s of files in large file storage, SHA-1s of the git blobs of others."""
    sha: str
    message: str
    files: Dict[str, bytes]
    oids: Dict[str, str]


@dataclass
class Repo:
    """A model repository. The commits of each branch are in order, the oldest is first."""
    id: str
    private: bool = False
    branches: Dict[str, List[Commit]] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split('/')[0]

    def history(self, revision: str) -> List[Commit]:
        """The commits up to a branch's head or a commit, none if there is no such revision."""
        for name, commits in self.branches.items():
            shas = [commit.sha for commit in commits]
            if revision == name or revision in shas:
                return commits if revision == name else commits[:shas.index(revision) + 1]
        return []

    def commit(self, branch: str, message: str, files: Dict[str, bytes], oids: Dict[str, str]) -> Commit:
        """Give a branch a new head."""
        commits = self.branches.setdefault(branch, [])
        content = [commits[-1].sha if commits else self.id, message, sorted(oids.items())]
        commits.append(Commit(hashlib.sha1(json.dumps(content).encode()).hexdigest(), message, files, oids))
        return commits[-1]


class LoopbackHub:
    """Holds model repositories, and serves them as long as it is entered.

    Tests may read and change its `repos`, the `tokens` (the user of each), the large files' content (`objects`, by
    SHA-256) and the list of `requests` (`'METHOD path'`).

    Args:
        storage: `'lfs'` tells clients to treat weights and images as large files, as the Hub does, `'regular'` no file.
    """

    def __init__(self, storage: str = 'lfs'):
        self.storage = storage
        self.tokens: Dict[str, str] = {'hf_loopback_token_of_user': 'user'}
        self.repos: Dict[str, Repo] = {}
        self.objects: Dict[str, bytes] = {}
        self.xorbs: Dict[str, List[bytes]] = {}
        self.requests: List[str] = []
        self.faults: List[_Fault] = []
        self.lock = threading.Lock()
        self.closed = False
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (_Handler,), {'hub': self}))

    @property
    def endpoint(self) -> str:
        return f'http://127.0.0.1:{self._server.server_port}'

    def __enter__(self) -> 'LoopbackHub':
        threading.Thread(target=self._server.serve_forever, args=(.02,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.closed = True
        self._server.shutdown()
        self._server.server_close()

    def add_repo(self, repo_id: str, files: Mapping[str, Union[bytes, str, Path]], private: bool = False) -> str:
        """Make a repository, or replace all files of the one that is there, in one commit.

        Args:
            repo_id: The repository.
            files: Content of each file: bytes, text or the path of a file that holds it.
            private: Only its owner can see a repository that is made.

        Returns:
            SHA of the commit.
        """
        contents = {name: _content(value) for name, value in files.items()}
        oids = {name: (self.store if self.is_large(name) else _git_oid)(value) for name, value in contents.items()}
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo(repo_id, private))
            return repo.commit('main', 'Commit of the test', contents, oids).sha

    def commits(self, repo_id: str, revision: str = 'main') -> List[Commit]:
        """The commits of a revision of a repository, the oldest first."""
        with self.lock:
            return list(self.repos[repo_id].history(revision))

    def fail(
            self,
            pattern: str,
            times: int = 1,
            status: Optional[int] = None,
            effect: str = 'before',
            body: Optional[str] = None,
    ) -> None:
        """Let the next requests of a kind fail.

        Args:
            pattern: Expression that is searched in `'METHOD path'`.
            times: Number of requests that fail.
            status: HTTP status to answer, without doing anything. `None` closes the connection without an answer.
            effect: It closes `'before'` or `'after'` the request's work is done.
            body: Only GETs fail: they are answered with `'truncated'` (in the middle) or `'corrupted'` content.
        """
        with self.lock:
            self.faults.append(_Fault(pattern, times, status, effect, body))

    def environment(
            self,
            home: Union[str, Path],
            token: Optional[str] = None,
            xet: bool = False,
            offline: bool = False,
    ) -> Dict[str, str]:
        """Environment of a process whose Hub this is. huggingface_hub reads it at import: start a new process.

        Args:
            home: Folder for the process's Hub cache.
            token: The process's token.
            xet: The process may use Xet.
            offline: The process must not use the Hub.
        """
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(('HF_', 'HUGGING'))}
        return {
            **inherited,
            **({} if token is None else {'HF_TOKEN': token}),
            'HF_ENDPOINT': self.endpoint,
            'HF_HOME': str(home),
            'HF_HUB_DISABLE_XET': '0' if xet else '1',
            'HF_HUB_OFFLINE': '1' if offline else '0',
            'HF_HUB_DISABLE_TELEMETRY': '1',
            'HF_HUB_DISABLE_UPDATE_CHECK': '1',
            'HF_XET_XORB_COMPRESSION_POLICY': 'none',
            'NO_PROXY': '127.0.0.1',
            'no_proxy': '127.0.0.1',
        }

    def is_large(self, path: str) -> bool:
        """Whether a file of this name belongs in large file storage."""
        return self.storage == 'lfs' and path.endswith(_LFS_SUFFIXES)

    def store(self, content: bytes) -> str:
        """Put content in large file storage, and return its name there."""
        oid = hashlib.sha256(content).hexdigest()
        self.objects[oid] = content
        return oid


@dataclass
class _Fault:
    pattern: str
    times: int
    status: Optional[int]
    effect: str
    body: Optional[str]

    def hits(self, line: str) -> bool:
        return self.times > 0 and (not self.body or line.startswith('GET ')) and bool(re.search(self.pattern, line))


class _Answer(NamedTuple):
    status: int
    content: bytes
    headers: Dict[str, str]


class _Refusal(Exception):
    """An answer instead of a request's work, raised before anything has changed."""

    def __init__(self, status: int, message: str, code: Optional[str] = None, url: Optional[str] = None, **headers):
        headers.update({'X-Error-Message': message, **({'X-Error-Code': code} if code else {})})
        self.answer = _json({'error': message, **({'url': url} if url else {})}, status, headers)


def _json(value: Any, status: int = 200, headers: Optional[Dict[str, str]] = None) -> _Answer:
    return _Answer(status, json.dumps(value).encode(), {'Content-Type': 'application/json', **(headers or {})})


def _content(value: Union[bytes, str, Path]) -> bytes:
    return value.read_bytes() if isinstance(value, Path) else value.encode() if isinstance(value, str) else value


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def _history(repo: Repo, revision: str) -> List[Commit]:
    commits = repo.history(revision)
    if not commits:
        raise _Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
    return commits


_ROUTES: List[Tuple[str, re.Pattern, bool, Callable[..., _Answer]]] = []
_PARTS = {'repo': '[^/]+/[^/]+', 'revision': '[^/]+', 'file': '.+', 'oid': '[0-9a-f]{64}'}


def _route(method: str, path: str, login: bool = False) -> Callable:
    """Let a method answer the requests of a path. A `login` needs a token, for a repository that of its owner."""
    pattern = re.compile(re.sub(r'{(\w+)}', lambda match: f'(?P<{match[1]}>{_PARTS[match[1]]})', path))

    def register(function):
        _ROUTES.append((method, pattern, login, function))
        return function
    return register


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # an answer's head and body are two packets: the second would wait

    def do_GET(self) -> None:
        self.content = self._read()
        line = f'{self.command} {self.path}'
        with self.hub.lock:
            if self.hub.closed:  # connections that clients keep open outlive the server
                self.close_connection = True
                return
            self.hub.requests.append(line)
            fault = next((fault for fault in self.hub.faults if fault.hits(line)), None)
            answer = self._work() if fault is None else self._fail(fault)
        if answer is not None:
            self._send(answer, fault.body if fault else None)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *args) -> None:
        pass

    def _read(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        content = bytearray()
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(content)

    def _send(self, answer: _Answer, body: Optional[str]) -> None:
        content, half = answer.content, len(answer.content) // 2
        self.send_response(answer.status)
        for name, value in {**answer.headers, 'Content-Length': len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body == 'corrupted':
            content = content[:half] + bytes(byte ^ 255 for byte in content[half:half + 8]) + content[half + 8:]
        elif body == 'truncated':
            content, self.close_connection = content[:half], True
        if self.command != 'HEAD':
            self.wfile.write(content)

    def _fail(self, fault: _Fault) -> Optional[_Answer]:
        fault.times -= 1
        if fault.status is not None:
            return _json({'error': 'Injected fault'}, fault.status)
        if fault.body is not None:
            return self._work()
        if fault.effect == 'after':
            self._work()
        self.close_connection = True

    def _work(self) -> _Answer:
        try:
            kind, _, token = self.headers.get('Authorization', '').partition(' ')
            if token and token not in self.hub.tokens:
                raise _Refusal(401, 'Invalid credentials in Authorization header')
            self.user = self.hub.tokens.get(token)
            for method, pattern, login, function in _ROUTES:
                match = pattern.fullmatch(urlsplit(self.path).path)
                if match and method == self.command.replace('HEAD', 'GET'):
                    arguments = {key: unquote(value) for key, value in match.groupdict().items()}
                    if 'repo' in arguments:
                        arguments['repo'] = self._repo(arguments['repo'], login)
                    elif login and self.user is None:
                        raise _Refusal(401, 'Invalid username or password.')
                    return function(self, **arguments)
            raise _Refusal(404, f'Nothing at {self.path}')
        except _Refusal as refusal:
            return refusal.answer
        except (KeyError, ValueError) as error:
            return _Refusal(400, f'Malformed request: {error!r}').answer

    def _repo(self, repo_id: str, login: bool) -> Repo:
        repo = self.hub.repos.get(repo_id)
        if repo is None or repo.private and repo.owner != self.user:
            raise _Refusal(404 if self.user else 401, 'Repository not found', 'RepoNotFound')
        if login and repo.owner != self.user:
            raise _Refusal(403 if self.user else 401, f'You have no write access to {repo_id}')
        return repo

    @_route('GET', '/api/whoami-v2', login=True)
    def _whoami(self) -> _Answer:
        return _json({'type': 'user', 'name': self.user, 'fullname': self.user, 'orgs': []})

    @_route('POST', '/api/validate-yaml')
    def _validate_yaml(self) -> _Answer:
        front_matter = re.match('---\n(.*?)\n---\n', json.loads(self.content)['content'], re.S)
        warnings = [] if front_matter else [{'message': 'empty or missing yaml metadata in repo card'}]
        license = yaml.safe_load(front_matter[1]).get('license') if front_matter else None
        errors = [] if license in (None, *_LICENSES) else [{'message': f'"license" must be one of {list(_LICENSES)}'}]
        return _json({'errors': errors, 'warnings': warnings}, 400 if errors else 200)

    @_route('POST', '/api/repos/create', login=True)
    def _create(self) -> _Answer:
        asked = json.loads(self.content)
        private = asked.get('visibility') == 'private' or asked.get('private', False)
        repo = Repo(f'{asked.get("organization") or self.user}/{asked["name"]}', private)
        url = f'{self.hub.endpoint}/{repo.id}'
        if repo.owner != self.user:
            raise _Refusal(403, f'You don\'t have the rights to create a model under the namespace "{repo.owner}"')
        if repo.id in self.hub.repos:
            raise _Refusal(409, 'You already created this model repo', url=url)
        self.hub.repos[repo.id] = repo
        attributes = ''.join(f'*{suffix} filter=lfs diff=lfs merge=lfs -text\n' for suffix in _LFS_SUFFIXES).encode()
        repo.commit('main', 'initial commit', {'.gitattributes': attributes}, {'.gitattributes': _git_oid(attributes)})
        return _json({'url': url, 'name': repo.id})

    @_route('GET', '/api/models/{repo}')
    @_route('GET', '/api/models/{repo}/revision/{revision}')
    def _info(self, repo: Repo, revision: str = 'main') -> _Answer:
        head = _history(repo, revision)[-1]
        siblings = [{'rfilename': name} for name in head.files]
        dates = {'createdAt': _DATE, 'lastModified': _DATE}
        return _json({
            'id': repo.id, 'author': repo.owner, 'sha': head.sha, 'private': repo.private, 'gated': False,
            'disabled': False, 'downloads': 0, 'likes': 0, 'tags': [], 'siblings': siblings, **dates,
        })

    @_route('POST', '/api/models/{repo}/branch/{revision}', login=True)
    def _create_branch(self, repo: Repo, revision: str) -> _Answer:
        if revision in repo.branches:
            raise _Refusal(409, f'Reference already exists: {revision}')
        repo.branches[revision] = list(_history(repo, json.loads(self.content).get('startingPoint', 'main')))
        return _json({})

    @_route('POST', '/api/models/{repo}/preupload/{revision}', login=True)
    def _preupload(self, repo: Repo, revision: str) -> _Answer:
        oids = _history(repo, revision)[-1].oids
        return _json({'files': [
            {
                'path': file['path'],
                'uploadMode': 'lfs' if self.hub.is_large(file['path']) else 'regular',
                'shouldIgnore': False,
                'oid': oids.get(file['path']),
            }
            for file in json.loads(self.content)['files']
        ]})

    @_route('POST', '/{repo}.git/info/lfs/objects/batch', login=True)
    def _lfs_batch(self, repo: Repo) -> _Answer:
        objects = json.loads(self.content)['objects']
        for wanted in objects:
            if wanted['oid'] not in self.hub.objects:
                verify = f'{self.hub.endpoint}/{repo.id}.git/info/lfs/objects/verify'
                upload = f'{self.hub.endpoint}/lfs/{wanted["oid"]}'
                wanted['actions'] = {'upload': {'href': upload}, 'verify': {'href': verify}}
        return _json({'transfer': 'basic', 'objects': objects})

    @_route('PUT', '/lfs/{oid}')
    def _lfs_upload(self, oid: str) -> _Answer:
        """Needs no token: clients send none to the address that they got from the batch request."""
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise _Refusal(400, 'The content does not match its SHA-256')
        self.hub.store(self.content)
        return _json({})

    @_route('POST', '/{repo}.git/info/lfs/objects/verify', login=True)
    def _lfs_verify(self, repo: Repo) -> _Answer:
        self._large_file(**json.loads(self.content))
        return _json({})

    def _large_file(self, oid: str, size: int) -> bytes:
        if len(self.hub.objects.get(oid, b'')) != size:
            raise _Refusal(400, 'Your push was rejected because an LFS pointer pointed to a file that does not exist.')
        return self.hub.objects[oid]

    @_route('GET', '/api/models/{repo}/xet-write-token/{revision}', login=True)
    def _xet_token(self, repo: Repo, revision: str) -> _Answer:
        token = self.headers['Authorization'].split()[1]
        return _json({'casUrl': f'{self.hub.endpoint}/cas', 'accessToken': token, 'exp': int(time.time()) + 3600})

    @_route('POST', '/cas/v1/xorbs/default/{oid}', login=True)
    def _xet_xorb(self, oid: str) -> _Answer:
        self.hub.xorbs[oid] = xorb_chunks(self.content)
        return _json({'was_inserted': True})

    @_route('POST', '/cas/v1/shards', login=True)
    def _xet_shard(self) -> _Answer:
        for content in shard_files(self.content, self.hub.xorbs):
            self.hub.store(content)
        return _json({'result': 1})

    @_route('POST', '/api/models/{repo}/commit/{revision}', login=True)
    def _commit(self, repo: Repo, revision: str) -> _Answer:
        if revision not in repo.branches:
            raise _Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        head = repo.branches[revision][-1]
        header, *operations = [json.loads(line) for line in self.content.splitlines()]
        if header['value'].get('parentCommit', head.sha) != head.sha:
            raise _Refusal(412, 'A commit has happened since. Please refresh and try again.')
        files, oids = dict(head.files), dict(head.oids)
        for operation in operations:
            self._apply(files, oids, operation['key'], **operation['value'])
        commit = repo.commit(revision, header['value']['summary'], files, oids)
        url = f'{self.hub.endpoint}/{repo.id}/commit/{commit.sha}'
        return _json({'success': True, 'commitOid': commit.sha, 'commitUrl': url, 'hookOutput': ''})

    def _apply(self, files: Dict[str, bytes], oids: Dict[str, str], key: str, path: str, **value) -> None:
        if key == 'file':
            files[path] = base64.b64decode(value['content'])
            oids[path] = _git_oid(files[path])
        elif key == 'lfsFile':
            files[path] = self._large_file(value['oid'], value['size'])
            oids[path] = value['oid']
        elif key != 'deletedFile':
            raise _Refusal(400, f'This Hub cannot do {key}')
        elif path in files:
            del files[path], oids[path]
        else:
            raise _Refusal(404, "A file with this name doesn't exist", 'EntryNotFound')

    @_route('GET', '/{repo}/resolve/{revision}/{file}')
    def _resolve(self, repo: Repo, revision: str, file: str) -> _Answer:
        commit = _history(repo, revision)[-1]
        headers = {'X-Repo-Commit': commit.sha}
        if file not in commit.files:
            raise _Refusal(404, 'Entry not found', 'EntryNotFound', **headers)
        etag = f'"{commit.oids[file]}"'
        headers.update({'Content-Type': 'application/octet-stream', 'ETag': etag, 'X-Linked-Etag': etag})
        return _Answer(200, commit.files[file], headers)
