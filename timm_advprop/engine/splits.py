"""Where a split of a folder of images lies: a sub-folder, a tar file, or a folder within one tar file.

timm knows the sub-folders. It takes the whole folder, or tar file, for a split that it does not find: training images
would count as validation.
"""
import os
import tarfile
from typing import Any, Optional, Sequence

from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torchvision.datasets import ImageFolder

from ..errors import InputError

__all__ = ['check_split', 'has_split', 'keep_split', 'place_of', 'root_of_split']

_TAR = '.tar'
_SYNONYMS = (('train', 'training'), ('validation', 'val', 'valid', 'eval', 'evaluation'), ('test',))


def check_split(root: str, split: str) -> None:
    """Check what can be said of a split without reading it.

    Raises:
        InputError: There is no such folder or tar file, or it has other splits.
    """
    if not os.path.exists(root):
        raise InputError(f'No data folder {root}.')
    entries = os.listdir(root) if os.path.isdir(root) else []
    if entries and all(entry.endswith(_TAR) for entry in entries) and not _present(root):
        raise InputError(f'{root} has tar files, but none that is a split: name them {split.split("[")[0]}.tar and so '
                         'on, or give one of them as --data-dir.')
    if not _has_place(root, split):
        _check_among(root, split, _present(root))


def has_split(root: str, split: str) -> bool:
    """Whether a split has a place of its own."""
    if os.path.isfile(root):
        try:
            with tarfile.open(root) as tar:
                return any(_split_of(member.name, split) in _names_of(split) for member in tar)
        except (OSError, tarfile.TarError):
            return True  # whoever reads it will say what is wrong
    return _has_place(root, split)


def root_of_split(root: str, split: str) -> str:
    """The tar file of a split, where a folder has one and no sub-folder for it; else the root itself."""
    paths = [os.path.join(root, name) for name in _names_of(split)]
    files = [path + _TAR for path in paths if os.path.isfile(path + _TAR)]
    return files[0] if files and not any(map(os.path.isdir, paths)) else root


def keep_split(reader: Any, split: str) -> None:
    """Leave a reader the images of one split, where a tar file has folders of several.

    Raises:
        InputError: It has other splits.
    """
    splits = [_split_of(os.path.join(os.path.splitext(child.name)[0] if child else '', image.path), split)
              for image, _, child in reader.samples]
    present = sorted(set(filter(None, splits)))
    _check_among(reader.root, split, present)
    if present:
        kept = [name in _names_of(split) for name in splits]
        reader.samples, reader.targets = reader.samples[kept], reader.targets[kept]
        reader.split = split


def place_of(dataset: Any) -> Optional[str]:
    """Where a data set lies that is nothing but a folder, or a tar file, of images; None for others, which keep all
    splits in one folder."""
    reader = getattr(dataset, 'reader', dataset)
    if isinstance(reader, ReaderImageInTar) and hasattr(reader, 'split'):
        return f'{reader.root}, folder {reader.split}'  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(reader, ImageFolder):
        return getattr(reader, 'split_folder', reader.root)  # pyright: ignore[reportReturnType]
    return reader.root if isinstance(reader, (ReaderImageFolder, ReaderImageInTar)) else None


def _check_among(root: str, split: str, present: Sequence[str]) -> None:
    if present and not set(_names_of(split)) & set(present):
        raise InputError(f'No split {split!r} in {root}, it has {", ".join(present)}.')


def _has_place(root: str, split: str) -> bool:
    return any(os.path.isdir(path) or os.path.isfile(path + _TAR)
               for path in (os.path.join(root, name) for name in _names_of(split)))


def _present(root: str) -> Sequence[str]:
    return [name for names in _SYNONYMS for name in names
            if os.path.isdir(os.path.join(root, name)) or os.path.isfile(os.path.join(root, name + _TAR))]


def _names_of(split: str) -> Sequence[str]:
    name = split.split('[')[0]
    return next((names for names in _SYNONYMS if name in names), (name,))


def _split_of(path: str, asked: str) -> Optional[str]:
    # Of a file in a tar file, by the folders above that of its class: the split that is asked for, or a usual one.
    known = {*_names_of(asked), *(name for names in _SYNONYMS for name in names)}
    return next((part for part in path.split('/')[:-2] if part in known), None)
