"""Pictures of a robustness run: bars for corruptions, curves for attacks. Need matplotlib."""
from itertools import product
from statistics import fmean
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ..engine.figures import new_figure
from ..engine.results_file import Results
from .severities import ALL_CORRUPTIONS, GROUPS
from .summary import evaluated, headline, number

__all__ = ['draw_attacks', 'draw_corruptions']

_COLORS = ('#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377', '#bbbbbb')  # Tol's bright scheme
_SIZE = 8
_MARKERS = 'osD^v'  # of attacks
_LINES, _HATCHES = ('-', '--', ':'), ('', '//////', '......')  # of the routes of a model
Names = Mapping[Tuple[str, ...], str]


def draw_corruptions(path: str, rows: Sequence[Results], names: Names) -> None:
    """Draw accuracy by corruption, the mean over severities, a bar for each model on a route; clean ones as lines.

    Args:
        path: File to write.
        rows: Rows of corruptions, and clean ones.
        names: A name for each model on a route.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = new_figure((9, 3.4))
    axis = figure.subplots()
    present = [name for name in ALL_CORRUPTIONS if any(row['condition'] == name for row in rows)]
    places = _places(present)
    width = 0.8 / len(names)
    for i, (key, (color, of_route)) in enumerate(_styles(names).items()):
        of_key = [row for row in rows if evaluated(row) == key]
        means, offset = _means(of_key, present), (i - (len(names) - 1) / 2) * width
        axis.bar([places[each] + offset for each in means], list(means.values()), width, label=names[key], color=color,
                 hatch=_HATCHES[of_route], edgecolor='white', linewidth=0)
        for row in of_key:
            if row['suite'] == 'clean':
                axis.axhline(number(row, 'top1'), color=color, linewidth=0.8, linestyle=_LINES[of_route])
    axis.set_xticks(list(places.values()), [name.replace('_', ' ') for name in places], rotation=35, ha='right')
    _name_groups(axis, places)
    _finish(axis, 'top-1 (%), mean of 5 severities', len(names))
    figure.savefig(path)


def draw_attacks(path: str, rows: Sequence[Results], names: Names) -> None:
    """Draw accuracy against the strength of an attack, a curve for each model on a route, from clean images on.

    Args:
        path: File to write.
        rows: Rows of attacks, and clean ones.
        names: A name for each model on a route.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = new_figure((5.2, 3.4))
    axis = figure.subplots()
    attacks = list(dict.fromkeys(_attack_of(row) for row in rows if row['suite'] == 'attacks'))
    for (key, (color, of_route)), attack in product(_styles(names).items(), attacks):
        points = _points([row for row in rows if evaluated(row) == key], attack)
        if points:
            label = names[key] + (f', {attack}' if len(attacks) > 1 else '')
            axis.plot(*zip(*points), _LINES[of_route], marker=_MARKERS[attacks.index(attack) % len(_MARKERS)],
                      markersize=4, color=color, label=label, clip_on=False)
    strengths = sorted({number(row, 'severity') for row in rows if row['suite'] == 'attacks'})
    axis.set_xticks([0., *strengths], ['clean', *(f'{strength:g}' for strength in strengths)])
    axis.set_xlabel(f'strength of {" and ".join(attacks)}, in 0–255 pixels', fontsize=_SIZE)
    axis.set_xlim(left=0)
    _finish(axis, 'top-1 (%)', len(names))
    figure.savefig(path)


def _styles(names: Names) -> Dict[Tuple[str, ...], Tuple[str, int]]:
    # A colour for each model, and a number for each of its routes.
    models = list(dict.fromkeys(key[:-1] for key in names))
    routes = {model: [key[-1] for key in names if key[:-1] == model] for model in models}
    return {key: (_COLORS[models.index(key[:-1]) % len(_COLORS)], routes[key[:-1]].index(key[-1]) % len(_LINES))
            for key in names}


def _attack_of(row: Mapping[str, Any]) -> str:
    # `PGD (L2)` for `PGD (L2) 4/255`
    return headline(row).rpartition(' ')[0]


def _points(rows: Sequence[Results], attack: str) -> List[Tuple[float, float]]:
    # Strengths and accuracies of a curve, which begins with clean images; none where the attack was not measured.
    curve = [(number(row, 'severity'), number(row, 'top1')) for row in rows
             if row['suite'] == 'attacks' and _attack_of(row) == attack]
    clean = [(0., number(row, 'top1')) for row in rows if row['suite'] == 'clean']
    return sorted(clean + curve) if curve else []


def _places(corruptions: Sequence[str]) -> Dict[str, float]:
    # With a gap between groups.
    places: Dict[str, float] = {}
    for number_of_group, names in enumerate(GROUPS.values()):
        for name in names:
            if name in corruptions:
                places[name] = len(places) + 0.6 * number_of_group
    return places


def _means(rows: Sequence[Results], corruptions: Sequence[str]) -> Dict[str, float]:
    top1: Dict[str, List[float]] = {name: [] for name in corruptions}
    for row in rows:
        if row['condition'] in top1:
            top1[row['condition']].append(number(row, 'top1'))
    return {name: fmean(values) for name, values in top1.items() if values}


def _name_groups(axis: Any, places: Mapping[str, float]) -> None:
    for group, names in GROUPS.items():
        of_group = [places[name] for name in names if name in places]
        if of_group:
            axis.text(fmean(of_group), 1.01, group, transform=axis.get_xaxis_transform(), ha='center', va='bottom',
                      fontsize=_SIZE, color='0.35')


def _finish(axis: Any, label: str, num_names: int) -> None:
    axis.set_ylabel(label, fontsize=_SIZE)
    axis.set_ylim(0, 100)
    axis.tick_params(labelsize=_SIZE)
    axis.grid(axis='y', linewidth=0.4, color='0.85')
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(fontsize=_SIZE - 1, frameon=False, ncols=min(3, num_names), loc='lower center',
                bbox_to_anchor=(0.5, 1.06))
