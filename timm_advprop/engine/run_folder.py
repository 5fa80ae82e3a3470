"""The output folder of a run."""
import os
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Iterator, Mapping, Optional

from timm.models import safe_model_name

from ..errors import InputError
from .run_settings import TrainSettings

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ['lock_folder', 'output_folder']


def output_folder(settings: TrainSettings, config: Optional[Mapping[str, Any]] = None) -> str:
    """The folder of a run, `--output`/`--experiment`.

    Args:
        settings: The run's settings.
        config: How images are sized, for the name of a run that has none.
    """
    name = settings.run.experiment or '-'.join([
        datetime.now().strftime('%Y%m%d-%H%M%S'),
        safe_model_name(settings.model.model),
        str(config['input_size'][-1]),
    ])
    return os.path.join(settings.run.output or './output/train', name)


@contextmanager
def lock_folder(folder: str) -> Iterator[None]:
    """Make a folder and keep it for this process while the block runs; the lock ends with the process.

    Raises:
        InputError: It cannot be written, or another run is using it.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, '.lock'), 'w')
    except OSError as error:
        raise InputError(f'Cannot write the output folder {folder}: {error.strerror}.') from error
    with file:
        try:
            if fcntl is not None:
                # a lock of the process: the loader's workers, which may outlive it for a moment, do not inherit it
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(f'Another run is writing {folder}: give another --experiment, or wait for its end.'
                             ) from error
        yield
