"""A new suite is a function that makes its cells, and a line."""
import pytest
from PIL import ImageOps

from tests.robustness.suite_runs import run_suites, train_digits
from timm_advprop.engine.validation import measure
from timm_advprop.robustness.cells import Cell
from timm_advprop.robustness.suites import SUITES, Suite

pytestmark = pytest.mark.usefixtures('one_thread')


def negative_cells(settings, folder):
    return [Cell('negatives', lambda tested: [measure(tested, settings.data, on_pixels=ImageOps.invert)], 'inverted'),
            Cell('negatives', lambda tested: [measure(tested, settings.data)], 'as they are')]


def test_a_new_suite_is_evaluated_through_the_program(monkeypatch, few_digits, tmp_path):
    monkeypatch.setitem(SUITES, 'negatives', Suite(negative_cells))
    checkpoint = train_digits(few_digits, tmp_path / 'model.pth', steps=10)
    rows = run_suites(few_digits, checkpoint, tmp_path / 'results.csv', '--suite', 'negatives')
    of = {(row['suite'], row['condition']): (row['top1'], row['top5']) for row in rows}
    assert of['clean', ''] == of['negatives', 'as they are'] != of['negatives', 'inverted']
    assert 'negatives' in (tmp_path / 'results.md').read_text()
