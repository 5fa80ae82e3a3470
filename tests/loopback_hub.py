"""A Hugging Face Hub on the loopback address, for tests without internet: it serves the files of a folder."""
import hashlib
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Dict, List

_FILE_URL = re.compile(r'/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)')


class LoopbackHub:
    """Serves `<root>/<user>/<name>/<file>` as file of the repository `<user>/<name>`, as long as it is entered.

    Args:
        root: The folder.
    """
    commit = '1' * 40

    def __init__(self, root: Path):
        self.root = root
        self.requests: List[str] = []
        handler = type('Handler', (_Handler,), {'hub': self})
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), handler)

    @property
    def endpoint(self) -> str:
        return f'http://127.0.0.1:{self._server.server_port}'

    def __enter__(self) -> 'LoopbackHub':
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repo(self, repo_id: str) -> Path:
        """The folder of a repository, made if need be."""
        folder = self.root / repo_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def environment(self, home: Path) -> Dict[str, str]:
        """Environment of a process whose Hub this is. huggingface_hub reads it at import: start a new process.

        Args:
            home: Folder for the process's Hub cache.
        """
        inherited = {key: value for key, value in os.environ.items() if not key.startswith('HF_')}
        return {
            **inherited,
            'HF_ENDPOINT': self.endpoint,
            'HF_HOME': str(home),
            'HF_HUB_DISABLE_XET': '1',
            'NO_PROXY': '127.0.0.1',
        }


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = 'HTTP/1.1'

    def do_HEAD(self) -> None:
        self._send_file(with_body=False)

    def do_GET(self) -> None:
        self._send_file(with_body=True)

    def _send_file(self, with_body: bool) -> None:
        self.hub.requests.append(f'{self.command} {self.path}')
        url = _FILE_URL.fullmatch(self.path)
        if url is None or not (self.hub.root / url['repo']).is_dir():
            return self._send_error('RepoNotFound')
        path = self.hub.root / url['repo'] / url['file']
        if not path.is_file():
            return self._send_error('EntryNotFound')
        content = path.read_bytes()
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header('X-Repo-Commit', self.hub.commit)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _send_error(self, code: str) -> None:
        self.send_response(404)
        self.send_header('X-Error-Code', code)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def log_message(self, *args) -> None:
        pass
