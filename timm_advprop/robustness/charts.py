"""Pictures of a robustness run: bars for corruptions, curves for attacks. Need matplotlib."""
from statistics import fmean
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ..corruptions import ALL_CORRUPTIONS, GROUPS, SEVERITIES
from ..engine.figures import COLORS, new_figure
from ..engine.results_file import Results
from .summary import evaluated, headline, number

__all__ = ['draw_attacks', 'draw_corruptions']

_SIZE = 8
_ROUTES = {'main': 0, 'aux': 1}
_LINES, _HATCHES = ('-', '--', ':'), ('', '//////', '......')  # of main, aux and other routes
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
    names = {key: name for key, name in names.items() if any(
        evaluated(row) == key and row['suite'] != 'clean' for row in rows)}
    present = [name for name in ALL_CORRUPTIONS if any(_means(rows, [name], key) for key in names)]
    figure, places, width = new_figure((9, 3.6)), _places(present), 0.8 / max(1, len(names))
    axis = figure.subplots()
    for i, (key, (color, of_route)) in enumerate(_styles(names).items()):
        means, offset = _means(rows, present, key), (i - (len(names) - 1) / 2) * width
        axis.bar([places[each] + offset for each in means], list(means.values()), width, label=names[key], color=color,
                 hatch=_HATCHES[of_route], edgecolor='white', linewidth=0)
        for row in rows:
            if row['suite'] == 'clean' and evaluated(row) == key:
                axis.axhline(number(row, 'top1'), color=color, linewidth=0.8, linestyle=_LINES[of_route])
    axis.set_xticks(list(places.values()), [name.replace('_', ' ') for name in places], rotation=35, ha='right')
    _name_groups(axis, places)
    _finish(axis, 'top-1 (%), mean of 5 severities; lines: clean')
    _name_styles(figure, axis)
    figure.savefig(path)


def draw_attacks(path: str, rows: Sequence[Results], names: Names) -> None:
    """Draw accuracy against the strength of an attack, a panel for each attack, a curve for each model on a route.

    Args:
        path: File to write.
        rows: Rows of attacks, and clean ones.
        names: A name for each model on a route.

    Raises:
        InputError: matplotlib is not installed.
    """
    attacks = list(dict.fromkeys(_attack_of(row) for row in rows if row['suite'] == 'attacks'))
    figure = new_figure((5.2 * len(attacks), 3.8))
    axes = figure.subplots(1, len(attacks), squeeze=False)[0]
    for axis, attack in zip(axes, attacks):
        curves = {key: _points([row for row in rows if evaluated(row) == key], attack) for key in names}
        for key, (color, of_route) in _styles(names).items():
            if curves[key]:
                axis.plot(*zip(*curves[key]), _LINES[of_route], marker='o', markersize=4, color=color, label=names[key],
                          clip_on=False)
        _name_strengths(axis, sorted({strength for points in curves.values() for strength, _ in points}))
        axis.set_xlabel(f'strength of {attack}, in 0–255 pixels', fontsize=_SIZE)
        _finish(axis, 'top-1 (%)')
    _name_styles(figure, axes[0])
    figure.savefig(path)


def _name_strengths(axis: Any, strengths: Sequence[float]) -> None:
    # Without those whose numbers would lie on each other.
    shown = [0.]
    for strength in strengths:
        if strength - shown[-1] >= 0.06 * strengths[-1]:
            shown.append(strength)
    axis.set_xticks(shown, ['clean', *(f'{strength:g}' for strength in shown[1:])])
    axis.set_xlim(left=0)


def _styles(names: Names) -> Dict[Tuple[str, ...], Tuple[str, int]]:
    # A colour for each model, and a number for each route.
    models = list(dict.fromkeys(key[:-1] for key in names))
    return {key: (COLORS[models.index(key[:-1]) % len(COLORS)], _ROUTES.get(key[-1], 2)) for key in names}


def _attack_of(row: Mapping[str, Any]) -> str:
    # `PGD (L2)` for `PGD (L2) 4/255`
    return headline(row).rpartition(' ')[0]  # pyright: ignore[reportOptionalMemberAccess]


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


def _means(rows: Sequence[Results], corruptions: Sequence[str], key: Tuple[str, ...]) -> Dict[str, float]:
    # Of the corruptions whose severities are complete.
    top1: Dict[str, Dict[str, float]] = {name: {} for name in corruptions}
    for row in rows:
        if row['condition'] in top1 and evaluated(row) == key:
            top1[row['condition']][str(row['severity'])] = number(row, 'top1')
    return {name: fmean(values.values()) for name, values in top1.items() if len(values) == len(SEVERITIES)}


def _name_groups(axis: Any, places: Mapping[str, float]) -> None:
    for group, names in GROUPS.items():
        of_group = [places[name] for name in names if name in places]
        if of_group:
            axis.text(fmean(of_group), 1.01, group, transform=axis.get_xaxis_transform(), ha='center', va='bottom',
                      fontsize=_SIZE, color='0.35')


def _finish(axis: Any, label: str) -> None:
    axis.set_ylabel(label, fontsize=_SIZE)
    axis.set_ylim(0, 100)
    axis.tick_params(labelsize=_SIZE)
    axis.grid(axis='y', linewidth=0.4, color='0.85')
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)


def _name_styles(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=_SIZE - 1, frameon=False, handlelength=4, loc='outside upper center',
                  ncols=max(1, min(3, int(figure.get_figwidth() // 2.5))))
