"""Downloads files of Hugging Face Hub repositories, and says in one line what went wrong."""
import logging
import os
import re
import threading
import time
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, Type, Union

from huggingface_hub import _CACHED_NO_EXIST, constants, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError

__all__ = [
    'HUB_ERRORS', 'NETWORK_ERRORS', 'PAUSES', 'check_repo_id', 'download_file', 'explain_hub_error', 'hub_status',
    'is_transient', 'patiently', 'redact', 'split_model_id', 'tells_wait',
]

# The client's errors, and those of the HTTP library that its version is built on.
NETWORK_ERRORS: Tuple[Type[Exception], ...] = (
    *(base for base in HfHubHTTPError.__mro__ if base not in OSError.__mro__), EntryNotFoundError)
HUB_ERRORS: Tuple[Type[Exception], ...] = (*NETWORK_ERRORS, OSError)

PAUSES = (2., 4., 8.)  # seconds between attempts
_SILENCE = 15.  # seconds until a wait is told
# Where its store does not answer, the Xet library tries each of several requests five times: minutes without a word.
os.environ.setdefault('HF_XET_CLIENT_RETRY_MAX_ATTEMPTS', '3')
_FROM_A_FILE = 'give the weights as a file (validate.py --checkpoint, train.py --pretrained-path)'
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)

_logger = logging.getLogger(__name__)

_TOKEN = re.compile(r'\b(hf|api)_[A-Za-z0-9_]{16,}')
_PASSWORD = re.compile(r'://[^/\s@]+@')


def download_file(
        model_id: str,
        filename: str,
        cache_dir: Optional[str] = None,
        force: bool = False,
        token: Optional[str] = None,
) -> Optional[str]:
    """Download a file of a Hub repository into the cache.

    Args:
        model_id: `user/name`, or `user/name@revision`.
        filename: The file's name in the repository.
        cache_dir: Cache folder, the client's own by default.
        force: Download it even where the cache has it.
        token: Hub token, the stored one by default.

    Returns:
        Its path in the cache, None where the repository has no such file.

    Raises:
        InputError: It cannot be downloaded; the message says why and what to do.
    """
    repo_id, revision = split_model_id(model_id)
    if force and constants.HF_HUB_OFFLINE:
        raise InputError(f'{filename} of {model_id} in the cache is damaged, and HF_HUB_OFFLINE is set: download it '
                         'again without HF_HUB_OFFLINE.')
    location: Dict[str, Any] = dict(repo_id=repo_id, filename=filename, revision=revision, cache_dir=cache_dir)
    try:
        with tells_wait(f'the download of {filename}'):
            return patiently(
                hf_hub_download, **location, force_download=force, token=token, library_name='timm-advprop')
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(**location) is _CACHED_NO_EXIST:  # the Hub said so when it could be reached
            return None
        raise InputError(_explain_cold_cache(model_id, filename, error)) from error
    except EntryNotFoundError:
        return None
    except (*HUB_ERRORS, RuntimeError, ValueError) as error:  # of the Xet library; a file not to be downloaded again
        problem = explain_hub_error(error, model_id, of_weights=True)
        raise InputError(f'Cannot download {filename} of {model_id}: {problem}') from error


