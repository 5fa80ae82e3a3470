"""Publishes a model on the Hub as one commit: one repository for stock timm and for AdvProp.

Uploads are repeated by the Hub's client; the commit is repeated here, after a look whether it was made in spite of an
error. Until the commit, the repository stays as it was.
"""
import hashlib
import logging
import os
import re
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Sequence, Set, Union

import torch.nn as nn
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_hf_file_metadata,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

from ..errors import InputError
from ..models import base_of
from ..version import __version__
from ..weights import CONFIG_FILE, file_digest, read_config
from ..weights.downloads import (
    HUB_ERRORS,
    PAUSES,
    check_repo_id,
    download_file,
    explain_hub_error,
    hub_status,
    is_transient,
    patiently,
    redact,
    tells_wait,
)
from .blending import BlendRequest
from .layout import FILES, write_publication
from .release import Release, open_release, release_model

__all__ = ['check_can_push', 'push_to_hub']

_logger = logging.getLogger(__name__)

_OF_A_NEW_REPOSITORY = {'.gitattributes', '.gitignore', 'LICENSE', 'README.md'}
_STALE = (*FILES, 'pytorch_model.bin')  # deleted where a publication does not have them
_CHANGED_MEANWHILE = 412
# what the client raises for an upload that failed: its own errors, and those of the Xet library
_UPLOAD_ERRORS = (*HUB_ERRORS, RuntimeError, ValueError)


def push_to_hub(
        model_or_checkpoint: Union[nn.Module, str, os.PathLike],
        repo_id: str,
        message: Optional[str] = None,
        revision: Optional[str] = None,
        private: Optional[bool] = None,
        token: Optional[str] = None,
        model: Optional[str] = None,
        model_kwargs: Optional[Mapping[str, Any]] = None,
        recipe: Optional[Mapping[str, Any]] = None,
        results: Sequence[Mapping[str, Any]] = (),
        dataset: Optional[str] = None,
        license: Optional[str] = None,
        images: bool = True,
        route: Optional[Union[str, float]] = None,
        recalibrate: int = 0,
        data_dir: Optional[str] = None,
        label_names: Optional[Sequence[str]] = None,
) -> str:
    """Publish a model on the Hugging Face Hub, as one commit.

    `model.safetensors` and `config.json` are the plain model, for stock timm; `aux.safetensors` holds the auxiliary
    norms. A model card, and from a checkpoint of a training run its recipe and summary, come with them.

    Args:
        model_or_checkpoint: A timm model, with split norms or plain, or a checkpoint file. Of a checkpoint the averaged
            weights are published where there are any.
        repo_id: `user/name`. The repository is made where it is missing.
        message: Commit message.
        revision: Branch, which is made where it is missing; `main` by default.
        private: Make a new repository private.
        token: Hub token with write access; by default `HF_TOKEN` or the one of `hf auth login`.
        model: Model name, for a checkpoint file that does not say it.
        model_kwargs: Further arguments of the model, where neither the file nor timm remembers them.
        recipe: Arguments of the run, under the names of `args.yaml`; they replace or add to those in the checkpoint.
        results: Results of the validation program, which the card shows.
        dataset: Name of the data set on the card, by default that of the run.
        license: Licence, by default that of the weights the run began with, else `apache-2.0`.
        images: Put validation images on the card, where the run's data set is there.
        route: Publish the plain model of this route alone: `'main'`, `'aux'`, the number of an auxiliary norm, or the
            share of the first one in a blend with the main norms, such as 0.3.
        recalibrate: Take that model's running statistics from this many images of the run's training split.
        data_dir: Root folder of their data set, by default that of the run.
        label_names: Names of the classes in their order, by default those of the run's data set or the model's cfg.

    Returns:
        Address of the commit.

    Raises:
        InputError: It cannot be published. The repository is then as it was, or the message says otherwise.
    """
    about: Dict[str, Any] = dict(results=results, dataset=dataset, license=license, label_names=label_names)
    about['blend'] = BlendRequest.of(route, recalibrate, data_dir)
    api = check_can_push(repo_id, token)  # before the work: to write and check a large model takes minutes
    _check_branch(revision)
    release = _release_of(model_or_checkpoint, model, model_kwargs, recipe, **about)
    with tempfile.TemporaryDirectory() as folder:
        written = write_publication(release, folder, repo_id, images, token)
        files = {name: os.path.join(folder, name) for name in written}
        return _upload(_Branch(api, repo_id, revision), files, release.architecture, message, private)


