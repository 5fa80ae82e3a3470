"""The output folder of a run."""
import os
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, Iterator, Mapping, Optional

from timm.models import safe_model_name

from ..errors import InputError
from .locks import locked
from .run_settings import TrainSettings

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
        str(config['input_size'][-1]),  # pyright: ignore[reportOptionalSubscript]
    ])
    return os.path.join(settings.run.output or './output/train', name)


@contextmanager
def lock_folder(folder: str) -> Iterator[None]:
    """Make a folder and keep it for this process while the block runs; the lock ends with the process.

    Raises:
        InputError: It cannot be written, or another run is using it.
    """
    with ExitStack() as until_end:
        try:
            os.makedirs(folder, exist_ok=True)
            until_end.enter_context(locked(os.path.join(folder, '.lock')))
        except BlockingIOError as error:
            raise InputError(f'Another run is writing {folder}: give another --experiment, or wait for its end.'
                             ) from error
        except OSError as error:
            raise InputError(f'Cannot write the output folder {folder}: {error.strerror}.') from error
        yield
