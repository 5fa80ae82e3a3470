"""Data sets around others, which timm's loader takes as it takes those."""
from typing import Any, Callable, List, Sequence

from torch.utils.data import Dataset

__all__ = ['SampledImages', 'WrappedImages']


class WrappedImages(Dataset):
    """A data set around another.

    Args:
        dataset: Maps an index to an image and a label.
    """

    def __init__(self, dataset: Dataset):
        self.dataset: Any = dataset

    @property
    def transform(self) -> Callable:
        """What is done to images, of the data set below; timm's loader sets it."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Callable) -> None:
        self.dataset.transform = transform

    def __getitem__(self, index: Any) -> Sequence[Any]:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)


class SampledImages(WrappedImages):
    """Some of the images of a data set, evenly spread over it: as those of a class lie together, some of each class.

    Args:
        dataset: Maps an index to an image and a label.
        num_images: Number of images, at most that of the data set.
        num_rounds: Rounds over the data set in which they come, so that a batch has images of all classes; with 1 they
            come in its order.
    """

    def __init__(self, dataset: Dataset, num_images: int, num_rounds: int = 1):
        super().__init__(dataset)
        spread = [place * len(self.dataset) // num_images for place in range(num_images)]
        self.indices = [index for first in range(num_rounds) for index in spread[first::num_rounds]]

    @property
    def num_bad(self) -> int:
        """Files that were passed over, see `CheckedImages`."""
        return getattr(self.dataset, 'num_bad', 0)

    def filenames(self, **kwargs: Any) -> List[str]:
        """Names of the files, see `timm.data.ImageDataset`."""
        names = self.dataset.filenames(**kwargs)
        return [names[index] for index in self.indices]

    def __getitem__(self, index: int) -> Sequence[Any]:
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)
