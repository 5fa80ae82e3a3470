"""The overview, tables by severity, and pictures."""
import sys

import pytest
from PIL import Image

from tests.robustness.test_summary import corrupted, row
from timm_advprop.engine.figures import new_figure
from timm_advprop.regimes import Attack
from timm_advprop.robustness import charts
from timm_advprop.robustness.charts import draw_attacks, draw_corruptions
from timm_advprop.robustness.report import names_of_evaluated, overview, write_report
from timm_advprop.robustness.summary import newest, summary_rows


def rows_of_a_run():
    rows = [row('clean', top1=90.04), row('clean', top1=88., route='aux'), *corrupted(),
            row('attacks', 'pgd', '2.0', top1=60.), row('attacks', 'pgd', '8.0', top1=30.),
            row('attacks', 'pgd', '2.0', top1=70., route='aux')]
    return rows + summary_rows(rows)


def table_of(text):
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:1] == '|']
    return lines[0], {line[0]: line[1:] for line in lines[2:]}


def test_an_overview_has_a_row_for_each_model_and_route_and_a_column_for_each_kind_of_images():
    head, rows = table_of(overview(rows_of_a_run()))
    assert head == ['top-1 (%)', 'clean', 'corruptions', 'noise', 'blur', 'weather', 'digital', 'extra', 'PGD 2/255',
                    'PGD 8/255']
    assert rows == {'m': ['90.0', '70.0', *['70.0'] * 5, '60.0', '30.0'],
                    'm, aux': ['88.0', *['–'] * 6, '70.0', '–']}


def test_an_overview_says_what_corruptions_are_and_are_not():
    text = overview(rows_of_a_run())
    assert 'are not its files' in text and 'on the fly' in text
    assert 'AutoAttack' not in text and 'mCE' not in text
    assert overview([row('clean')]).splitlines() == ['| top-1 (%) | clean |', '|---|---|', '| m | 50.0 |']


def test_an_overview_says_what_was_measured():
    of_split = dict(dataset='digits', split='validation', num_images='40')
    rows = [row('clean', **of_split), row('imagenet-a', dataset='imagenet-a', split='', num_images=1)]
    attacks = [Attack(eps_px=eps, steps=steps, target='none') for eps, steps in ((2., 20), (4., 20), (1., 1))]
    rows += [row('attacks', 'pgd', each.eps_px, **of_split, adv_attack=each.describe()) for each in attacks]
    rows += [row('attacks', 'ifgsm', 64., adv_attack=Attack(
        kind='ifgsm', eps_px=64, alpha_px=16, steps=5, norm='l2').describe())]
    notes = overview(rows).splitlines()[-1]
    assert notes.startswith(
        '40 images of split validation of digits. 1 image of imagenet-a. PGD 2/255, PGD 4/255: 20 steps of 1/255, '
        'untargeted. PGD 1/255: 1 step of 1/255, untargeted. IFGSM (L2) 64/255: 5 steps of 16/255, random target.')


def test_an_overview_says_where_numbers_of_images_differ():
    rows = [row('clean', num_images='359'), row('imagenet-a', num_images='7500')]
    assert 'differ' not in overview(rows)
    assert '(clean: 359; autoattack: 20)' in overview([*rows, row('autoattack', 'total', 8, num_images=20)])


def test_an_overview_has_the_normalised_error_of_imagenet_classes():
    rows = corrupted(imagenet_classes=True)
    text = overview(rows + summary_rows(rows))
    head, table = table_of(text)
    assert head[-1] == 'corruptions mCE' and table['m'][-1] == f'{summary_rows(rows)[0]["mce"]:.1f}'
    assert 'AlexNet' in text


@pytest.mark.parametrize('evaluated, names', [
    ([('a', '', 'main'), ('b', '', '2')], ['a', 'b, 2']),
    ([('a', '/x/vanilla/last.pth', 'main'), ('a', '/x/advprop/last.pth', 'aux')], ['a vanilla', 'a advprop, aux']),
    ([('a', '/x/1/best/last.pth', 'main'), ('a', '/y/1/best/last.pth', 'main')], ['a x', 'a y']),
    ([('a', 'one.pth', 'main'), ('a', 'two.pth', 'main')], ['a one.pth', 'a two.pth']),
    ([('a', '/x/last.pth', 'main'), ('a', '/x/last.pth', 'aux')], ['a x', 'a x, aux']),
    ([('a', '/x/checkpoint-12.pth.tar', 'main')], ['a x']),
    ([('a', '/x/net.pth', 'main')], ['a net.pth']), ([('a', './last.pth', 'main')], ['a last.pth']),
    ([('a', '/1/x/last.pth', 'main'), ('a', '/2/y/model_best.pth', 'main')], ['a x', 'a y']),
    ([('a', '/x/last.pth', 'main'), ('a', '/x/model_best.pth', 'main')], ['a last.pth', 'a model_best.pth']),
    ([('local-dir:/home/me/net', '', 'main')], ['net']),
    ([('local-dir:/home/me/net', '', 'main'), ('hf-hub:you/net', '', 'main')], ['me/net', 'hf-hub:you/net']),
    ([('a', '', 'main'), ('a', '/x/last.pth', 'main')], ['a', 'a x']),
    ([('a', 'x/last.pth', 'main'), ('a', './x/last.pth', 'main')], ['a x', 'a x']),
    ([('a', 'last.pth', 'main'), ('a', 'x/last.pth', 'main')], ['a last.pth', 'a x']),
], ids=str)
def test_names_are_short_and_differ(evaluated, names):
    rows = [dict(zip(('model', 'checkpoint', 'route'), each)) for each in evaluated]
    assert list(names_of_evaluated(rows).values()) == names


