"""The settings of a validation run: timm's flags under timm's names and defaults, in read-only groups."""
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Tuple, Type, TypeVar

from ..norms import Route
from ..settings import ProgramSettings, Settings, setting
from .attack_settings import TestAttack
from .route_names import canonical_route, is_blend, norm_route_of, route_problem
from .run_settings import DataSettings, DeviceSettings, ImageSettings, LoaderSettings, ModelSettings

__all__ = ['EvalModelsSettings', 'EvalSettings']

@dataclass(frozen=True)
class EvalDataSettings(DataSettings):
    """Which data set, which part of it, and what its labels mean."""
    split: str = setting('validation', 'split', metavar='NAME')
    num_samples: Optional[int] = setting(
        None, 'evaluate N images, evenly spread over the split', low=1, metavar='N', default_help='all')
    recalibrate_split: str = setting('train', 'split of the images of --recalibrate', metavar='NAME')
    real_labels: str = setting('', 'ImageNet "real" labels, a JSON file', metavar='FILE')
    valid_labels: str = setting('', 'file with the class indices that the labels stand for', metavar='FILE')
    metrics_avg: Optional[str] = setting(
        None, 'report precision, recall and F1 with this average', choices=('micro', 'macro', 'weighted'))


def _count_problem(number: int) -> Optional[str]:
    return 'must be 0 for none, or at least 2' if number == 1 else None


_MODEL_WITHOUT_CHECKPOINT = 'dpn92'  # timm's default
_ABOUT_MODEL = dict(
    metavar='NAME', flags=('-m',), default_help=f'that of the checkpoint, without one {_MODEL_WITHOUT_CHECKPOINT}')
_ABOUT_CHECKPOINT = dict(metavar='PATH')
_ABOUT_ROUTE = dict(metavar='ROUTE', check=route_problem)


@dataclass(frozen=True)
class EvalModelSettings(ModelSettings):
    """Which model ('' for that which the checkpoint names), its weights, the norms that images pass, and what is done
    to it."""
    model: str = setting('', 'model', **_ABOUT_MODEL)
    pretrained: bool = setting(False, 'load published weights (implied where there is no --checkpoint)')
    checkpoint: str = setting('', 'checkpoint file', **_ABOUT_CHECKPOINT)
    use_ema: bool = setting(False, 'use the averaged weights of the checkpoint')
    route: str = setting('main', 'norms that images pass', **_ABOUT_ROUTE)
    recalibrate: int = setting(
        0, 'take the running statistics of a route from N images of --recalibrate-split', low=0, check=_count_problem,
        metavar='N')
    test_pool: bool = setting(False, 'test-time pooling of larger images')
    reparam: bool = setting(False, 'reparameterise the plain model')
    torchscript: bool = setting(False, 'script the model (no auxiliary route, no attack)')

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            object.__setattr__(self, 'model', '' if self.checkpoint else _MODEL_WITHOUT_CHECKPOINT)
        if isinstance(self.route, str):
            object.__setattr__(self, 'route', canonical_route(self.route))

    @property
    def norm_route(self) -> Route:
        """The route as `set_norm_route` takes it; a blend has none but main."""
        return norm_route_of(self.route)

    @property
    def is_plain(self) -> bool:
        """Whether a plain model is evaluated: that of the main norms, a blend, or one with statistics of its own."""
        return self.route == 'main' or is_blend(self.route) or bool(self.recalibrate)


@dataclass(frozen=True)
class EvalModelsSettings(EvalModelSettings):
    """Which models, each on which routes."""
    model: Tuple[str, ...] = setting(
        (), 'models; "all", a name with wildcards, or a file of names stands for several', nargs='+',
        **_ABOUT_MODEL)
    checkpoint: Tuple[str, ...] = setting(
        (), 'checkpoint files or folders of them, of one model, or one for each model', nargs='+', **_ABOUT_CHECKPOINT)
    route: Tuple[str, ...] = setting(
        ('main',), 'norms that images pass: main, aux, i for the i-th auxiliary norms, or a share such as 0.3 for a '
        'blend of main and first auxiliary norms', nargs='+', **_ABOUT_ROUTE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.model, str):  # the default
            object.__setattr__(self, 'model', (self.model,))
        object.__setattr__(self, 'route', tuple(dict.fromkeys(map(canonical_route, self.route))))  # each once

    def one(self, model: str, checkpoint: str, route: str) -> EvalModelSettings:
        """The settings of one of them."""
        return EvalModelSettings(**{**self.values(), 'model': model, 'checkpoint': checkpoint, 'route': route})


@dataclass(frozen=True)
class EvalImageSettings(ImageSettings):
    """How images are sized, cropped and normalised."""
    use_train_size: bool = setting(False, 'the model\'s training size where its test size differs')
    crop_mode: Optional[str] = setting(None, 'crop mode', choices=('squash', 'border', 'center'))
    crop_border_pixels: Optional[int] = setting(None, 'pixels to crop from the border', low=0)


@dataclass(frozen=True)
class EvalDeviceSettings(DeviceSettings):
    """Where and in which precision."""
    num_gpu: int = setting(1, 'GPUs to use', low=1)


@dataclass(frozen=True)
class EvalLoaderSettings(LoaderSettings):
    """How batches are loaded."""
    batch_size: int = setting(256, 'batch size', low=1, metavar='N', flags=('-b',))


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What is logged and written."""
    title = 'Run parameters'
    log_freq: int = setting(10, 'batches between progress lines', low=1, metavar='N')
    results_file: str = setting('', 'write the results to FILE', metavar='FILE')
    results_format: str = setting('csv', 'format of the results file', choices=('csv', 'json'))
    retry: bool = setting(False, 'retry with a smaller batch where memory runs out')


_Settings = TypeVar('_Settings', bound='EvalSettings')


@dataclass(frozen=True)
class EvalSettings(ProgramSettings):
    """All settings of a validation run."""
    data: EvalDataSettings
    model: EvalModelSettings
    image: EvalImageSettings
    device: EvalDeviceSettings
    loader: EvalLoaderSettings
    report: ReportSettings
    attack: TestAttack = field(metadata=dict(title='Attack parameters', flags=TestAttack.flags))

    @classmethod
    def from_values(cls: Type[_Settings], values: Mapping[str, Any]) -> _Settings:
        settings = super().from_values(values)
        settings.check_attack()
        return settings

    def check_attack(self) -> None:
        """Check that the flags of an attack make sense.

        Raises:
            ValueError: They do not.
        """
        self.attack.check_alone()
