"""What a model says of an image, clean and attacked, as HTML: a column a route."""
from html import escape
from typing import List, Sequence

import torch

from ..engine.figures import COLORS
from ..engine.route_names import is_blend
from ..output import counted
from ..robustness.attacked_image import AttackedImage, ImageAttack

__all__ = ['STYLE', 'attack_line', 'message', 'prediction_table', 'route_title']

_TOP = 5
_KINDS = ('clean', 'attacked')
STYLE = '''<style>
.predictions { display: grid; gap: 10px 24px; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr);
    grid-template-rows: repeat(3, auto); overflow-x: auto; }
.route-name { font-weight: 600; color: var(--body-text-color); }
.image-kind { margin-bottom: 3px; font-size: .85em; color: var(--body-text-color-subdued); }
.prediction { display: grid; grid-template-columns: minmax(0, 1fr) 4.8em; align-items: center; position: relative;
    padding: 2px 6px; margin-bottom: 2px; color: var(--body-text-color); }
.prediction > i { position: absolute; left: 0; top: 0; bottom: 0; border-radius: 3px; opacity: .38; }
.prediction > span { position: relative; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.prediction > span + span { overflow: visible; text-align: right; font-variant-numeric: tabular-nums; }
.prediction.said > span { font-weight: 600; }
.attack-line, .message { color: var(--body-text-color); margin: 0 0 10px; }
.message { padding: 16px; text-align: center; color: var(--body-text-color-subdued); }
.whole-image .image-frame, .whole-image .image-container > button { width: 100% !important; height: 100% !important; }
.whole-image img { width: 100% !important; height: 100% !important; object-fit: contain !important; }
.large-pixels img { image-rendering: pixelated; }
#examples button, #examples button > div, #examples img { width: 52px; height: 52px; min-width: 0; }
</style>'''


def prediction_table(shown: AttackedImage, asked: ImageAttack, labels: Sequence[str]) -> str:
    """The most likely classes of both images, with their probabilities as bars.

    What a route says of the clean image is bold, also where it stands for the attacked one.

    Args:
        shown: The image.
        asked: The attack.
        labels: Names of the classes.
    """
    columns = ''.join(
        _column(route, probabilities, labels, COLORS[number % len(COLORS)])
        for number, (route, probabilities) in enumerate(shown.probabilities.items()))
    line = attack_line(shown, asked, labels)
    return f'<p class="attack-line">{escape(line)}</p><div class="predictions">{columns}</div>'


def attack_line(shown: AttackedImage, asked: ImageAttack, labels: Sequence[str]) -> str:
    """What the attack did, in one line."""
    steps = f'{counted(asked.steps, "step")} of {asked.alpha_px:.3g} px'
    aim = f'away from “{labels[shown.label]}”' if shown.goal is None else f'towards “{labels[shown.goal]}”'
    return f'{steps} within {asked.eps_px:g} px, through {route_title(asked.route)}, {aim}.'


def route_title(route: str) -> str:
    """A route as the page names it."""
    if is_blend(route):
        return f'{1 - float(route):.0%} main and {float(route):.0%} auxiliary norm'
    return {'main': 'the main norms', 'aux': 'the auxiliary norms'}.get(route, f'auxiliary norms {route}')


def message(text: str) -> str:
    """A text in place of predictions."""
    return f'<p class="message">{escape(text)}</p>'


def _column(route: str, probabilities: torch.Tensor, labels: Sequence[str], color: str) -> str:
    said = int(probabilities[0].argmax())
    title = route_title(route).removeprefix('the ')
    tables = ''.join(
        f'<div data-route="{escape(route)}" data-image="{kind}"><div class="image-kind">{kind}</div>'
        f'{_bars(each, said, labels, color)}</div>'
        for kind, each in zip(_KINDS, probabilities))
    return f'<div class="route-name">{escape(title[0].upper() + title[1:])}</div>{tables}'


def _bars(probabilities: torch.Tensor, said: int, labels: Sequence[str], color: str) -> str:
    values, classes = probabilities.topk(min(_TOP, len(probabilities)))
    numbers: List[int] = classes.tolist()
    return ''.join(
        f'<div class="prediction{" said" if number == said else ""}" title="{escape(labels[number])}">'
        f'<i style="width: {value:.2%}; background: {color}"></i>'
        f'<span>{escape(labels[number])}</span><span>{value:.1%}</span></div>'
        for value, number in zip(values.tolist(), numbers))
