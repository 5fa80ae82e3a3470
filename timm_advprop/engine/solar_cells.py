"""ELPV: electroluminescence images of solar cells, functional and defective ones, as an image folder.

The data set is in PyPI's package `elpv-dataset`, under CC BY-NC-SA 4.0: not for commercial use. Whoever uses it cites
Buerhop-Lutz et al., *A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery*,
EU PVSEC 2018, doi:10.4229/35thEUPVSEC20182018-5CV.3.15; Deitsch et al., *Automatic classification of defective
photovoltaic module cells in electroluminescence images*, Solar Energy 185, 2019, doi:10.1016/j.solener.2019.02.067;
and Deitsch et al., *Segmentation of photovoltaic module cells in uncalibrated electroluminescence images*, Machine
Vision and Applications 32, 2021, doi:10.1007/s00138-021-01191-9.
"""
from pathlib import Path
from typing import Dict, List, NamedTuple, Union

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from .image_folder import PROGRESS_SECONDS, Split, shuffled_groups, write_folder

__all__ = ['SOLAR_CELL_SIZE', 'write_solar_cells']

SOLAR_CELL_SIZE = 64

_CLASSES = ('0_functional', '1_defective')
_DEFECTIVE_FROM = 0.5
_FRACTIONS = dict(validation=0.25, holdout=0.15)  # the rest is for training
_LABELS = 'labels.csv'


class _Cell(NamedTuple):
    file: str
    probability: float
    module: str  # `mono` or `poly`: monocrystalline, polycrystalline


def write_solar_cells(
        folder: Union[str, Path],
        source: Union[str, Path, None] = None,
        size: int = SOLAR_CELL_SIZE,
) -> Dict[str, int]:
    """Write the 2,624 cells of ELPV, see this file's head, as an image folder.

    Experts gave each cell a probability of a defect, 0, 1/3, 2/3 or 1. A cell is of the class `defective` from 0.5 on,
    else `functional`. A quarter of the cells is for validation, 15 % are held out, the rest is for training: these
    shares of each type of module (mono- or polycrystalline) and probability, the same cells on every machine. The data
    set does not say which cells are of one module, so cells of one may be in several splits.

    Args:
        folder: Folder to write. It appears complete or not at all; one that holds this data set already is left as it
            is.
        source: Folder of `labels.csv` and the images, by default that in the package `elpv-dataset`.
        size: Width and height of the images in pixels, at most their own 300.

    Returns:
        Number of images of each split, `'train'`, `'validation'` and `'holdout'`.

    Raises:
        InputError: The package is missing, a file is missing or damaged, the folder holds something else, or it cannot
            be written.
    """
    if size < 1:
        raise InputError(f'Images are at least 1 pixel wide, got {size}.')
    source = _packaged_source() if source is None else Path(source)
    cells = _read_labels(source / _LABELS)
    images = [_read_image(source / cell.file, size)
              for cell in tqdm(cells, unit=' images read', delay=PROGRESS_SECONDS, leave=False)]
    labels = np.array([cell.probability >= _DEFECTIVE_FROM for cell in cells], dtype=int)
    cells_split = Split(np.stack(images), labels, np.arange(len(cells)))
    return write_folder(
        folder, {name: cells_split.part(chosen) for name, chosen in _stratified(cells).items()}, _CLASSES)


def _packaged_source() -> Path:
    try:
        import elpv_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError('The solar cells come with the package elpv-dataset: pip install \'timm-advprop[studies]\'. '
                         'Or name the folder of labels.csv with --source.') from error
    return Path(elpv_dataset.__file__).with_name('data')  # pyright: ignore[reportArgumentType]


def _read_labels(path: Path) -> List[_Cell]:
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except FileNotFoundError as error:
        raise InputError(f'No file {path}.') from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path} cannot be read: {error}.') from error
    cells = [_read_line(line, f'{path}, line {number}') for number, line in enumerate(lines, 1)]
    if not cells:
        raise InputError(f'{path} is empty.')
    return cells


def _read_line(line: str, place: str) -> _Cell:
    try:
        file, probability, module = line.split()
        cell = _Cell(file, float(probability), module)
    except ValueError as error:
        raise InputError(f'{place} is not a file, a probability and a type of module: {line!r}.') from error
    if not 0 <= cell.probability <= 1:
        raise InputError(f'{place}: {probability} is no probability.')
    return cell


def _read_image(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if size > min(image.size):
                raise InputError(f'{path} has {min(image.size)} pixels a side: {size} are too many.')
            return np.asarray(image.convert('L').resize((size, size), Image.Resampling.BILINEAR))
    except FileNotFoundError as error:
        raise InputError(f'No file {path}.') from error
    except OSError as error:
        raise InputError(f'{path} is damaged or cannot be read: {error}.') from error


def _stratified(cells: List[_Cell]) -> Dict[str, np.ndarray]:
    # For each split the places of its cells: the same shares of each type of module and probability.
    parts: Dict[str, List[np.ndarray]] = {name: [] for name in ('train', *_FRACTIONS)}
    _, strata = np.unique([f'{cell.module} {cell.probability:.3f}' for cell in cells], return_inverse=True)
    for members in shuffled_groups(strata):
        start = 0
        for name, fraction in _FRACTIONS.items():
            end = start + round(len(members) * fraction)
            parts[name].append(members[start:end])
            start = end
        parts['train'].append(members[start:])
    return {name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()}
