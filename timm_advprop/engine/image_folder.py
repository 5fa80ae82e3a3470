"""Writes image folders that timm's readers take.

A data set is FOLDER/<split>/<class>/<nnnnn>.png, grey images that timm converts to RGB. <nnnnn> is the image's position
in its source. Sorted class names are in the order of the labels.
"""
import os
import shutil
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple, Union

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError

__all__ = ['PROGRESS_SECONDS', 'Split', 'shuffled_groups', 'write_folder']

PROGRESS_SECONDS = 2.  # before a bar is shown

_SPLIT_SEED = 0


class Split(NamedTuple):
    """Images of a split.

    Args:
        images: [N, H, W], uint8.
        labels: [N].
        positions: [N], in the source.
    """
    images: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    def part(self, chosen: np.ndarray) -> 'Split':
        """Some of its images.

        Args:
            chosen: Their places.
        """
        return Split(self.images[chosen], self.labels[chosen], self.positions[chosen])


def shuffled_groups(groups: np.ndarray) -> List[np.ndarray]:
    """The places of each group's members, in an order of chance that is the same on every machine.

    Args:
        groups: [N], such as labels.
    """
    random = np.random.RandomState(_SPLIT_SEED)  # the one numpy generator whose stream never changes
    return [random.permutation(np.flatnonzero(groups == group)) for group in np.unique(groups)]


def write_folder(folder: Union[str, Path], splits: Dict[str, Split], classes: Sequence[str]) -> Dict[str, int]:
    """Write an image folder, with a progress bar. It appears complete or not at all.

    Args:
        folder: Folder to write; one that holds this data set already is left as it is.
        splits: Images by name of the split.
        classes: Names by label, sorted.

    Returns:
        Number of images of each split.

    Raises:
        InputError: The folder holds something else, or it cannot be written.
    """
    folder = Path(folder).resolve()
    try:
        if _is_finished(folder, splits, classes):
            print(f'{folder} holds this data set already.', file=sys.stderr)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _write_and_rename(folder, splits, classes)
    except OSError as error:
        raise InputError(f'Cannot write {folder}: {error.strerror or error}.') from error
    return {name: len(split.labels) for name, split in splits.items()}


def _is_finished(folder: Path, splits: Dict[str, Split], classes: Sequence[str]) -> bool:
    # Names tell, as they hold the class and the position of every image and the folder was never half-written; and the
    # first training image its size.
    present = {Path(root, file).relative_to(folder) for root, _, files in os.walk(folder) for file in files}
    if not present and not (folder.exists() and any(folder.iterdir())):
        return False
    if present != {path for path, _ in _image_files(splits, classes)} or not _is_first_image(folder, splits, classes):
        raise InputError(f'{folder} is not empty and is not this data set. Name another folder.')
    return True


def _is_first_image(folder: Path, splits: Dict[str, Split], classes: Sequence[str]) -> bool:
    path, image = next(_image_files(splits, classes))
    with Image.open(folder / path) as present:
        return np.array_equal(np.asarray(present), image)


def _write_and_rename(folder: Path, splits: Dict[str, Split], classes: Sequence[str]) -> None:
    unfinished = folder.with_name(f'.{folder.name}.unfinished-{os.getpid()}')
    total = sum(len(split.labels) for split in splits.values())
    files = _image_files(splits, classes)
    try:
        for name in splits:
            for class_name in classes:
                (unfinished / name / class_name).mkdir(parents=True)
        for path, image in tqdm(files, total=total, unit=' images', delay=PROGRESS_SECONDS, leave=False):
            Image.fromarray(image).save(unfinished / path)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _image_files(splits: Dict[str, Split], classes: Sequence[str]) -> Iterator[Tuple[Path, np.ndarray]]:
    for name, split in splits.items():
        for image, label, position in zip(split.images, split.labels, split.positions):
            yield Path(name, classes[label], f'{position:05d}.png'), image  # pyright: ignore[reportArgumentType]
