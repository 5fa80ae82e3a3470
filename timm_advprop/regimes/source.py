"""Sources: what makes the images of an auxiliary norm.

A source is a callable (model, images, target) → (images, target). Images [N, C, H, W] are as the loader delivers them,
normalised, and labels [N] or class weights [N, classes]; as many of each come back, on the same device. It runs with
the model on the route of its norm and leaves the model as it was. An attack is a source, so are noise, an augmented
part of the batch, and any function.
"""
import importlib
import inspect
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, TypeVar, Union

import torch
import torch.nn as nn

from ..errors import InputError, one_line

__all__ = ['AugmentedView', 'FunctionSource', 'Images', 'NamedImages', 'Source', 'as_source', 'import_source']

Images = Tuple[torch.Tensor, torch.Tensor]
_Self = TypeVar('_Self', bound='Source')


class Source:
    """A kind of images, with what the log, the cost and the model card say of it.

    Attributes:
        part: Begins the names of its loss and accuracy in the log.
        view: The part of the batch it starts from: 0 for the clean images, i for the i-th augmented ones.
        weight: Weight of its loss, None for the task's.
        shows_clean_images: Its i-th image shows what the i-th clean image does, whatever was done to it: a pairing may
            ask the model to say the same of both.
    """
    part = 'adv'
    view = 0
    weight: Optional[float] = None
    shows_clean_images = True

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Images:
        """Make images of a batch."""
        raise NotImplementedError

    def describe(self) -> str:
        """What the images are, in a few words."""
        raise NotImplementedError

    def relative_cost(self) -> float:
        """Arithmetic of making the images, relative to a vanilla step on as many."""
        return 0.

    def facts(self) -> Dict[str, Any]:
        """What a model card says of a norm that was trained on these images: `trained_on`, and settings."""
        return dict(trained_on=self.describe())

    def normalised_by(self: _Self, mean: Sequence[float], std: Sequence[float]) -> _Self:
        """The source for images that are normalised by mean and std, in 0–1 for each channel."""
        return self

    def against(self: _Self, criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> _Self:
        """The source for a model that is trained by a criterion, which maps (logits, target) to a scalar."""
        return self


@dataclass(frozen=True)
class AugmentedView(Source):
    """The i-th augmented part of the batch, as timm's `--aug-splits` delivers it: [clean; augmented; …].

    It shows the clean images under another augmentation: just what AugMix pairs.

    Args:
        view: Number of the part, from 1.
    """
    view: int = 1
    part = 'aug'
    weight = 1.

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Images:
        return images, target

    def describe(self) -> str:
        return 'augmented images'


@dataclass(frozen=True)
class FunctionSource(Source):
    """The images that a function makes.

    Args:
        function: Maps (model, images, target) to (images, target). It gets copies, as it may work in place.
    """
    function: Callable[[nn.Module, torch.Tensor, torch.Tensor], Images]
    shows_clean_images = False  # it may sort, mix or replace them

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> Images:
        try:
            made = self.function(model, images.clone(), target.clone())
        except TypeError as error:  # it takes something else
            raise InputError(f'The source ({self.describe()}) failed: {type(error).__name__}: {one_line(error)}.'
                             ) from error
        if not isinstance(made, tuple) or len(made) != 2 or any(len(values) != len(images) for values in made):
            raise InputError(f'The source ({self.describe()}) must return a pair of {len(images)} images and as many '
                             'targets.')
        return made

    def describe(self) -> str:
        return f'images of {getattr(self.function, "__name__", type(self.function).__name__)}'


@dataclass(frozen=True)
class NamedImages(Source):
    """Stands for code that is only named: it tells what its images are, and makes none.

    Args:
        name: The code's name, `package.module:name`.
    """
    name: str

    def describe(self) -> str:
        return f'images of {self.name}'


def as_source(value: Union[Source, Callable[..., Images]]) -> Source:
    """A source as it is, or that of a function.

    Raises:
        TypeError: It is neither.
    """
    if not callable(value) or isinstance(value, type):
        raise TypeError(f'{value!r} makes no images: a source is an Attack, another Source, or a function from (model, '
                        'images, target) to (images, target).')
    return value if isinstance(value, Source) else FunctionSource(value)


def import_source(path: str) -> Any:
    """The source, class of sources or function that `package.module:name` names.

    Raises:
        ValueError: There is none.
    """
    module, _, name = path.partition(':')
    try:
        source = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module of a user's raises
        raise ValueError(f'Cannot import the source {path}: {type(error).__name__}: {error}.') from error
    if not callable(source):
        raise ValueError(f'The source {path} cannot be called.')
    if not isinstance(source, Source) and not (isinstance(source, type) and issubclass(source, Source)):
        _check_arguments(source, path)
    return source


def _check_arguments(function: Callable[..., Any], path: str) -> None:
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError as error:
        raise ValueError(f'The source {path} must take (model, images, target): {error}.') from error
    except ValueError:
        pass  # Python does not know what a function of a library in C takes
