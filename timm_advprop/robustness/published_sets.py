"""Published test sets for models of the 1,000 ImageNet classes: their folders, and the classes that they have.

timm's folder reader numbers class folders that hold an image from 0, in natural order. A set of 200 classes is
therefore evaluated on `logits[:, indices]`, where `indices` are the classes of those numbers.
"""
import os
import pkgutil
from dataclasses import dataclass
from functools import lru_cache
from typing import Dict, Iterable, List, Optional, Sequence, Set, Tuple

from timm.data import ImageNetInfo, is_img_extension
from timm.utils import natural_key

from ..corruptions import CORRUPTIONS, GROUPS, SEVERITIES
from ..errors import InputError

__all__ = [
    'IMAGENET_C', 'NUM_CLASSES', 'PUBLISHED_SETS', 'PublishedSet', 'check_num_classes', 'corruption_folders',
    'missing_corruptions',
]

NUM_CLASSES = 1000


@dataclass(frozen=True)
class PublishedSet:
    """A test set as its authors publish it: a folder of class folders.

    Args:
        name: Name among the flags of programs.
        synsets: timm's list of the set's classes, which are WordNet ids; all ImageNet classes where None.
        numbered: Class folders have the index of their class for a name, and not its WordNet id.
        split: The sub-folder to take where several have class folders.
    """
    name: str
    synsets: Optional[str] = None
    numbered: bool = False
    split: Optional[str] = None

    def class_folders(self) -> Tuple[str, ...]:
        """Names of the class folders, in the order in which timm numbers them."""
        if self.numbered:
            return tuple(map(str, range(NUM_CLASSES)))
        return tuple(sorted(_synsets(self.synsets) if self.synsets else _imagenet_synsets(), key=natural_key))

    def class_indices(self) -> Optional[Tuple[int, ...]]:
        """Index of each class folder among the 1,000 ImageNet classes; None where the set has them all."""
        if not self.synsets:
            return None
        index_of = {name: index for index, name in enumerate(_imagenet_synsets())}
        return tuple(index_of[name] for name in self.class_folders())

    def open_folder(self, folder: str) -> Tuple[str, Optional[Tuple[int, ...]]]:
        """Find the class folders and check that they are all there. Lists folders, and opens no image.

        Args:
            folder: Folder of the set, or the one that it lies in.

        Returns:
            Root of the class folders, and the model's class indices in the order in which timm numbers the folders;
            None for all 1,000.

        Raises:
            InputError: There is no such folder, or its classes are not those of the set.
        """
        root = self._find_root(folder)
        self.check_classes(root)
        return root, self.class_indices()

    def check_classes(self, root: str) -> None:
        """Check that timm will see the classes of the set in a folder, and no other.

        Args:
            root: Folder of the class folders.

        Raises:
            InputError: There is no such folder, or classes are missing or unexpected.
        """
        _check_folder(self.name, root)
        expected, seen = self.class_folders(), _classes_with_images(root)
        missing = [name for name in expected if name not in seen]
        unexpected = sorted(seen.difference(expected), key=natural_key)
        if missing or unexpected:
            raise InputError(f'{self.name} has {len(expected)} classes, of which {root} has images of '
                             f'{len(expected) - len(missing)}: {_count(missing, "missing")}, '
                             f'{_count([name or "images outside of folders" for name in unexpected], "unexpected")}.')

    def _find_root(self, folder: str) -> str:
        _check_folder(self.name, folder)
        classes = set(self.class_folders())
        if classes.intersection(_sub_folders(folder)):
            return folder
        inside = {name: os.path.join(folder, name) for name in _sub_folders(folder) if name != 'train'}
        roots = {name: path for name, path in inside.items() if classes.intersection(_sub_folders(path))}
        if self.split in roots:
            return roots[self.split]
        if len(roots) > 1:
            raise InputError(f'{self.name}: several folders in {folder} have class folders, give one of them: '
                             f'{", ".join(roots)}.')
        if not roots:
            raise InputError(f'{self.name}: no class folders such as {self.class_folders()[0]} in {folder}.')
        return next(iter(roots.values()))


