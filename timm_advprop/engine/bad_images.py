"""Images that cannot be read: named, and passed over where that is allowed. And runs that lose their data, in one line.
"""
import logging
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Tuple

import torch
from PIL import Image, UnidentifiedImageError
from timm.data import ImageDataset

from ..errors import InputError, RunError, one_line

__all__ = ['CheckedImages', 'explained_data_loss']

_logger = logging.getLogger(__name__)


class CheckedImages(ImageDataset):
    """timm's data set of image files, which ends at a file that cannot be read, or goes on without it.

    timm's own takes the next image for one that cannot be read, without limit but ten in a row. Here too the next one
    takes the place.

    Args:
        dataset: timm's data set.
        most_bad: Files that may be passed over. All loader processes of this process count together, each file once.
    """
    reader: Any

    def __init__(self, dataset: ImageDataset, most_bad: int):
        super().__init__('', reader=dataset.reader, input_img_mode=dataset.input_img_mode)
        self.most_bad = most_bad
        self._bad = torch.zeros(len(self), dtype=torch.bool).share_memory_()  # with the loader's processes

    @property
    def num_bad(self) -> int:
        """Number of files that were passed over."""
        return int(self._bad.sum())

    def __getitem__(self, index: int) -> Tuple[Any, Any]:
        while (read := self._read(index)) is None:
            index = (index + 1) % len(self)
        image, target = read
        return image if self.transform is None else self.transform(image), -1 if target is None else target

    def _read(self, index: int) -> Optional[Tuple[Image.Image, Any]]:
        if self._bad[index]:
            return None
        try:
            file, target = self.reader[index]
            return Image.open(file).convert(self.input_img_mode), target  # which decodes the pixels
        except Exception as error:  # Pillow has an error of its own for each way in which a format can be broken
            self._bad[index] = True
            self._refuse_or_tell(index, error)
            return None

    def _refuse_or_tell(self, index: int, error: Exception) -> None:
        name = self.filename(index, absolute=True) or f'number {index}'
        unknown = isinstance(error, UnidentifiedImageError)  # which would name the file again
        reason = 'no image that Pillow knows' if unknown else one_line(error, 200)
        if self.num_bad > min(self.most_bad, len(self) - 1):
            limit = f'as more than {self.most_bad}' if self.most_bad else 'or pass over at most N such images'
            raise InputError(f'Cannot read the image {name} ({reason}): remove it, {limit} (--skip-bad-images).')
        _logger.warning(f'Cannot read the image {name} ({reason}): passed over, {self.num_bad} of at most '
                        f'{self.most_bad}; the next image takes its place.')


@contextmanager
def explained_data_loss(advise: Callable[[], str] = str) -> Iterator[None]:
    """Let errors of a loader, of its processes and of the disk be one line.

    Args:
        advise: Says what to do then; '' by default.

    Raises:
        InputError: An image cannot be read.
        RunError: A file is gone or cannot be written, or a process of the loader is gone.
    """
    try:
        yield
    except (InputError, OSError) as error:
        kind = InputError if isinstance(error, InputError) else RunError
        raise kind(f'{_said_by_process(error)} {advise()}'.rstrip()) from error
    except RuntimeError as error:
        if 'DataLoader worker (pid' not in str(error):
            raise
        raise RunError(f'A loader process died ({one_line(error, 100)}), perhaps as memory ran out: try fewer '
                         f'--workers. {advise()}'.rstrip()) from error


def _said_by_process(error: Exception) -> str:
    # An error in a loader process arrives with that process's traceback as its message, whose last line is the error.
    text = str(error)
    if ' in DataLoader worker process ' not in text.partition('\n')[0]:
        return text if isinstance(error, InputError) else f'{one_line(error)}.'
    name, _, message = text.strip().rpartition('\n')[2].partition(': ')
    return message if name.endswith(InputError.__name__) else f'{message}.'