def test_tables_and_pictures_lie_beside_the_results(tmp_path):
    said = write_report(rows_of_a_run(), str(tmp_path / 'r.csv'))
    assert {file.name for file in tmp_path.iterdir()} == {'r.md', 'r_corruptions.png', 'r_attacks.png'}
    text = (tmp_path / 'r.md').read_text()
    assert text.startswith('# Robustness\n\n| top-1')
    assert '## corruptions: m\n' in text and '| fog | 90.0 | 80.0 | 70.0 | 60.0 | 50.0 | 70.0 |' in text
    assert '## corruptions: m, aux' not in text and 'mean |' in text
    assert 'r.md' in said and '| m, aux | 88.0 |' in said
    for name in ('r_corruptions.png', 'r_attacks.png'):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 500 and len(picture.convert('RGB').resize((64, 64)).getcolors(4096)) > 20


def test_a_run_goes_without_pictures_where_matplotlib_is_missing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    said = write_report(rows_of_a_run(), str(tmp_path / 'r.csv'))
    assert {file.name for file in tmp_path.iterdir()} == {'r.md'} and '.png' not in said
    assert 'Pictures are left out' in caplog.text


def test_each_attack_has_a_curve_of_its_own(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(charts, 'new_figure', lambda size: figures.append(new_figure(size)) or figures[-1])
    rows = [row('clean', top1=90.), row('attacks', 'pgd', '8.0', top1=30.), row('attacks', 'pgd', '2.0', top1=60.),
            row('attacks', 'pgd', '8.0', top1=80., adv_attack='PGD-1 (L2), eps 8/255'), row('clean', route='aux')]
    draw_attacks(str(tmp_path / 'a.png'), rows, names_of_evaluated(rows))
    panels = [(axis.get_xlabel(), {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()})
              for axis in figures[0].axes]
    assert panels == [('strength of PGD, in 0–255 pixels', {'m': [[0, 90], [2, 60], [8, 30]]}),
                      ('strength of PGD (L2), in 0–255 pixels', {'m': [[0, 90], [8, 80]]})]
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == ['clean', '2', '8']


def test_bars_are_of_models_and_corruptions_that_are_complete(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(charts, 'new_figure', lambda size: figures.append(new_figure(size)) or figures[-1])
    rows = [row('clean'), row('clean', route='aux'), row('attacks', 'pgd', '8.0', route='2'),
            *corrupted(['fog', 'snow']), row('corruptions', 'fog', '1', route='aux')]
    rows.remove(next(each for each in rows if each['condition'] == 'snow'))
    names = names_of_evaluated(rows)
    draw_corruptions(str(tmp_path / 'c.png'), [each for each in rows if each['suite'] != 'attacks'], names)
    axis, = figures[0].axes
    assert [bar.get_height() for bars in axis.containers for bar in bars] == [70.]
    assert [label.get_text() for label in axis.get_xticklabels()] == ['fog']


def test_clean_accuracy_is_that_on_the_most_images():
    rows = [row('clean', top1=99., num_images='359'), row('clean', top1=100., num_images='10'),
            row('autoattack', 'total', 8, num_images='10')]
    head, table = table_of(overview(newest(rows)))
    assert head[1:] == ['clean', 'AutoAttack 8/255'] and table['m'] == ['99.0', '50.0']


def test_columns_have_an_order_of_their_own():
    rows = [*reversed(rows_of_a_run()), row('imagenet-a'), row('attacks', 'pgd', '16.0'), row('autoattack', 'total', 8)]
    head, _ = table_of(overview(rows))
    assert head == ['top-1 (%)', 'clean', 'corruptions', 'noise', 'blur', 'weather', 'digital', 'extra', 'imagenet-a',
                    'PGD 2/255', 'PGD 8/255', 'PGD 16/255', 'AutoAttack 8/255']
