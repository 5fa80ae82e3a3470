"""The curve of a model's blends: its points, its table, its picture."""
import sys

import pytest
from PIL import Image

from tests.robustness.suite_runs import read_rows, run_suites, train_digits
from tests.robustness.test_summary import corrupted, row
from timm_advprop.engine.figures import new_figure
from timm_advprop.robustness import blend_chart, evaluate_suites, report
from timm_advprop.robustness.blend_chart import blends_in, draw_blends, rows_of_blends
from timm_advprop.robustness.report import names_of_evaluated, write_report
from timm_advprop.robustness.summary import summary_rows

TOP1 = {'aux': (80., 60.), '0.25': (88., 40.), 'main': (90., 30.), '0.5': (85., 50.)}  # clean, attacked


def rows_of_a_curve(routes=TOP1, **values):
    rows = []
    for route in routes:
        clean, attacked = TOP1[route]
        rows += [row('clean', top1=clean, route=route), row('attacks', 'pgd', '2.0', attacked, route=route),
                 row('attacks', 'pgd', '8.0', attacked / 2, route=route),
                 *corrupted(error=lambda *_, accuracy=clean / 2: 100 - accuracy, route=route)]
    return [dict(each, **values) for each in rows + summary_rows(rows)]


def test_points_rise_by_weight_and_have_every_kind_of_images():
    rows = [*rows_of_a_curve(), row('clean', top1=70., route='2'), row('attacks', 'pgd', '2.0', route='2')]
    curve = blends_in(rows)['m', '']
    assert [(blend.route, blend.weight) for blend in curve] == [('main', 0), ('0.25', .25), ('0.5', .5), ('aux', 1)]
    assert curve[1].top1 == {'clean': 88., 'PGD 2/255': 40., 'PGD 8/255': 20., 'corruptions': 44.}


@pytest.mark.parametrize('routes', [('main', 'aux'), ('main', '0.5'), ('0.25', '0.5'), ()])
def test_few_points_or_no_blend_are_no_curve(routes):
    assert not blends_in(rows_of_a_curve(routes))


def test_routes_that_are_no_blends_are_no_curve():
    rows = [each for route in ('main', 'aux', '2', '3') for each in (row('clean', route=route), row(
        'attacks', 'pgd', '2.0', route=route))]
    assert not blends_in(rows)


def test_routes_of_different_models_are_no_curve():
    rows = [*rows_of_a_curve(('main', '0.5')), *rows_of_a_curve(('aux',), model='other')]
    assert not blends_in(rows)
    assert blends_in([*rows, *rows_of_a_curve(model='third')]).keys() == {('third', '')}


def test_a_route_without_clean_images_or_others_has_no_point():
    rows = [each for each in rows_of_a_curve() if each['route'] != '0.25' or each['suite'] != 'clean']
    assert [blend.route for blend in blends_in(rows)['m', '']] == ['main', '0.5', 'aux']


def test_points_that_share_no_images_but_clean_ones_are_no_curve():
    rows = [each for route, eps in (('main', '8.0'), ('0.5', '4.0'), ('aux', '8.0')) for each in (
        row('clean', route=route), row('attacks', 'pgd', eps, route=route))]
    assert not blends_in(rows)


def test_the_table_has_a_row_for_each_point():
    rows = rows_of_blends(blends_in(rows_of_a_curve(('main', '0.5', 'aux'))))
    assert [each['route'] for each in rows] == ['main', '0.5', 'aux']
    assert rows[1] == {'model': 'm', 'checkpoint': '', 'route': '0.5', 'weight': .5, 'clean top1': 85.,
                       'PGD 2/255 top1': 50., 'PGD 8/255 top1': 25., 'corruptions top1': 42.5}


@pytest.fixture
def axes_of(tmp_path, monkeypatch):
    """A function that draws the blends of rows, and returns the axes."""
    figures = []
    monkeypatch.setattr(blend_chart, 'new_figure', lambda size: figures.append(new_figure(size)) or figures[-1])

    def draw(rows):
        draw_blends(str(tmp_path / 'b.png'), blends_in(rows), names_of_evaluated(rows))
        return figures[-1].axes
    return draw


def test_the_picture_has_a_panel_for_each_kind_and_a_line_for_each_strength(axes_of):
    rows = rows_of_a_curve(('main', '0.5', 'aux'))
    attacks, corruptions = axes_of(rows)
    lines = {line.get_label(): line.get_xydata().tolist() for line in attacks.get_lines()}
    assert lines == {'PGD 2/255': [[90, 30], [85, 50], [80, 60]], 'PGD 8/255': [[90, 15], [85, 25], [80, 30]]}
    assert [line.get_xydata().tolist() for line in corruptions.get_lines()] == [[[90, 45], [85, 42.5], [80, 40]]]
    assert [text.get_text() for text in corruptions.texts] == ['main', '0.5', 'aux']