PUBLISHED_SETS: Dict[str, PublishedSet] = {published.name: published for published in (
    PublishedSet('imagenet-a', synsets='imagenet_a_synsets.txt'),  # arXiv:1907.07174
    PublishedSet('imagenet-r', synsets='imagenet_r_synsets.txt'),  # arXiv:2006.16241
    PublishedSet('imagenet-sketch', split='sketch'),  # arXiv:1905.13549
    PublishedSet('imagenet-v2', numbered=True),  # arXiv:1902.10811
    PublishedSet('stylized', split='val'),  # arXiv:1811.12231
)}
# A condition's folder is a set of its own: `IMAGENET_C.check_classes(corruption_folders(folder)['fog', 3])`
IMAGENET_C = PublishedSet('imagenet-c')  # arXiv:1903.12261


def corruption_folders(folder: str) -> Dict[Tuple[str, int], str]:
    """The conditions of ImageNet-C in a folder, with or without the folders of its tar files between.

    Classes are not checked: `IMAGENET_C.check_classes` does that for the folder of a condition.

    Args:
        folder: Folder of the corruptions, or of the groups `noise`, `blur`, `weather`, `digital` and `extra`.

    Returns:
        The folder of class folders by corruption and severity, for the corruptions that are there.

    Raises:
        InputError: There is no such folder, no corruption in it, or a corruption lacks a severity.
    """
    _check_folder(IMAGENET_C.name, folder)
    folders = {(corruption, severity): os.path.join(place, str(severity))
               for corruption, place in _corruption_places(folder).items() for severity in SEVERITIES}
    if not folders:
        raise InputError(f'imagenet-c: no corruptions such as {CORRUPTIONS[0]} in {folder}.')
    missing = [path for path in folders.values() if not os.path.isdir(path)]
    if missing:
        raise InputError(f'imagenet-c: no folder {_first(missing)}.')
    return folders


def missing_corruptions(corruptions: Iterable[str]) -> List[str]:
    """Those of the 15 corruptions of ImageNet-C's mean corruption error that are not among `corruptions`."""
    present = set(corruptions)
    return [name for name in CORRUPTIONS if name not in present]


def check_num_classes(name: str, num_classes: int) -> None:
    """Check that a model knows the 1,000 ImageNet classes.

    Args:
        name: Name of the set, for the message.
        num_classes: Classes of the model.

    Raises:
        InputError: It has another number of classes.
    """
    if num_classes != NUM_CLASSES:
        raise InputError(
            f'{name} evaluates models of the {NUM_CLASSES:,} ImageNet classes, this one has {num_classes}.')


def _corruption_places(folder: str) -> Dict[str, str]:
    # Folders of the corruptions that are there.
    places = {}
    for group, names in GROUPS.items():
        for name in names:
            candidates = os.path.join(folder, name), os.path.join(folder, group, name)
            places[name] = next(filter(os.path.isdir, candidates), None)
    return {name: place for name, place in places.items() if place}


@lru_cache(maxsize=None)
def _imagenet_synsets() -> Tuple[str, ...]:
    return tuple(ImageNetInfo().label_names())


@lru_cache(maxsize=None)
def _synsets(file: str) -> Tuple[str, ...]:
    # timm has these lists in its package, and no function that hands them out
    return tuple(pkgutil.get_data('timm.data', f'_info/{file}').decode('utf-8').split())  # pyright: ignore[reportOptionalMemberAccess]


def _check_folder(name: str, folder: str) -> None:
    if not os.path.isdir(folder):
        raise InputError(f'{name}: no folder {folder}.')


def _sub_folders(folder: str) -> List[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _classes_with_images(root: str) -> Set[str]:
    # What timm's reader will number: it passes over folders without an image, and images in the root are a class ''.
    return {name for name in (*_sub_folders(root), '') if _has_image(os.path.join(root, name))}


def _has_image(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(is_img_extension(os.path.splitext(entry.name)[1].lower()) for entry in entries)


def _count(names: Sequence[str], what: str) -> str:
    return f'{len(names)} {what}' + (f' ({_first(names)})' if names else '')


def _first(names: Sequence[str], limit: int = 3) -> str:
    return ', '.join(names[:limit]) + (', …' if len(names) > limit else '')
