"""Pages have the tables that the studies wrote."""
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _tables(path):
    # Each as its lines.
    text = (ROOT / path).read_text(encoding='utf-8')
    return [block.splitlines() for block in text.split('\n\n') if block.startswith('|')]


def test_the_page_has_the_claims_of_the_results():
    claims = [table for table in _tables('results/fashion_mnist.md') if table[0].startswith('| claim')]
    assert len(claims) == 1 and [line.rstrip() for line in claims[0]] in _tables('docs/what_to_expect.md')


@pytest.mark.parametrize('page', ['README.md', 'docs/what_to_expect.md'])
def test_pictures_are_there(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    pictures = [line.partition('](')[2].rstrip(')') for line in text.splitlines() if line.startswith('![')]
    assert pictures and all(((ROOT / page).parent / picture).is_file() for picture in pictures)
