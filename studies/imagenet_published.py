"""AdvProp against other weights of the same EfficientNets on six ImageNet test sets, from timm's published results.

Run it in the repository's root: `python -m studies.imagenet_published` reads results/imagenet_published.csv, and writes
the tables of docs/imagenet_published.md and the picture.
"""
import argparse
import csv
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from timm_advprop.engine.figures import new_figure
from timm_advprop.errors import exits_on_input_error
from timm_advprop.output import markdown_table, replacing

from .trained import check_root

__all__ = [
    'COMPARED', 'EvalSet', 'Gain', 'Model', 'TEST_SETS', 'draw_gains', 'gain', 'main', 'page_with_tables',
    'read_models',
]

RESULTS, PAGE = 'results/imagenet_published.csv', 'docs/imagenet_published.md'
PICTURE = 'results/imagenet_published_gain.png'
BEGIN, END = '<!-- Tables of `python -m studies.imagenet_published` -->', '<!-- End of the tables -->'
ARCHITECTURE = 'tf_efficientnet_'
WEIGHTS = {'ap': 'AdvProp', 'aa': 'AutoAugment', 'ra': 'RandAugment', 'plain': 'plain'}
COMPARED = ('aa', 'ra', 'plain')  # with AdvProp
_DRAWN = ('aa', 'ra')


class EvalSet(NamedTuple):
    """A test set.

    Args:
        title: Its name.
        num_images: Images that it has; ReaL has no label for some of ImageNet's.
        color: Colour in the picture, all of them told apart by colour-blind readers (Okabe and Ito).
        marker: Shape of its points.
    """
    title: str
    num_images: int
    color: str
    marker: str


# In the order of the tables, by their columns in the CSV
TEST_SETS: Dict[str, EvalSet] = {
    'imagenet': EvalSet('ImageNet', 50000, '#000000', 'o'),
    'real': EvalSet('ReaL', 46837, '#8C8C8C', 's'),
    'v2': EvalSet('V2', 10000, '#0072B2', 'D'),
    'sketch': EvalSet('Sketch', 50889, '#D55E00', '^'),
    'a': EvalSet('A', 7500, '#009E73', 'v'),
    'r': EvalSet('R', 30000, '#CC79A7', 'P'),
}


class Model(NamedTuple):
    """A model with weights.

    Args:
        size: `B0` to `B8`.
        weights: A key of `WEIGHTS`.
        img_size: Width of its images in pixels.
        param_count: Parameters in millions.
        top1: Accuracy in percent by test set.
    """
    size: str
    weights: str
    img_size: int
    param_count: float
    top1: Dict[str, float]


class Gain(NamedTuple):
    """A difference of accuracies.

    Args:
        points: The difference in percentage points.
        error: Its standard error for images drawn at random, as if the two models' hits were independent. They are
            alike, so that this is more than it is.
    """
    points: float
    error: float

    @property
    def is_clear(self) -> bool:
        """Whether it is more than two standard errors."""
        return abs(self.points) > 2 * self.error


