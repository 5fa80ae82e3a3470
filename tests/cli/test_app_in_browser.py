"""The page in a real browser, without a window: what a visitor does, and what is seen then."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.looked_at import TINY

gradio = pytest.importorskip('gradio')
playwright = pytest.importorskip('playwright.sync_api')
BROWSER = '/usr/bin/chromium'
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(not os.path.exists(BROWSER), reason=f'there is no {BROWSER}')]
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope='module')
def served(trained, few_digits):
    command = [sys.executable, '-m', 'timm_advprop.app', 'test_resnet_ap', '--checkpoint',
               str(trained / 'last.pth.tar'), '--data-dir', few_digits, *TINY]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, 'PYTHONUNBUFFERED': '1'}) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            address = re.search(r'http://127\.0\.0\.1:\d+', line)
            if address:
                break
        else:
            pytest.fail(''.join(said))
        yield address[0]
        process.terminate()
        assert 'Traceback' not in process.stdout.read()
    assert process.returncode in (143, -15)


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.requested = []
    page.on('request', lambda request: page.requested.append(request.url))
    page.goto(served)
    page.wait_for_selector('.predictions')
    yield page
    assert {url.split('/')[2] for url in page.requested if url.startswith('http')} == {served.split('/')[2]}
    page.close()


def said(page, route, image):
    return page.inner_text(f'[data-route="{route}"][data-image="{image}"]')


def wait_for_another(page, before, element='#predictions'):
    page.wait_for_function(
        '([element, before]) => !document.querySelector(element).innerText.includes(before)', arg=[element, before])


def upload(page, path):
    page.set_input_files('#upload input[type=file]', str(path))


def test_a_visitor_looks_at_an_example_and_makes_the_attack_stronger(page):
    first = said(page, 'main', 'clean')
    page.click('#examples button >> nth=6')
    wait_for_another(page, first)
    for route in ('main', 'aux'):
        for image in ('clean', 'attacked'):
            assert len(re.findall(r'\d+\.\d%', said(page, route, image))) == 5
    assert all(page.get_attribute(f'#{name} img', 'src') for name in ('clean', 'perturbation', 'attacked'))
    attacked, clean = said(page, 'main', 'attacked'), said(page, 'main', 'clean')
    page.fill('#strength input[type=number]', '24')
    page.press('#strength input[type=number]', 'Enter')
    page.wait_for_selector('text=within 24 px')
    assert said(page, 'main', 'attacked') != attacked
    assert said(page, 'main', 'clean') == clean


def test_a_visitor_attacks_a_blend_towards_a_class(page):
    page.fill('#route input', '0.3')
    page.press('#route input', 'Enter')
    page.wait_for_selector('[data-route="0.3"]')
    page.click('#target input')
    page.click('#target [role=option] >> text="7"')
    page.wait_for_selector('text=towards “7”')
    assert '70% main and 30% auxiliary norm' in page.inner_text('.attack-line')


@pytest.mark.parametrize('kind, message', [
    ('text', 'x.png is not an image that can be read'), ('tiny', 'x.png is too small, 1 × 1 pixels')])
def test_what_is_no_image_is_a_message_and_the_page_goes_on(page, tmp_path, kind, message):
    if kind == 'text':
        (tmp_path / 'x.png').write_text('hello')
    else:
        Image.new('RGB', (1, 1)).save(tmp_path / 'x.png')
    upload(page, tmp_path / 'x.png')
    page.wait_for_selector(f'.message >> text={message}')
    page.wait_for_selector(f'[data-testid=toast-body] >> text={message}')
    Image.new('RGB', (40, 30), (200, 0, 0)).save(tmp_path / 'y.png')
    page.click('#upload [aria-label="Remove Image"]')
    page.wait_for_selector('.message >> text=Choose an image')
    upload(page, tmp_path / 'y.png')
    page.wait_for_selector('.predictions')