def _release_of(
        model_or_checkpoint: Union[nn.Module, str, os.PathLike],
        model: Optional[str],
        model_kwargs: Optional[Mapping[str, Any]],
        recipe: Optional[Mapping[str, Any]],
        **about: Any,
) -> Release:
    if isinstance(model_or_checkpoint, nn.Module):
        return release_model(model_or_checkpoint, recipe, model_kwargs, **about)
    return open_release(model_or_checkpoint, model, model_kwargs, recipe, **about)


def _check_branch(revision: Optional[str]) -> None:
    if revision and (not re.fullmatch(r'[\w.-]+(/[\w.-]+)*', revision) or '..' in revision):
        raise InputError(f'{revision!r} is not the name of a branch.')


def check_can_push(repo_id: str, token: Optional[str] = None, must_reach: bool = True) -> HfApi:
    """Check what can be said before a long work whose result is to be published: the name and the token.

    Args:
        repo_id: `user/name`.
        token: Hub token, the stored one by default.
        must_reach: A Hub that cannot be reached now is an error, not a warning.

    Returns:
        The Hub's client, with the token.

    Raises:
        InputError: The name is wrong, there is no token, or the Hub refuses it.
    """
    check_repo_id(repo_id)
    token = token or get_token()
    if not token:
        raise InputError('There is no Hub token: log in with `hf auth login`, or set HF_TOKEN to a token with write '
                         'access.')
    if not re.fullmatch(r'[!-~]+', token):
        raise InputError('The Hub token has characters that no token has, such as spaces: copy it again.')
    api = HfApi(token=token, library_name='timm-advprop', library_version=__version__)
    try:
        user = patiently(api.whoami)
    except HUB_ERRORS as error:
        problem = redact(explain_hub_error(error, repo_id), token)
        if hub_status(error) == 401 or hub_status(error) is None and must_reach:
            raise InputError(f'Cannot publish {repo_id}: {problem}') from None
        _logger.warning(f'Whether {repo_id} can be published is not known yet: {problem}')
        return api
    owner, owners = repo_id.split('/')[0], [user.get('name'), *(org.get('name') for org in user.get('orgs') or ())]
    if user.get('name') and owner not in owners:
        raise InputError(f'Cannot publish {repo_id}: the token is of {user["name"]}, who does not own {owner}.')
    return api


@dataclass
class _Branch:
    # A branch of a repository, as the Hub's client sees it. `head` is None where the Hub does not say.
    api: HfApi
    repo_id: str
    revision: Optional[str]
    head: Optional[str] = None
    files: Set[str] = field(default_factory=set)
    is_new: bool = False
    is_new_repo: bool = False

    @property
    def model_id(self) -> str:
        return f'{self.repo_id}@{self.revision}' if self.revision else self.repo_id

    def open(self, private: Optional[bool]) -> None:
        # Makes the repository where it is missing; sees what the branch holds, or `main`, of which it will be a copy.
        try:
            patiently(self.api.create_repo, self.repo_id, private=private)
            self.is_new_repo = True
        except HfHubHTTPError as error:
            # a token for this repository alone may not create others
            if hub_status(error) != 409 and not (hub_status(error) == 403 and self.api.repo_exists(self.repo_id)):
                raise
        try:
            info = patiently(self.api.model_info, self.repo_id, revision=self.revision)
        except RevisionNotFoundError:
            self.is_new = True
            info = patiently(self.api.model_info, self.repo_id)
        except HfHubHTTPError as error:
            if hub_status(error) == 404:  # it exists: the Hub's index lags behind
                return
            raise
        if private and info.private is False:
            raise InputError(f'{self.repo_id} exists and is public: make it private in its settings first, or leave '
                             '--private out.')
        self.head, self.files = info.sha, {file.rfilename for file in info.siblings or ()}

    def check_holds(self, architecture: str) -> None:
        # A repository may hold a former publication, or nothing but what comes with a new one.
        path = None
        if not self.is_new_repo:
            path = download_file(self.repo_id if self.is_new else self.model_id, CONFIG_FILE, token=self.api.token)  # pyright: ignore[reportArgumentType]
        others = sorted(self.files - _OF_A_NEW_REPOSITORY)
        held = f'{", ".join(others[:3])} but no {CONFIG_FILE}' if others else architecture
        if path is not None:
            try:
                held = base_of(str(read_config(path, self.model_id).get('architecture')))
            except InputError:
                held = f'a {CONFIG_FILE} that is not timm\'s'
        if held != architecture:
            raise InputError(f'The name {self.repo_id} is taken: it holds {held}, not {architecture}. Choose another '
                             'name.')

    def commit_with(self, files: Mapping[str, str]) -> Optional[str]:
        # The head, if it has these files, None if not.
        commit = None
        for name, path in files.items():
            url = hf_hub_url(self.repo_id, name, revision=self.revision, endpoint=self.api.endpoint)
            try:
                metadata = get_hf_file_metadata(url, token=self.api.token, endpoint=self.api.endpoint)
            except EntryNotFoundError:
                return None
            if metadata.etag not in _digests(path):
                return None
            commit = metadata.commit_hash
        return commit

    def unchanged(self, error: Exception) -> InputError:
        outcome = '{} was made and is empty' if self.is_new_repo else 'No file of {} was changed'
        again = '.' if _is_refusal(error) else ': push again.'
        return self.failure(error, outcome.format(self.repo_id) + again)

    def failure(self, error: Exception, outcome: str) -> InputError:
        cause = error.__cause__ or error
        explanation = explain_hub_error(cause, self.model_id).rstrip('.')
        return InputError(redact(f'Cannot publish {self.model_id}: {explanation}. {outcome}', self.api.token))


