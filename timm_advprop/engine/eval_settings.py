"""The settings of a validation run: timm's flags under timm's names and defaults, in read-only groups."""
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Mapping, Optional

from ..regimes import Attack
from ..settings import ProgramSettings, Setting, Settings, setting
from .run_settings import DataSettings, DeviceSettings, ImageSettings, LoaderSettings, ModelSettings

__all__ = ['EvalSettings', 'TestAttack']

_NO_ATTACK = 'none'


@dataclass(frozen=True)
class EvalDataSettings(DataSettings):
    """Which data set, which part of it, and what its labels mean."""
    split: str = setting('validation', 'split', metavar='NAME')
    num_samples: Optional[int] = setting(None, 'samples of an iterable data set', low=1, metavar='N')
    real_labels: str = setting('', 'ImageNet "real" labels, a JSON file', metavar='FILE')
    valid_labels: str = setting('', 'file with the class indices that the labels stand for', metavar='FILE')
    metrics_avg: Optional[str] = setting(
        None, 'report precision, recall and F1 with this average (needs scikit-learn)',
        choices=('micro', 'macro', 'weighted'))


@dataclass(frozen=True)
class EvalModelSettings(ModelSettings):
    """Which model, its weights, the norms that images pass, and what is done to it."""
    model: str = setting(
        'dpn92', 'model, "all", a name with wildcards, or a file of names', metavar='NAME', flags=('-m',))
    pretrained: bool = setting(False, 'load published weights (implied where there is no --checkpoint)')
    checkpoint: str = setting('', 'checkpoint file, or a folder of checkpoints', metavar='PATH')
    use_ema: bool = setting(False, 'use the averaged weights of the checkpoint')
    route: str = setting('main', 'norms that images pass; clean is main', choices=('main', 'aux', 'clean'))
    test_pool: bool = setting(False, 'test-time pooling of larger images')
    reparam: bool = setting(False, 'reparameterise the plain model')
    torchscript: bool = setting(False, 'script the model (main route only)')

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.route == 'clean':
            object.__setattr__(self, 'route', 'main')


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


@dataclass(frozen=True)
class TestAttack:
    """The attack of a validation run.

    Args:
        attack: The attack, None for clean images alone.
    """
    attack: Optional[Attack] = None
    default = Attack(target='none', random_start=1.)
    __test__ = False  # no test of pytest's

    @classmethod
    def flags(cls) -> Dict[str, Setting]:
        """The options by their flags; an attack is asked for by its name."""
        flags = {}
        for name, about in Attack.declared().items():
            default = getattr(cls.default, name)
            help = about.default_help or (f'{default:g}' if isinstance(default, float) else default)
            flags[about.flags[0]] = replace(about, default=None, default_help=help)
        flags['--adv-attack'] = replace(
            flags['--adv-attack'], choices=(_NO_ATTACK, *Attack.declared()['kind'].choices), default=_NO_ATTACK,
            default_help=_NO_ATTACK, help='attack the images, and report adv_top1 and adv_top5 too')
        return flags

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> 'TestAttack':
        """The attack in a mapping from names of flags to values.

        Raises:
            ValueError: There are settings of an attack, but no attack.
        """
        given = {name: values[flag] for name, flag in Attack.names_of_flags().items() if values.get(flag) is not None}
        if given.pop('kind', _NO_ATTACK) != _NO_ATTACK:
            return cls(replace(cls.default, kind=values['adv_attack'], **given))
        if given:
            flags = ', '.join(f'--{Attack.names_of_flags()[name].replace("_", "-")}' for name in given)
            raise ValueError(f'{flags}: these belong to an attack, give --adv-attack pgd.')
        return cls()


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
