"""docs/beyond.md has the tables that the study printed."""
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_tables_of_the_results():
    page = (ROOT / 'docs' / 'beyond.md').read_text()
    results = (ROOT / 'results' / 'fashion_mnist_beyond.md').read_text()
    assert [line for line in page.splitlines() if line.startswith('|')] == [
        line for line in results.splitlines() if line.startswith('|')]
    assert all(text in ' '.join(page.split()) for text in results.splitlines() if text and not text.startswith('|'))
