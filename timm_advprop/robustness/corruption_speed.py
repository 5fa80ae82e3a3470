"""What corruptions cost, beside reading images: `python -m timm_advprop.robustness.corruption_speed`.

For 28 and 224 px, JPEG files are read, sized and cropped as timm does for evaluation, and corrupted, on one thread;
then in one and two workers of a data loader, by timm's transform with all corruptions in turn.
"""
import argparse
import time
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset

from ..corruptions import ALL_CORRUPTIONS, SEVERITIES, check_libraries
from ..engine.datasets import insert_before_tensor
from ..errors import InputError, exits_on_input_error
from ..output import markdown_table
from .corrupted_images import Corruption

__all__ = ['main']

_SIZES = {28: (28, 28), 224: (500, 375)}  # of a model's images: of the files, width and height
_NUM_FILES = 50
_GRAIN = 3
_NUM_WORKERS = (1, 2)


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Print milliseconds per image of reading, and of each corruption, the mean over its severities."""
    parser = argparse.ArgumentParser(description='Measure what corruptions cost.')
    parser.add_argument('--num-images', type=int, default=1000, metavar='N', help='images of each size (default: 1000)')
    num_images = parser.parse_args(argv).num_images
    if num_images < 10:
        raise InputError(f'--num-images must be at least 10, got {num_images}.')
    check_libraries()
    torch.set_num_threads(1)
    for size, file_size in _SIZES.items():
        with TemporaryDirectory() as folder:
            files = _write_files(Path(folder), file_size)
            files = [files[i % len(files)] for i in range(num_images)]
            _print_one_thread(files, size)
            for num_workers in _NUM_WORKERS:
                _print_workers(files, size, num_workers)


def _write_files(folder: Path, size: Tuple[int, int]) -> List[Path]:
    # Shades, edges and grain. The large ones are as ImageNet's: about 100 kB, at quality 96 with chroma at full size.
    rng, files = np.random.default_rng(0), []
    for i in range(_NUM_FILES):
        shades: Any = sum(np.asarray(Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC), dtype=np.float32) / side for side in (2, 4, 8, 16, 64))
        shades[size[1] // 3:, size[0] // 2:] *= .5
        shades += rng.normal(0, _GRAIN, shades.shape)
        files.append(folder / f'{i}.jpg')
        Image.fromarray(np.clip(shades, 0, 255).astype(np.uint8)).save(files[-1], quality=96, subsampling=0)
    return files


def _print_one_thread(files: List[Path], size: int) -> None:
    images: List[Image.Image] = []
    read = _reader(size)
    reading = _milliseconds(lambda: images.extend(map(read, files)), len(files))
    corrupting: Dict[str, float] = {}
    for name in ALL_CORRUPTIONS:
        corruptions = [Corruption(name, severity) for severity in SEVERITIES]
        _corrupt_in_turn(corruptions, images[:len(SEVERITIES)])  # what is made once is made now
        corrupting[name] = _milliseconds(lambda: _corrupt_in_turn(corruptions, images), len(images))  # noqa: B023
    mean = fmean(corrupting.values())
    print(f'\n{size} px, {len(files)} images, one thread\n')
    rows = [('', 'ms per image', '× reading'), ('reading, sizing, cropping', f'{reading:.3f}', '1.00')]
    rows += [(name, f'{cost:.3f}', f'{cost / reading:.2f}') for name, cost in corrupting.items()]
    print(markdown_table([*rows, (f'mean of the {len(corrupting)}', f'{mean:.3f}', f'{mean / reading:.2f}')]) + '\n')


def _print_workers(files: List[Path], size: int, num_workers: int) -> None:
    plain, corrupted = (_loading_milliseconds(_Files(files, size, corrupt), num_workers) for corrupt in (False, True))
    print(f'{size} px, workers: {num_workers}: {plain:.3f} ms per image, corrupted {corrupted:.3f}, '
          f'{corrupted / plain:.2f} times')


def _loading_milliseconds(dataset: '_Files', num_workers: int) -> float:
    batches = iter(DataLoader(dataset, batch_size=len(dataset) // 10, num_workers=num_workers))
    next(batches)  # when the workers have started
    return _milliseconds(lambda: list(batches), len(dataset) - len(dataset) // 10)


def _milliseconds(run: Callable[[], Any], num_images: int) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start) / num_images


def _reader(size: int) -> Callable[[Path], Image.Image]:
    transform: Any = create_transform(size, is_training=False, use_prefetcher=True)
    stages = transform.transforms[:-1]  # all but that to a tensor

    def read(file: Path) -> Image.Image:
        image = Image.open(file).convert('RGB')
        for stage in stages:
            image = stage(image)
        return image
    return read


def _corrupt_in_turn(corruptions: Sequence[Corruption], images: Sequence[Image.Image]) -> None:
    for i, image in enumerate(images):
        corruptions[i % len(corruptions)](image)


class _Files(Dataset):
    # Through timm's transform; if `corrupted`, a part of them with each corruption, as an evaluation has it.
    def __init__(self, files: List[Path], size: int, corrupted: bool):
        self.files, self.names = files, ALL_CORRUPTIONS if corrupted else ('',)
        plain: Any = create_transform(size, is_training=False, use_prefetcher=True)
        self.transforms = {
            (name, severity): insert_before_tensor(plain, Corruption(name, severity)) if name else plain
            for name, severity in product(self.names, SEVERITIES)}

    def __getitem__(self, index: int) -> Any:
        image = Image.open(self.files[index]).convert('RGB')
        name = self.names[index * len(self.names) // len(self.files)]
        return self.transforms[name, SEVERITIES[index % len(SEVERITIES)]](image)

    def __len__(self) -> int:
        return len(self.files)


if __name__ == '__main__':
    main()