Models = Dict[Tuple[str, str], Model]


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Write the tables and the picture."""
    argparse.ArgumentParser(description='Tables and picture of published ImageNet results.').parse_args(argv)
    check_root('this', RESULTS, PAGE)
    models = read_models(RESULTS)
    with open(PAGE, encoding='utf-8') as file:
        page = page_with_tables(file.read(), models)
    with replacing(PAGE) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        file.write(page)
    draw_gains(PICTURE, models)
    print(f'Tables: {PAGE}\nPicture: {PICTURE}')


def read_models(path: str) -> Models:
    """Models by size and weights, in the order of the file.

    Args:
        path: The CSV.
    """
    with open(path, newline='', encoding='utf-8') as file:
        rows = [Model(
            size=row['architecture'].removeprefix(ARCHITECTURE).upper(),
            weights=row['weights'],
            img_size=int(row['img_size']),
            param_count=float(row['param_count']),
            top1={name: float(row[name]) for name in TEST_SETS},
        ) for row in csv.DictReader(file)]
    return {(model.size, model.weights): model for model in rows}


def gain(models: Models, size: str, weights: str, test_set: str) -> Gain:
    """Top-1 of the AdvProp weights less that of others.

    Args:
        models: All models.
        size: `B0` to `B8`.
        weights: The others, one of `COMPARED`.
        test_set: A key of `TEST_SETS`.
    """
    advprop, other = (models[size, name].top1[test_set] for name in ('ap', weights))
    variance = sum(top1 * (100 - top1) for top1 in (advprop, other)) / TEST_SETS[test_set].num_images
    return Gain(advprop - other, variance ** 0.5)


def page_with_tables(page: str, models: Models) -> str:
    """The documentation page with its tables made anew.

    Args:
        page: The page, with the marks of the tables in it.
        models: All models.
    """
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [f'### AdvProp − {WEIGHTS[weights]}\n\n{_gain_table(models, weights)}' for weights in COMPARED]
    tables = '\n\n'.join([*parts, f'### Top-1 in percent\n\n{_top1_table(models)}'])
    return f'{before}{BEGIN}\n\n{tables}\n\n{END}{after}'


def _gain_table(models: Models, weights: str) -> str:
    rows = [['model', *_titles()]]
    for size in _sizes(models, weights):
        rows.append([size, *(_signed(gain(models, size, weights, name)) for name in TEST_SETS)])
    return markdown_table(rows)


def _top1_table(models: Models) -> str:
    rows = [['model', 'weights', 'image size', 'parameters (M)', *_titles()]]
    for model in sorted(models.values(), key=lambda model: (model.size, list(WEIGHTS).index(model.weights))):
        about = [model.size, WEIGHTS[model.weights], model.img_size, model.param_count]
        rows.append([*about, *(_top1(models, model, name) for name in TEST_SETS)])
    return markdown_table(rows)


def _titles() -> List[str]:
    return [test_set.title for test_set in TEST_SETS.values()]


def _sizes(models: Models, weights: str) -> List[str]:
    return sorted(size for size, name in models if name == weights)


def _signed(difference: Gain) -> str:
    text = _signed_points(difference.points)
    return text if difference.is_clear else f'({text})'


def _signed_points(points: float, digits: int = 1) -> str:
    return f'{points:+.{digits}f}'.replace('-', '−')


def _top1(models: Models, model: Model, name: str) -> str:
    # The best weights of a size are bold.
    best = max(other.top1[name] for other in models.values() if other.size == model.size)
    text = f'{model.top1[name]:.2f}'
    return f'**{text}**' if model.top1[name] == best else text


def draw_gains(path: str, models: Models) -> None:
    """Draw the gain of AdvProp over other weights by model, a line a test set.

    Args:
        path: File to write.
        models: All models.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = new_figure((9.4, 5))
    axes = figure.subplots(1, len(_DRAWN), sharey=True, width_ratios=(9.2, 5.2))
    for axis, weights in zip(axes, _DRAWN):
        _draw_comparison(axis, models, weights)
    axes[0].set_ylabel('gain in top-1 (percentage points)', fontsize=10)
    axes[0].yaxis.set_major_formatter(lambda points, _: _signed_points(points, digits=0) if points else '0')
    figure.suptitle(
        'Published EfficientNets: AdvProp gains little on ImageNet, more on images unlike it', x=0.01, ha='left',
        fontsize=12, fontweight='bold')
    figure.supxlabel(
        'Hollow: within two standard errors of zero (of the test images; each point is one pair of trained networks).',
        x=0.01, ha='left', fontsize=9)
    figure.savefig(path)


def _draw_comparison(axis: Any, models: Models, weights: str) -> None:
    sizes = _sizes(models, weights)
    places = [int(size[1:]) for size in sizes]
    axis.axhline(0, color='#404040', linewidth=1.2, zorder=1.5)
    ends = {}
    for name, test_set in TEST_SETS.items():
        gains = [gain(models, size, weights, name) for size in sizes]
        points = [value.points for value in gains]
        axis.plot(places, points, color=test_set.color, linewidth=1.6)
        for place, value in zip(places, gains):
            axis.plot(place, value.points, test_set.marker, color=test_set.color, markersize=6, markeredgewidth=1.4,
                      markerfacecolor=test_set.color if value.is_clear else 'white')
        ends[name] = points[-1]
    for name, height in _apart(ends, 0.55).items():
        title = TEST_SETS[name].title
        axis.text(places[-1] + 0.2, height, f'ImageNet-{title}' if title in 'AR' else title, va='center', fontsize=10,
                  color=TEST_SETS[name].color, fontweight='bold',
                  bbox=dict(facecolor='white', edgecolor='none', pad=1))
    axis.set_xticks(places, [f'{size}\n{models[size, "ap"].param_count:.0f}M' for size in sizes])
    axis.set_xlim(places[0] - 0.4, places[-1] + 1.8)
    axis.set_title(f'compared with {WEIGHTS[weights]}', fontsize=11, loc='left')
    axis.tick_params(labelsize=9.5, length=0)
    axis.grid(axis='y', color='#E3E3E3', linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)


def _apart(heights: Dict[str, float], gap: float) -> Dict[str, float]:
    # Heights of labels, which must not lie on each other.
    places: Dict[str, float] = {}
    lowest = float('-inf')
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        places[name] = max(height, lowest)
        lowest = places[name] + gap
    return places


if __name__ == '__main__':
    main()