def _upload(
        branch: _Branch,
        files: Mapping[str, str],
        architecture: str,
        message: Optional[str],
        private: Optional[bool],
) -> str:
    # Publishes files, the paths by their names, and returns the address of the commit. A repository that holds another
    # architecture is refused.
    try:
        branch.open(private)
        branch.check_holds(architecture)  # before anything is made in what may be another model's repository
        if branch.is_new:
            patiently(branch.api.create_branch, branch.repo_id, branch=branch.revision, exist_ok=True)
        additions = [CommitOperationAdd(name, path) for name, path in files.items()]
        with tells_wait('the upload'):
            branch.api.preupload_lfs_files(branch.repo_id, additions, revision=branch.revision, free_memory=False)
    except InputError:
        raise
    except _UPLOAD_ERRORS as error:
        raise branch.unchanged(error) from None
    stale = [name for name in _STALE if name in branch.files and name not in files]
    if stale:
        _logger.info(f'The commit deletes {", ".join(stale)} of the former publication.')
    operations = [*additions, *map(CommitOperationDelete, stale)]
    return _commit(branch, operations, files, message or f'Publish {architecture}')


def _commit(branch: _Branch, operations: Sequence[Any], files: Mapping[str, str], message: str) -> str:  # pyright: ignore[reportReturnType]
    # The answer to a commit may be lost after it was made: hence a look before each repetition, and the head as parent,
    # which makes the Hub refuse a second commit where the first one came late.
    for pause in (*PAUSES, None):
        try:
            return branch.api.create_commit(
                branch.repo_id, operations, commit_message=redact(message, branch.api.token), revision=branch.revision,
                parent_commit=branch.head).commit_url
        except _UPLOAD_ERRORS as error:
            commit = _look_for_commit(branch, files, error)
            if commit:
                _logger.info('The Hub made the commit, its answer was lost.')
                return f'{branch.api.endpoint}/{branch.repo_id}/commit/{commit}'
            if hub_status(error) == _CHANGED_MEANWHILE:
                raise branch.failure(error, f'{branch.repo_id} was changed meanwhile: push again.') from None
            if pause is None or not is_transient(error):
                raise branch.unchanged(error) from None
            _logger.warning(f'{explain_hub_error(error, branch.model_id)} No commit was made, trying again in '
                            f'{pause:.0f} s.')
        time.sleep(pause)


def _look_for_commit(branch: _Branch, files: Mapping[str, str], reason: Exception) -> Optional[str]:
    # The commit that was made in spite of an error, None where none was made.
    if _is_refusal(reason):
        return None
    try:
        commit = patiently(branch.commit_with, files)
    except HUB_ERRORS as error:
        url = f'{branch.api.endpoint}/{branch.repo_id}'
        raise branch.failure(
            error, f'Whether the commit was made is not known: look at {url} before you push again.') from None
    return commit if commit != branch.head else None


def _is_refusal(error: Exception) -> bool:
    # An answer that will not change, and says that nothing was done.
    status = hub_status(error)
    return status is not None and 400 <= status < 500 and status != _CHANGED_MEANWHILE and not is_transient(error)


def _digests(path: str) -> Set[str]:
    # What the Hub may call a file: its SHA-256, or the SHA-1 of its git blob.
    with open(path, 'rb') as file:
        header = f'blob {os.path.getsize(path)}\0'.encode()
        git = hashlib.sha1(header)
        while block := file.read(1 << 20):
            git.update(block)
    return {file_digest(path), git.hexdigest()}