def test_a_model_without_a_kind_of_images_has_an_empty_place(axes_of):
    other = [each for each in rows_of_a_curve(('main', '0.5', 'aux'), model='other') if each['suite'] != 'corruptions']
    axes = axes_of([*rows_of_a_curve(('main', '0.5', 'aux')), *other])
    assert [axis.axison for axis in axes] == [True, True, True, False]


def test_points_that_lie_on_each_other_share_a_label(axes_of):
    rows = [each for route, top1 in (('main', 50.), ('0.5', 60.), ('aux', 60.1)) for each in (
        row('clean', top1=90., route=route), row('attacks', 'pgd', '2.0', top1, route=route))]
    axis, = axes_of(rows)
    assert [text.get_text() for text in axis.texts] == ['main', '0.5, aux']
    assert axis.get_xlim() == (88., 92.)  # no range that a few images fill


def test_axes_have_no_accuracy_beyond_100_or_below_0(axes_of):
    rows = [each for route, top1 in (('main', 0.), ('0.5', 60.), ('aux', 100.)) for each in (
        row('clean', top1=99.5, route=route), row('attacks', 'pgd', '2.0', top1, route=route))]
    axis, = axes_of(rows)
    assert axis.get_xlim() == (97.5, 100.) and axis.get_ylim() == (0., 100.)


def test_blends_of_a_curve_are_in_no_other_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, 'draw_attacks', lambda path, rows, names: drawn.append({r['route'] for r in rows}))
    monkeypatch.setattr(report, 'draw_corruptions', lambda *args: None)
    write_report(rows_of_a_curve(), str(tmp_path / 'r.csv'))
    write_report(rows_of_a_curve(('main', '0.5')), str(tmp_path / 'r.csv'))  # which are no curve
    assert drawn == [{'main', 'aux'}, {'main', '0.5'}]


def test_table_and_picture_lie_beside_the_results(tmp_path):
    said = write_report(rows_of_a_curve(), str(tmp_path / 'r.csv'))
    assert 'r_blend.csv' in said and 'r_blend.png' in said
    assert [each['weight'] for each in read_rows(tmp_path / 'r_blend.csv')] == ['0.0', '0.25', '0.5', '1.0']
    with Image.open(tmp_path / 'r_blend.png') as picture:
        assert picture.size[0] > 500


def test_without_matplotlib_the_table_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    said = write_report(rows_of_a_curve(), str(tmp_path / 'r.csv'))
    assert {file.name for file in tmp_path.iterdir()} == {'r.md', 'r_blend.csv'} and '.png' not in said


def test_blends_are_measured_once_and_never_taken_for_each_other(few_digits, tmp_path, monkeypatch, one_thread):
    checkpoint, path = train_digits(few_digits, tmp_path / 'last.pth', steps=5), tmp_path / 'r.csv'
    flags = ['--suite', 'attacks', '--adv-steps', '1', '--adv-eps', '8', '--num-samples', '20']
    measured = []
    complete = evaluate_suites.complete_rows
    monkeypatch.setattr(evaluate_suites, 'complete_rows', lambda tested, cell, rows: (
        measured.append(tested.settings.model.route) or complete(tested, cell, rows)))
    rows = run_suites(few_digits, checkpoint, path, '--route', '0', '0.5', '1', *flags)
    assert measured == [route for route in ('main', '0.5', 'aux') for _ in range(2)]
    assert len({each['weights'] for each in rows}) == 3 and len({each['cell'] for each in rows}) == 6
    measured.clear()
    run_suites(few_digits, checkpoint, path, '--route', '0', '.50', '0.25', *flags)
    assert measured == ['0.25'] * 2
    run_suites(few_digits, checkpoint, path, '--route', '0.5', '--recalibrate', '20', *flags)
    run_suites(few_digits, checkpoint, path, '--route', '0.5', '--recalibrate', '20', *flags)
    assert measured == ['0.25'] * 2 + ['0.5'] * 2
    assert [each['route'] for each in read_rows(tmp_path / 'r_blend.csv')] == ['main', '0.25', '0.5', 'aux']
    assert {each['recalibrated'] for each in read_rows(path) if each['route'] == '0.5'} == {
        '', '20 images of split train of ' + few_digits.rpartition('/')[2]}
