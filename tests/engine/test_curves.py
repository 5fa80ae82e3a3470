"""The picture of a run's curves."""
import pytest

from timm_advprop.engine import curves
from timm_advprop.engine.curves import Curves, draw_curves

ROWS = [dict(epoch='0', train_loss='2.5', eval_top1='10', eval_aux_top1='', lr='.1', aux_mean_distance='0'),
        dict(epoch='1', train_loss='1.5', eval_top1='20', eval_aux_top1='15', lr='.1', aux_mean_distance='0.1')]


@pytest.fixture
def drawn(monkeypatch):
    """Rows of each drawing, a second long."""
    now, drawings = [0.], []

    def draw(path, rows):
        drawings.append(len(rows))
        now[0] += 1
        with open(path, 'w') as file:
            file.write('picture')

    monkeypatch.setattr(curves, 'draw_curves', draw)
    monkeypatch.setattr(curves.time, 'monotonic', lambda: now[0])
    drawings.append(now)
    return drawings


def test_curves_have_the_points_that_are_there(tmp_path, monkeypatch):
    figures, new = [], curves.new_figure

    def new_figure(*args, **kwargs):
        figures.append(new(*args, **kwargs))
        return figures[0]

    monkeypatch.setattr(curves, 'new_figure', new_figure)
    draw_curves(str(tmp_path / 'curves.png'), ROWS)
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata()), line.get_linestyle())
             for axis in figures[0].axes for line in axis.get_lines()}
    assert lines == {
        'train loss': ([0, 1], [2.5, 1.5], '--'), 'eval top1': ([0, 1], [10, 20], '-'),
        'eval aux top1': ([1], [15], '-'), 'aux mean distance': ([0, 1], [0, .1], '-')}


def test_images_have_one_color_in_all_panels_and_one_epoch_has_an_axis_without_fractions(tmp_path, monkeypatch):
    figures, new = [], curves.new_figure
    monkeypatch.setattr(curves, 'new_figure', lambda *args, **kw: figures.append(new(*args, **kw)) or figures[0])
    values = dict(
        train_loss=3, train_clean_loss=1, train_aug_loss=2, train_clean_top1=60, train_aug_top1=50, eval_top1=70)
    draw_curves(str(tmp_path / 'curves.png'), [dict(epoch='7', **values, aux_mean_distance=0)])
    color = {line.get_label(): line.get_color() for axis in figures[0].axes for line in axis.get_lines()}
    assert color['train aug loss'] == color['train aug top1'] != color['train loss']
    assert color['train clean loss'] == color['train clean top1'] == color['eval top1']
    assert [list(axis.get_xticks()) for axis in figures[0].axes] == [[7]] * 3
    assert figures[0].axes[2].get_ylim()[0] == 0


def test_drawing_takes_a_fiftieth_of_the_time_and_the_end_is_drawn(tmp_path, drawn):
    now, picture = drawn.pop(), Curves(str(tmp_path / 'curves.png'))
    for epoch in range(120):
        picture.update(ROWS * (epoch + 1))
        now[0] += 1  # of training
    assert len(drawn) == 3 and now[0] == 123
    picture.update(ROWS * 121, last=True)
    assert drawn[-1] == 242
    assert [path.name for path in tmp_path.iterdir()] == ['curves.png']


def test_a_picture_that_cannot_be_drawn_ends_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(curves, 'draw_curves', lambda path, rows: 1 / 0)
    picture = Curves(str(tmp_path / 'curves.png'))
    picture.update(ROWS)
    picture.update(ROWS, last=True)
    assert caplog.text.count('the run goes on without it: division by zero') == 1 and not list(tmp_path.iterdir())


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    Curves(str(tmp_path / 'curves.png')).update(ROWS, last=True)
    assert not list(tmp_path.iterdir())
