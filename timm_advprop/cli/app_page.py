"""The page of `python -m timm_advprop.app`. Needs gradio."""
from html import escape
from typing import Any, List, Mapping, Optional

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.processing_utils import check_all_files_in_cache  # pyright: ignore[reportMissingImports]

from ..engine.single_image import image_of, read_image
from ..errors import InputError, as_input_error
from ..robustness.attacked_image import AWAY, RANDOM, ImageAttack
from ..settings import Setting
from .looked_at_model import LookedAtModel
from .prediction_table import STYLE, message, prediction_table

__all__ = ['build_page']

_SHOWN_PX = 100  # of the largest change in the picture of the perturbation, in 0–255 pixels
_LARGE_PIXELS = 96  # images of at most so many a side are shown pixel by pixel
_KEEP_SECONDS = 3600  # images of visitors
_BLENDS = ('0.25', '0.5', '0.75')
_NO_IMAGE = 'Choose an image, or drop one.'


def build_page(model: LookedAtModel) -> gr.Blocks:
    """The page for a model.

    Args:
        model: The model.
    """
    with gr.Blocks(title=model.name, analytics_enabled=False, delete_cache=(_KEEP_SECONDS, _KEEP_SECONDS)) as page:
        gr.HTML(f'{STYLE}<h1>{escape(model.name)}</h1>{escape(model.about)}')
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                inputs = _inputs(model)
            with gr.Column(scale=5, min_width=480):
                outputs = _outputs(model)

        def update(file: Any, *values: Any) -> List[Any]:
            # gradio itself checks what is marked as a file alone, and whoever asks for another of this machine omits it
            check_all_files_in_cache(file)
            return _update(model, file, *values)

        # Raw values: gradio would open images itself, and print a traceback for a file that is none.
        gr.on(
            [page.load, *(each.change for each in inputs)], update, inputs, outputs, preprocess=False,
            trigger_mode='always_last', show_progress='hidden', concurrency_limit=1, api_name='attack')
    return page


def _inputs(model: LookedAtModel) -> List[Any]:
    about = ImageAttack.declared()
    image = gr.Image(
        model.examples[0] if model.examples else None, label='Image', format='png', sources=['upload', 'clipboard'],
        height=240, elem_id='upload', elem_classes=['whole-image'])
    if model.examples:
        gr.Examples([[example] for example in model.examples], [image], label='Examples', elem_id='examples')
    eps_px = _slider(about['eps_px'], 0.5, ' (px of 255)', 'strength')
    steps = _slider(about['steps'], 1, '', 'steps')
    classes = [(label, str(number)) for number, label in enumerate(model.labels)]
    target = gr.Dropdown(
        [('none: away from what the model says', AWAY), ('random wrong class', RANDOM), *classes], value=AWAY,
        label='Target', elem_id='target')
    route = gr.Dropdown(
        [*model.routes, *(_BLENDS if len(model.routes) > 1 else ())], value='main', label='Attacked route',
        info='Or a share of the auxiliary norms, such as 0.3' if len(model.routes) > 1 else None,
        allow_custom_value=True, interactive=len(model.routes) > 1, elem_id='route')
    return [image, eps_px, steps, target, route]


def _outputs(model: LookedAtModel) -> List[Any]:
    with gr.Row():
        pictures = [_picture(model, label) for label in ('Clean', 'Perturbation', 'Attacked')]
    return [*pictures, gr.HTML(elem_id='predictions')]


def _slider(about: Setting, step: float, unit: str, name: str) -> gr.Slider:
    return gr.Slider(about.low, about.high, about.default, step=step, label=f'{about.help}{unit}', elem_id=name)


def _picture(model: LookedAtModel, label: str) -> gr.Image:
    looks = ['whole-image', *(['large-pixels'] if max(model.tested.config['input_size']) <= _LARGE_PIXELS else [])]
    return gr.Image(
        label=label, interactive=False, format='png', height=300, buttons=['download', 'fullscreen'],
        elem_id=label.lower(), elem_classes=looks)


def _update(model: LookedAtModel, file: Optional[Mapping[str, Any]], *values: Any) -> List[Any]:
    # The three pictures and the table, or a message alone.
    if not file:
        return _without_pictures(_NO_IMAGE)
    try:
        asked = as_input_error(ImageAttack, *values)
        shown = model.attack(read_image(file['path']), asked)
    except InputError as error:
        gr.Warning(str(error))
        return _without_pictures(str(error))
    factor = _SHOWN_PX / max(asked.eps_px, 1)
    pictures = (shown.clean, 0.5 + factor * shown.perturbation, shown.attacked)
    names = (None, f'Perturbation × {factor:.3g}', None)
    return [*(gr.update(value=image_of(picture), **({'label': name} if name else {}))
              for picture, name in zip(pictures, names)), prediction_table(shown, asked, model.labels)]


def _without_pictures(text: str) -> List[Any]:
    return [None, None, None, message(text)]
