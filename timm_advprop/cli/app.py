"""The page program: `python -m timm_advprop.app MODEL`, `timm-advprop-app`. A model, attacked while one looks."""
import os
import socket
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..engine.eval_settings import EvalSettings
from ..errors import InputError, as_input_error, exits_on_input_error, near_matches
from ..settings import Setting, Settings, setting
from .looked_at_model import open_looked_at_model
from .parser import ProgramParser, setup_logging

__all__ = ['create_app', 'main', 'parse_args']

_PUBLISHED = 'results/test_resnet_ap.fashion_mnist'
_MOST_BYTES = 100 * 2 ** 20  # of an upload
# What an evaluation can be told that is of use here.
_FLAGS = (
    '--checkpoint', '--use-ema', '--pretrained', '--num-classes', '--gp', '--model-kwargs', '--data-dir', '--dataset',
    '--dataset-download', '--split', '--class-map', '--input-img-mode', '--img-size', '--in-chans', '--input-size',
    '--crop-pct', '--crop-mode', '--mean', '--std', '--interpolation', '--use-train-size', '--device')


@dataclass(frozen=True)
class PageSettings(Settings):
    """Where the page is served."""
    title = 'Page parameters'
    host: str = setting('127.0.0.1', 'address to listen on; 0.0.0.0 lets other machines in', metavar='ADDRESS')
    port: Optional[int] = setting(
        None, 'port to listen on', low=1, high=65535, metavar='N', default_help='the first free one from 7860')


@dataclass(frozen=True)
class AppSettings(EvalSettings):
    """All settings of the program."""
    page: PageSettings

    @classmethod
    def flags(cls) -> List[Tuple[str, Dict[str, Setting]]]:
        page = PageSettings.flags()
        groups = ((title, {flag: about for flag, about in flags.items() if flag in (*_FLAGS, *page)})
                  for title, flags in super().flags())
        return [(title, flags) for title, flags in groups if flags]


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the page program."""
    setup_logging()
    settings = parse_args(argv)
    address = settings.page
    _check_address(address.host, address.port)
    _open_page(settings).launch(
        server_name=address.host, server_port=address.port, share=False, max_file_size=_MOST_BYTES)


def create_app(model: str, **settings: Any) -> Any:
    """The page as a `gradio.Blocks`, to launch: a Space of the Hub is `create_app('hf-hub:user/name').launch()`.

    Args:
        model: Model that validate.py takes: `hf-hub:user/name`, `local-dir:FOLDER`, or a name of timm's.
        **settings: Flags of the program with underscores: `checkpoint`, `data_dir`, `num_classes`, `mean`, …

    Raises:
        InputError: A setting is unknown or wrong, something that they name is missing, or gradio is.
    """
    known = [name for _, flags in AppSettings.flags() for name in (flag[2:].replace('-', '_') for flag in flags)]
    for name in settings:
        if name not in known:
            raise InputError(f'Unknown setting {name!r}{near_matches(name, known)}.')
    return _open_page(as_input_error(AppSettings.from_values, dict(settings, model=model)))


def parse_args(argv: Optional[Sequence[str]] = None) -> AppSettings:
    """Parse the command line."""
    parser = ProgramParser(
        prog='python -m timm_advprop.app',
        description='Look at a model in the browser: attack an image, and see what each route says of it.')
    parser.add_argument(
        'model', nargs='?', metavar='MODEL',
        help=f'hf-hub:user/name, local-dir:FOLDER, or a name of timm\'s (default: local-dir:{_PUBLISHED})')
    for title, flags in AppSettings.flags():
        parser.add_settings(title, flags)
    values = vars(parser.parse_args(argv))
    return as_input_error(AppSettings.from_values, {**values, 'model': values['model'] or _published_model()})


def _published_model() -> str:
    if not os.path.isdir(_PUBLISHED):
        raise InputError(f'Give a model, such as hf-hub:user/name or local-dir:FOLDER: there is no {_PUBLISHED} here.')
    return f'local-dir:{_PUBLISHED}'


def _check_address(host: str, port: Optional[int]) -> None:
    # before a model is opened: and gradio would try a hundred ports of an address that is none
    try:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f'Cannot listen on {host}{f":{port}" if port else ""} (--host, --port): {reason}.') from error


def _open_page(settings: AppSettings) -> Any:
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')  # read at import: no word to anybody
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError('The page needs gradio: pip install \'timm-advprop[app]\'.') from error
    from .app_page import build_page
    return build_page(open_looked_at_model(settings))
