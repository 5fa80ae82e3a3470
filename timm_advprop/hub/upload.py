"""Uploads a folder to the Hub as one commit, and makes sure that it is one commit and no more."""
import hashlib
import json
import logging
import os
import re
import time
from typing import Any, Mapping, Optional, Sequence, Set

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_hf_file_metadata,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

from ..downloads import HUB_ERRORS, download_file, explain_hub_error, redact
from ..errors import InputError
from ..models import base_of
from ..publication import CONFIG_FILE, file_digest
from ..version import __version__

__all__ = ['check_can_push', 'upload_folder']

_logger = logging.getLogger(__name__)

ATTEMPTS = 4
FIRST_PAUSE = 2.  # seconds, doubled after each attempt
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_CHANGED_MEANWHILE = 412
# what the client raises for an upload that failed: its own errors, and those of the Xet library
_UPLOAD_ERRORS = (*HUB_ERRORS, RuntimeError, ValueError)


def check_can_push(repo_id: str, token: Optional[str] = None) -> None:
    """Check what can be said before a long work whose result is to be published: the name and the token.

    Args:
        repo_id: `user/name`.
        token: Hub token, the stored one by default.

    Raises:
        InputError: The name is wrong, there is no token, or the Hub refuses it.
    """
    api = _open_api(repo_id, token)
    try:
        api.whoami()
    except HUB_ERRORS as error:
        if _status(error) == 401:
            raise InputError(f'Cannot publish {repo_id}: {explain_hub_error(error, repo_id)}') from None


def upload_folder(
        folder: str,
        files: Sequence[str],
        repo_id: str,
        architecture: str,
        message: str,
        stale: Sequence[str] = (),
        revision: Optional[str] = None,
        private: Optional[bool] = None,
        token: Optional[str] = None,
) -> str:
    """Publish files of a folder as one commit. The repository and the branch are made where they are missing.

    Uploads are repeated by the client; the commit is repeated here, after a look whether it was made in spite of an
    error. Until the commit, the repository stays as it was.

    Args:
        folder: Folder with the files.
        files: Their names.
        repo_id: `user/name`.
        architecture: Plain timm architecture. A repository that holds another one is refused.
        message: Commit message.
        stale: Files of a former publication that the commit deletes where they are there.
        revision: Branch, `main` by default.
        private: Make a new repository private.
        token: Hub token, the stored one by default.

    Returns:
        Address of the commit.

    Raises:
        InputError: It could not be published; the message says why, what happened and what to do.
    """
    branch = _Branch(_open_api(repo_id, token), repo_id, revision)
    try:
        existed = branch.create(private)
        head = branch.prepare()
        if existed:
            branch.check_holds(architecture)
        stale = [name for name in stale if existed and branch.has_file(name)]
        additions = [CommitOperationAdd(name, os.path.join(folder, name)) for name in files]
        branch.api.preupload_lfs_files(repo_id, additions, revision=revision, free_memory=False)
    except InputError:
        raise
    except _UPLOAD_ERRORS as error:
        raise branch.unchanged(error) from None
    operations = [*additions, *(CommitOperationDelete(name) for name in stale)]
    return _commit(branch, operations, {name: _digests(os.path.join(folder, name)) for name in files}, message, head)


class _Branch:
    # A branch of a repository, as the Hub's client sees it.
    def __init__(self, api: HfApi, repo_id: str, revision: Optional[str]):
        self.api, self.repo_id, self.revision = api, repo_id, revision
        self.model_id = f'{repo_id}@{revision}' if revision else repo_id

    def create(self, private: Optional[bool]) -> bool:
        # Makes the repository; whether it was there before.
        try:
            self.api.create_repo(self.repo_id, private=private)
            return False
        except HfHubHTTPError as error:
            if _status(error) == 403 and self.api.repo_exists(self.repo_id):
                return True  # a token for this repository alone may not create others
            if _status(error) != 409:
                raise
        if private and self.api.model_info(self.repo_id).private is False:
            raise InputError(f'{self.repo_id} exists and is public: make it private in its settings first, or leave '
                             '--private out.')
        return True

    def prepare(self) -> Optional[str]:
        # Makes the branch; its head, None where the Hub does not say.
        try:
            return self.api.model_info(self.repo_id, revision=self.revision).sha
        except RevisionNotFoundError:
            self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
            return self.api.model_info(self.repo_id, revision=self.revision).sha
        except HfHubHTTPError as error:
            if _status(error) == 404:  # it exists: the Hub's index lags behind
                return None
            raise

    def check_holds(self, architecture: str) -> None:
        path = download_file(self.model_id, CONFIG_FILE, token=self.api.token)
        if path is None:
            return
        with open(path, encoding='utf-8') as file:
            held = json.load(file).get('architecture')
        if base_of(held) != architecture:
            raise InputError(f'The name {self.repo_id} is taken: it holds {held or "something else"}, not '
                             f'{architecture}. Choose another name.')

    def has_file(self, name: str) -> bool:
        return self.api.file_exists(self.repo_id, name, revision=self.revision)

    def commit_with(self, digests: Mapping[str, Set[str]]) -> Optional[str]:
        # The head, if it has these files, None if not.
        commit = None
        for name, known in digests.items():
            url = hf_hub_url(self.repo_id, name, revision=self.revision, endpoint=self.api.endpoint)
            try:
                metadata = get_hf_file_metadata(url, token=self.api.token, endpoint=self.api.endpoint)
            except EntryNotFoundError:
                return None
            if metadata.etag not in known:
                return None
            commit = metadata.commit_hash
        return commit

    def unchanged(self, error: Exception) -> InputError:
        again = '' if _is_refusal(error) else ' Push again: what was uploaded is not sent again.'
        return self.failure(error, f'No file of {self.repo_id} was changed.{again}')

    def failure(self, error: Exception, outcome: str) -> InputError:
        cause = error.__cause__ or error
        explanation = explain_hub_error(cause, self.model_id).rstrip('.')
        return InputError(redact(f'Cannot publish {self.model_id}: {explanation}. {outcome}', self.api.token))


