"""Links between pages, and from pages to files, lead somewhere."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')])
_CODE = re.compile(r'^```.*?^```', re.DOTALL | re.MULTILINE)
_LINK = re.compile(r'\]\(([^)\s]+)\)')


def links_of(page):
    links = _LINK.findall(_CODE.sub('', page.read_text(encoding='utf-8')))
    return [link for link in links if '://' not in link]


def anchors_of(page):
    # as the repository's page and the site name them
    headings = re.findall(r'^#+ (.*)$', _CODE.sub('', page.read_text(encoding='utf-8')), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    for link in links_of(page):
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors_of(target), link


def test_every_page_is_in_the_site():
    site = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8')
    assert [page.name for page in PAGES if 'docs' in page.parts
            and f' {page.relative_to(ROOT / "docs")}\n' not in f'{site}\n'] == []


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 110
