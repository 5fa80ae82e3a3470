"""Pages have what the studies measured, and nothing that nobody measured."""
from pathlib import Path

import pytest

from studies.pages import PAGES, fill_in
from timm_advprop.errors import InputError

ROOT = Path(__file__).parents[2]
_PAGES = sorted(str(page.relative_to(ROOT)) for pattern in PAGES for page in ROOT.glob(pattern))


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize('page', _PAGES)
def test_a_page_has_what_is_in_the_results(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    assert fill_in(text, page) == text, 'python -m studies.pages'


def test_what_stood_there_before_is_replaced():
    begin, end = '<!-- measured: fashion-mnist: joint | advprop-2, blend 0.5 -->', '<!-- /measured -->'
    filled = fill_in(f'Before.\n\n{begin}\n| joint | +99 |\n{end}\nAfter.\n', 'page.md')
    assert '+99' not in filled and filled.startswith(f'Before.\n\n{begin}\n') and filled.endswith(f'{end}\nAfter.\n')
    rows = [line.split(' | ')[0] for line in filled.splitlines() if line.startswith('| ')]
    assert rows[1:] == ['| joint, one norm, eps 2', '| AdvProp, eps 2, 50% of aux blended in']
    assert fill_in(filled, 'page.md') == filled


@pytest.mark.parametrize('row, column, before, after', [
    ('vanilla-long', 'clean', '−9.9 ± 9.9', '+0.9 ± 0.3'),
    ('vanilla-long', 'clean', '9 ± 9', '+1 ± 0'),
    ('fast-advprop', 'clean', '0.00 ± 0', '−0.39 ± 0.24'),
    ('advprop-2', 'clean', '-9.9 ± 9', '0.0 ± 0.3'),
    ('vanilla', 'clean', '9.9', '86.2'),
    ('fast-advprop', 'cost', '9.99', '1.28'),
    ('advprop-2, blend 0.5', 'clean', '9.9', '86.1'),
])
def test_a_figure_in_the_text_is_what_was_measured(row, column, before, after):
    source = f'<!-- fashion-mnist / {row} / {column} -->'
    assert fill_in(f'It gains {before}{source}.', 'page.md') == f'It gains {after}{source}.'


@pytest.mark.parametrize('figure, message', [
    ('1.0<!-- cifar / joint / clean -->', 'page.md wants measurements of cifar, the studies are fashion-mnist,'),
    ('1.0<!-- fashion-mnist / joint-9 / clean -->', "page.md wants row 'joint-9' of fashion-mnist, of which"),
    ('1.0<!-- fashion-mnist / joint / beauty -->', "page.md wants beauty of row 'joint' of fashion-mnist, which"),
    ('+1.0<!-- fashion-mnist / joint / clean -->', 'page.md has a difference without its interval'),
    ('1.0 ± 1<!-- fashion-mnist / joint / cost -->', "page.md wants cost of row 'joint' of fashion-mnist, which"),
    ('+1.0 ± 1<!-- fashion-mnist / joint / pgd8_aux -->', "page.md wants pgd8_aux of row 'joint' of fashion-mnist"),
])
def test_a_figure_that_nobody_measured_is_refused(figure, message):
    with pytest.raises(InputError, match=message):
        fill_in(figure, 'page.md')


@pytest.mark.parametrize('wanted, message', [
    ('cifar: joint', 'page.md wants measurements of cifar, the studies are fashion-mnist,'),
    ('fashion-mnist: joint-9', "page.md wants row 'joint-9' of fashion-mnist, of which"),
])
def test_what_nobody_measured_is_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        fill_in(f'<!-- measured: {wanted} -->\n<!-- /measured -->', 'page.md')


@pytest.mark.parametrize('page', ['README.md', 'docs/what_to_expect.md'])
def test_pictures_are_there(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    pictures = [line.partition('](')[2].rstrip(')') for line in text.splitlines() if line.startswith('![')]
    assert pictures and all(((ROOT / page).parent / picture).is_file() for picture in pictures)
