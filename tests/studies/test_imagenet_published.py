"""Published ImageNet results: the differences, and that the page says what the committed file says."""
import re
from pathlib import Path

import pytest

from studies import imagenet_published
from studies.imagenet_published import COMPARED, TEST_SETS, Gain, draw_gains, gain, page_with_tables, read_models

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / imagenet_published.PAGE).read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def models():
    return read_models(ROOT / imagenet_published.RESULTS)


def rows_under(title):
    """Rows of a table of the page, by their first cells."""
    lines = PAGE.partition(f'### {title}\n')[2].partition('###')[0].splitlines()
    return {line.split(' | ')[0].strip('| '): line for line in lines if line.startswith('|')}


def test_the_page_is_what_the_command_makes_of_the_file(models):
    assert page_with_tables(PAGE, models) == PAGE


def test_the_command_mends_a_page_and_draws(tmp_path, monkeypatch, capsys):
    for path in (imagenet_published.RESULTS, imagenet_published.PAGE):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text((ROOT / path).read_text(encoding='utf-8'), encoding='utf-8')
    page = tmp_path / imagenet_published.PAGE
    page.write_text(PAGE.replace('+9.4 |', '+9.9 |'), encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagenet_published, 'draw_gains', lambda path, models: Path(path).touch())
    imagenet_published.main([])
    assert page.read_text(encoding='utf-8') == PAGE
    assert imagenet_published.PICTURE in capsys.readouterr().out and (tmp_path / imagenet_published.PICTURE).exists()


def test_the_command_runs_in_the_root_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        imagenet_published.main([])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith('error: No results/imagenet_published.csv here: ')


def test_which_weights_there_are(models):
    sizes = {name: [size for size, weights in models if weights == name] for name in ('ap', *COMPARED)}
    assert sizes == dict(ap=[f'B{i}' for i in range(9)], aa=[f'B{i}' for i in range(8)], ra=['B5', 'B7', 'B8'],
                         plain=[f'B{i}' for i in range(6)])


@pytest.mark.parametrize('size, weights, test_set, points', [
    ('B0', 'aa', 'v2', 65.350 - 64.340),
    ('B4', 'aa', 'a', 25.813 - 25.920),
    ('B7', 'aa', 'sketch', 41.459 - 32.068),
    ('B8', 'ra', 'a', 46.533 - 47.987),
    ('B5', 'plain', 'r', 53.943 - 43.660),
])
def test_a_gain_is_advprop_less_the_other(models, size, weights, test_set, points):
    assert gain(models, size, weights, test_set).points == pytest.approx(points)


def test_the_standard_error_is_that_of_two_shares(models):
    difference = gain(models, 'B8', 'ra', 'a')
    first, second = .46533, .47987
    assert difference.error == pytest.approx(
        100 * (first * (1 - first) / 7500 + second * (1 - second) / 7500) ** 0.5)
    assert not difference.is_clear  # 1.5 of 0.8
    assert gain(models, 'B7', 'aa', 'a').is_clear


@pytest.mark.parametrize('points, clear', [(2.1, True), (1.9, False), (-1.9, False), (-2.1, True)])
def test_two_standard_errors_are_clear_either_way(points, clear):
    assert Gain(points, error=1.).is_clear is clear


def test_figures_are_hits_of_so_many_images(models):
    """Of another number of images most of them could not be: that the numbers of images are right."""
    for name, test_set in TEST_SETS.items():
        for model in models.values():
            hits = round(model.top1[name] * test_set.num_images / 100)
            assert 100 * hits / test_set.num_images == pytest.approx(model.top1[name], abs=6e-4, rel=0), (name, model)


def test_tables_show_signs_brackets_and_the_best():
    assert rows_under('AdvProp − AutoAugment')['B4'] == '| B4 | (+0.2) | (+0.4) | (+0.6) | +6.4 | (−0.1) | +6.1 |'
    assert rows_under('AdvProp − RandAugment')['B8'] == '| B8 | (+0.0) | (+0.3) | +1.4 | +3.3 | (−1.5) | +4.7 |'
    assert list(rows_under('AdvProp − plain')) == ['model', '---|---|---|---|---|---|---', *(f'B{i}' for i in range(6))]
    assert '| B8 | AdvProp | 672 | 87.41 | **85.36** | **89.58** | **75.97** | **45.76** | 46.53 | **57.87** |' in PAGE
    assert '| B8 | RandAugment | 672 | 87.41 | 85.34 | 89.33 | 74.55 | 42.42 | **47.99** | 53.16 |' in PAGE


def test_figures_in_the_text_stand_in_the_tables():
    text, _, tables = PAGE.partition(imagenet_published.BEGIN)
    figures = re.findall(r'[+−]\d+\.\d\b|\b\d\d\.\d\d\b', text)
    assert len(figures) > 20
    assert not [figure for figure in figures if not re.search(rf'(?<![\d.]){re.escape(figure)}(?!\d)', tables)]


def test_claims_of_the_text_hold(models):
    def gains(weights, name, sizes):
        return [gain(models, f'B{size}', weights, name) for size in sizes]

    imagenet = gains('aa', 'imagenet', range(8))
    assert all(0.15 < value.points < 0.75 for value in imagenet)
    assert [value.is_clear for value in imagenet] == [False] * 5 + [True] * 3
    for name in ('sketch', 'r'):
        assert all(value.is_clear and value.points > 1.5 for value in gains('aa', name, range(8)))
    assert [value.is_clear for value in gains('aa', 'a', range(8))] == [False, True, False, False, False] + [True] * 3
    assert [value.is_clear for value in gains('aa', 'v2', range(8))] == [False] * 6 + [True] * 2
    assert not any(value.is_clear for value in gains('ra', 'imagenet', (5, 7, 8)))


def test_labels_do_not_lie_on_each_other():
    places = imagenet_published._apart(dict(a=1., b=-2., c=1.1, d=0.9), gap=0.5)
    assert places == pytest.approx(dict(a=1.4, b=-2., c=1.9, d=0.9))


def test_the_picture_is_drawn(models, tmp_path):
    draw_gains(str(tmp_path / 'gain.png'), models)
    assert (tmp_path / 'gain.png').read_bytes().startswith(b'\x89PNG')
