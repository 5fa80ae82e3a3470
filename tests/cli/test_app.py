"""The flags of the page program, and the page without a browser."""
import importlib.util
import os
import socket
import subprocess
import sys

import pytest
from PIL import Image

from tests.cli.looked_at import TINY, looked_at, plain_folder
from timm_advprop.cli import app
from timm_advprop.errors import InputError

needs_gradio = pytest.mark.skipif(importlib.util.find_spec('gradio') is None, reason='gradio is not installed')


def test_flags_are_those_of_an_evaluation_and_of_the_page():
    settings = app.parse_args(['test_resnet_ap', '--checkpoint', 'c.pth', '--img-size', '32', '--data-dir', 'data'])
    assert (settings.model.model, settings.model.checkpoint) == ('test_resnet_ap', 'c.pth')
    assert (settings.image.img_size, settings.data.data_dir, settings.data.split) == (32, 'data', 'validation')
    assert (settings.page.host, settings.page.port) == ('127.0.0.1', None)
    settings = app.parse_args(['hf-hub:user/name', '--host', '0.0.0.0', '--port', '7000'])
    assert (settings.model.model, settings.page.host, settings.page.port) == ('hf-hub:user/name', '0.0.0.0', 7000)


def test_every_flag_that_is_offered_is_one_of_an_evaluation():
    offered = {flag for _, flags in app.AppSettings.flags() for flag in flags}
    assert {*app._FLAGS, '--host', '--port'} == offered


def test_the_published_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match='Give a model, such as hf-hub:user/name'):
        app.parse_args([])
    os.makedirs(app._PUBLISHED)
    assert app.parse_args([]).model.model == f'local-dir:{app._PUBLISHED}'


@pytest.mark.parametrize('flags, line', [
    (['m', '--port', '0'], 'error: argument --port: must be from 1 to 65535, got 0'),
    (['m', '--route', 'aux'], 'error: unknown argument --route'),
    (['m', '--chekpoint', 'c'], 'error: unknown argument --chekpoint (did you mean --checkpoint?)'),
    (['m', '--std', '0'], 'error: argument --std: must be above 0, got 0.0'),
])
def test_bad_flags_are_one_line_and_status_2(flags, line, capsys):
    with pytest.raises(SystemExit) as exit:
        app.main(flags)
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith(line)


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(SystemExit) as exit:
        app.main(['test_resnet'])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: The page needs gradio: pip install 'timm-advprop[app]'.\n"


@pytest.mark.parametrize('host, taken', [('127.0.0.1', True), ('203.0.113.9', False)])
def test_an_address_that_is_taken_or_none_is_one_line_before_a_model_is_opened(host, taken, monkeypatch, capsys):
    monkeypatch.setattr(app, '_open_page', lambda settings: pytest.fail('the model was opened'))
    with socket.create_server(('127.0.0.1', 0)) as server, pytest.raises(SystemExit) as exit:
        port = server.getsockname()[1] if taken else 1234
        app.main(['test_resnet', '--host', host, '--port', str(port)])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith(f'error: Cannot listen on {host}:{port} (--host, --port): ')


@pytest.mark.parametrize('settings, said', [
    (dict(chekpoint='c'), "Unknown setting 'chekpoint' (did you mean checkpoint?)."),
    (dict(std=[0]), 'std must be above 0, got [0].')])
def test_a_space_with_a_wrong_setting_is_told(settings, said):
    with pytest.raises(InputError) as error:
        app.create_app('test_resnet', **settings)
    assert str(error.value) == said


@pytest.fixture(scope='module')
def update(tmp_path_factory):
    pytest.importorskip('gradio')
    from timm_advprop.cli import app_page
    folder = tmp_path_factory.mktemp('page')
    Image.new('L', (20, 20), 90).save(folder / 'image.png')
    (folder / 'text.png').write_text('hello')
    model = looked_at(plain_folder(folder / 'model'), *TINY)
    return lambda name, *values: app_page._update(model, name and dict(path=str(folder / name)), *values)


@needs_gradio
def test_an_update_has_three_pictures_and_a_table(update):
    clean, perturbation, attacked, table = update('image.png', 8, 2, 'none', 'main')
    assert [picture['value'].size for picture in (clean, perturbation, attacked)] == [(32, 32)] * 3
    assert perturbation['label'] == 'Perturbation × 12.5'
    assert '2 steps of 8 px within 8 px, through the main norms, away from' in table


@needs_gradio
@pytest.mark.parametrize('values, said', [
    ((None, 4, 5, 'none', 'main'), 'Choose an image'),
    (('text.png', 4, 5, 'none', 'main'), 'text.png is not an image'),
    (('image.png', 4, 5, 'none', 'nope'), 'route must be main, aux'),
    (('image.png', 4, 5, 'none', 'aux'), 'no split norms'),
    (('image.png', None, 5, 'none', 'main'), 'eps_px must be given'),
    (('image.png', 400, 5, 'none', 'main'), 'eps_px must be from 0 to 32'),
    (('image.png', 4, 5, '10', 'main'), 'There is no class 10'),
], ids=str)
def test_what_cannot_be_shown_is_a_message_without_pictures(update, values, said):
    *pictures, table = update(*values)
    assert pictures == [None] * 3
    assert said in table and 'class="message"' in table


@needs_gradio
def test_a_file_of_the_machine_that_nobody_uploaded_is_not_read(tmp_path, monkeypatch):
    import gradio

    from timm_advprop.cli import app_page
    uploads = tmp_path / 'uploads'
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(uploads))
    page = app_page.build_page(looked_at(plain_folder(tmp_path / 'model'), *TINY))
    (attack,) = (function.fn for function in page.fns.values() if function.api_name == 'attack')
    for folder in (uploads, tmp_path):
        folder.mkdir(exist_ok=True)
        Image.new('L', (20, 20), 90).save(folder / 'image.png')
    assert 'away from' in attack(dict(path=str(uploads / 'image.png')), 4, 5, 'none', 'main')[3]
    for path in (tmp_path / 'image.png', uploads / '../image.png', tmp_path / 'nowhere.png'):
        with pytest.raises(gradio.Error, match='cannot be accessed'):
            attack(dict(path=str(path)), 4, 5, 'none', 'main')


@pytest.mark.slow
@needs_gradio
def test_a_space_is_three_lines_and_nothing_is_sent(tmp_path):
    """The page is served, and no connection leaves the machine, nor is a name looked up."""
    script = f'''
import socket
def guarded(kept, place):
    def call(*args):
        assert str(args[place][0] if isinstance(args[place], tuple) else args[place]) in (
            '127.0.0.1', 'localhost', '::1', '0.0.0.0', 'None'), args
        return kept(*args)
    return call
socket.socket.connect = guarded(socket.socket.connect, 1)
kept = socket.getaddrinfo
socket.getaddrinfo = lambda host, *args, **kwargs: guarded(lambda *_: kept(host, *args, **kwargs), 0)(host)
from timm_advprop.app import create_app
app = create_app({plain_folder(tmp_path)!r}, img_size=32)
_, url, share = app.launch(prevent_thread_lock=True)
import httpx
print(httpx.get(url).status_code, share, url.split(':')[1])
'''
    ran = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert '200 None //127.0.0.1' in ran.stdout, ran.stderr
    assert 'Error' not in ran.stderr
