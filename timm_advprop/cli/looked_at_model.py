"""A model that is looked at: its routes as plain models, names of its classes, images to try."""
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Callable, List, Tuple

import torch.nn as nn
from PIL import Image

from ..engine.bad_images import explained_data_loss
from ..engine.class_labels import class_labels
from ..engine.datasets import channel_normalisation, check_dataset_root, open_split
from ..engine.eval_settings import EvalSettings
from ..engine.example_images import builtin_images, spread_samples
from ..engine.route_names import plain_model_of
from ..engine.single_image import pixels_of
from ..engine.tested_model import TestedModel, open_tested_model
from ..errors import InputError, as_input_error
from ..norms import num_aux_norms
from ..robustness.attacked_image import AttackedImage, ImageAttack, attack_image, shown_routes

__all__ = ['LookedAtModel', 'open_looked_at_model']

_NUM_EXAMPLES = 10
_KEPT_MODELS = 4  # main, aux, and two more that somebody attacks


@dataclass(frozen=True)
class LookedAtModel:
    """A model, and what a page shows beside it. One image at a time: an attack changes a model while it runs.

    Args:
        tested: The model.
        labels: Names of its classes.
        examples: Images to try.
    """
    tested: TestedModel
    labels: Tuple[str, ...]
    examples: List[Image.Image]
    model_of: Callable[[str], nn.Module] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'model_of', lru_cache(_KEPT_MODELS)(partial(plain_model_of, self.tested.model)))

    @property
    def name(self) -> str:
        """What the model is called; of a file or a folder the end of its path."""
        settings = self.tested.settings.model
        path = settings.checkpoint or settings.model.partition(':')[2] or settings.model
        return '/'.join(path.rstrip('/').split('/')[-2:])

    @property
    def about(self) -> str:
        """Its size, its images and its norms, in one line."""
        channels, height, width = self.tested.config['input_size']
        norms = ('main norms alone', 'main and auxiliary norms')[min(self.num_aux, 1)]
        norms += f' ({self.num_aux})' if self.num_aux > 1 else ''
        return (f'{self.tested.param_count:g} M parameters, {"grey" if channels == 1 else "colour"} images of '
                f'{height} × {width} pixels, {len(self.labels)} classes, {norms}')

    @property
    def num_aux(self) -> int:
        """Number of auxiliary norms for each norm, 0 for a plain model."""
        return num_aux_norms(self.tested.model)

    @property
    def routes(self) -> List[str]:
        """Its routes, without blends."""
        return ['main', 'aux', *map(str, range(2, self.num_aux + 1))][:1 + self.num_aux]

    def attack(self, image: Image.Image, asked: ImageAttack) -> AttackedImage:
        """Attack an image, and ask for it through main, aux and the attacked route.

        Args:
            image: The image, of any mode and size.
            asked: The attack.

        Raises:
            InputError: The model has no such route or class.
        """
        as_input_error(self.model_of, asked.route)
        pixels = self.tested.placement.images(pixels_of(image, self.tested.config))
        return attack_image(
            self.model_of, pixels, asked, shown_routes(self.num_aux, asked.route),
            *channel_normalisation(self.tested.config))


def open_looked_at_model(settings: EvalSettings) -> LookedAtModel:
    """Open a model, and the data set that its example images are of where there is one.

    Args:
        settings: The model, how its images are sized and normalised, and the data set.

    Raises:
        InputError: Something that settings name is missing; the model has no classes, or is of other images than grey
            or colour ones.
    """
    data = settings.data
    has_data = bool(data.data_dir or data.dataset)
    if has_data:
        check_dataset_root(data, data.split)  # before a model is downloaded for it
    tested = open_tested_model(settings, attacked=True)
    channels = tested.config['input_size'][0]
    if channels not in (1, 3):
        raise InputError(f'The page shows images of 1 or 3 channels, the model takes {channels}.')
    if tested.num_classes < 2:
        raise InputError(f'The page shows what a model of several classes says, this one has {tested.num_classes}.')
    if not has_data:
        return LookedAtModel(tested, class_labels(tested.model), builtin_images(tested.num_classes))
    dataset = open_split(data, data.split, tested.config, num_samples=data.num_samples, seed=settings.loader.seed)
    with explained_data_loss():
        examples = [image for image, _ in spread_samples(dataset, _NUM_EXAMPLES)]
    return LookedAtModel(tested, class_labels(tested.model, dataset), examples)