def patiently(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of the Hub's client, again after a pause where the Hub cannot answer just now. Only for what may
    be done twice."""
    for pause in PAUSES:
        try:
            return function(*args, **kwargs)
        except NETWORK_ERRORS as error:
            if isinstance(error, LocalEntryNotFoundError) or not is_transient(error):  # the client has waited for that
                raise
            _logger.warning(f'{explain_hub_error(error, "the Hub")} Trying again in {pause:.0f} s.')
        time.sleep(pause)
    return function(*args, **kwargs)


@contextmanager
def tells_wait(what: str) -> Iterator[None]:
    """Log that something is under way, where it takes long: the Xet library does not say that it waits."""
    timer = threading.Timer(_SILENCE, _logger.info, (
        f'Waiting for {what}: it goes on, or the Hub\'s store does not answer and is asked again for about a minute.',))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def hub_status(error: BaseException) -> Optional[int]:
    """HTTP status that an error of the Hub's client stands for, None where the Hub did not answer."""
    return getattr(getattr(error, 'response', None), 'status_code', None)


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later: no answer, or one that says so."""
    status = hub_status(error)
    return status in _TRANSIENT if status is not None else not isinstance(error, (RuntimeError, ValueError))


def split_model_id(model_id: str) -> Tuple[str, Optional[str]]:
    """Divide `user/name@revision` into `user/name` and the revision, None where none is pinned.

    Raises:
        InputError: It has another form.
    """
    repo_id, at, revision = model_id.partition('@')
    check_repo_id(repo_id)
    if at and not re.fullmatch(r'[^@\s]+', revision):
        raise InputError(f'{revision!r} is not the name of a revision: give user/name or user/name@revision.')
    return repo_id, revision or None


def check_repo_id(repo_id: str) -> None:
    """Check that a text has the form of a repository's name, `user/name`.

    Raises:
        InputError: It has not.
    """
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count('/') == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise InputError(f'{repo_id!r} is not the name of a Hub repository: give user/name.')


def explain_hub_error(error: BaseException, model_id: str, of_weights: bool = False) -> str:
    """What an error of the Hub's client means, and what to do, in one line without a token in it.

    Args:
        error: One of `HUB_ERRORS`, or a RuntimeError or ValueError of the client.
        model_id: The repository, `user/name` or `user/name@revision`.
        of_weights: Weights were to be read, which may come from elsewhere.
    """
    repo_id, _, revision = model_id.partition('@')
    status = hub_status(error)
    response: Any = getattr(error, 'response', None)  # there where the status is
    if isinstance(error, OfflineModeIsEnabled):
        cached = f', and {repo_id} is not in the cache: unset it, or download it where there is a network'
        return f'HF_HUB_OFFLINE is set{cached if of_weights else ": unset it"}.'
    if isinstance(error, GatedRepoError):
        return f'{repo_id} is gated: accept its terms on {constants.ENDPOINT}/{repo_id}, then log in.'
    if status == 401 and 'Invalid credentials' in str(error) + str(response.headers.get('X-Error-Message')):
        return 'the Hub refuses the token: make a new one, then `hf auth login` or HF_TOKEN.'
    if isinstance(error, RepositoryNotFoundError):
        login = 'may the token see it?' if get_token() else 'if so, log in with `hf auth login` or set HF_TOKEN'
        return f'there is no repository {repo_id} on the Hub, or it is private ({login}).'
    if isinstance(error, RevisionNotFoundError):
        return f'{repo_id} has no revision {revision or "main"}.'
    if status in (401, 403):
        return f'the Hub does not allow it: the token needs access to {repo_id}, to publish the right to write.'
    if status is not None:
        said = response.headers.get('X-Error-Message') or getattr(error, 'server_message', None)
        said = said or next((known.phrase for known in HTTPStatus if known == status), 'and no more')
        return redact(f'the Hub answered {status} ({" ".join(said.split())}).')
    if 'Consistency check failed' in str(error):
        return 'the download broke off. Try again.'
    if isinstance(error, OSError) and error.errno is not None:
        return f'{_first_line(error)}.'
    if isinstance(error, (RuntimeError, ValueError)):  # of the Xet library, or an answer that is no JSON
        return f'{_first_line(error)}.'
    advice = f'or {_FROM_A_FILE}' if of_weights else 'try again'
    return f'the Hub ({constants.ENDPOINT}) cannot be reached ({_first_line(error)}): check the connection, {advice}.'


def redact(text: str, token: Union[None, bool, str] = None) -> str:
    """Take secrets out of a text: the token given, the stored one, whatever looks like one, and passwords in URLs."""
    for secret in (token, get_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, '<token>')
    return _PASSWORD.sub('://', _TOKEN.sub('<token>', text))


def _explain_cold_cache(model_id: str, filename: str, error: Exception) -> str:
    if constants.HF_HUB_OFFLINE:
        return (f'{filename} of {model_id} is not in the cache, and HF_HUB_OFFLINE is set: '
                f'download it once without HF_HUB_OFFLINE.')
    cause = error.__cause__ or error
    return (f'Cannot download {filename} of {model_id}, and it is not in the cache: '
            f'{explain_hub_error(cause, model_id, True) if cause is not error else _first_line(error)}')


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip('.')