def _commit(
        branch: _Branch,
        operations: Sequence[Any],
        digests: Mapping[str, Set[str]],
        message: str,
        head: Optional[str],
) -> str:
    # `head` as parent makes the Hub refuse a second commit where the first one was made.
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return branch.api.create_commit(
                branch.repo_id,
                operations,
                commit_message=message,
                revision=branch.revision,
                parent_commit=head,
            ).commit_url
        except _UPLOAD_ERRORS as error:
            commit = _look_for_commit(branch, digests, head, error)
            if commit:
                _logger.info('The Hub made the commit, its answer was lost.')
                return f'{branch.api.endpoint}/{branch.repo_id}/commit/{commit}'
            if _status(error) == _CHANGED_MEANWHILE:
                raise branch.failure(error, f'{branch.repo_id} was changed meanwhile: push again.') from None
            if attempt == ATTEMPTS or not _is_transient(error):
                raise branch.unchanged(error) from None
            _logger.warning(f'No commit yet: {explain_hub_error(error, branch.model_id)} '
                            f'Attempt {attempt + 1} of {ATTEMPTS} in {pause:.0f} s.')
        time.sleep(pause)
        pause *= 2
    raise AssertionError('unreachable')


def _look_for_commit(
        branch: _Branch,
        digests: Mapping[str, Set[str]],
        head: Optional[str],
        reason: Exception,
) -> Optional[str]:
    # The commit that was made in spite of an error, None where none was made.
    if _is_refusal(reason):
        return None
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            commit = branch.commit_with(digests)
            return commit if commit != head else None
        except HUB_ERRORS as error:
            if attempt == ATTEMPTS:
                url = f'{branch.api.endpoint}/{branch.repo_id}'
                raise branch.failure(error, f'Whether the commit was made is not known: look at {url} before you push '
                                            'again.') from None
        time.sleep(pause)
        pause *= 2
    return None


def _open_api(repo_id: str, token: Optional[str]) -> HfApi:
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo_id):
        raise InputError(f'{repo_id!r} is not the name of a Hub repository: give user/name.')
    token = token or get_token()
    if not token:
        raise InputError('There is no Hub token: log in with `hf auth login`, or set HF_TOKEN to a token with write '
                         'access.')
    if not re.fullmatch(r'[!-~]+', token):
        raise InputError('The Hub token has characters that no token has, such as spaces: copy it again.')
    return HfApi(token=token, library_name='timm-advprop', library_version=__version__)


def _status(error: Exception) -> Optional[int]:
    return getattr(getattr(error, 'response', None), 'status_code', None)


def _is_refusal(error: Exception) -> bool:
    # An answer that will not change, and says that nothing was done.
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in (*_TRANSIENT, _CHANGED_MEANWHILE)


def _is_transient(error: Exception) -> bool:
    status = _status(error)
    return status in _TRANSIENT if status is not None else not isinstance(error, (RuntimeError, ValueError))


def _digests(path: str) -> Set[str]:
    # What the Hub may call a file: its SHA-256, or the SHA-1 of its git blob.
    with open(path, 'rb') as file:
        header = f'blob {os.path.getsize(path)}\0'.encode()
        git = hashlib.sha1(header)
        while block := file.read(1 << 20):
            git.update(block)
    return {file_digest(path), git.hexdigest()}
