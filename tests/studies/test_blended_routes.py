"""The study of blends: its table, and that the page says what the committed file says."""
import csv
from pathlib import Path

import pytest

from studies import blended_routes
from studies.blended_routes import Measured, main, render_table
from timm_advprop.cli.train import main as train

ROOT = Path(__file__).parents[2]


def read_measured(path):
    with open(path, newline='', encoding='utf-8') as file:
        return [Measured(**{**row, 'weight': float(row['weight']), 'top1': float(row['top1'])})
                for row in csv.DictReader(file)]


def test_the_page_has_the_table_of_the_committed_file():
    measured = read_measured(ROOT / f'{blended_routes.RESULTS}.csv')
    assert render_table(measured) in (ROOT / 'docs/methods/blended_routes.md').read_text(encoding='utf-8')
    assert (ROOT / f'{blended_routes.RESULTS}.png').is_file()


def test_means_and_standard_errors_are_over_runs_and_differences_in_pairs():
    values = {('a', 'mixed'): 80., ('b', 'mixed'): 90., ('a', 'recalibrated'): 81., ('b', 'recalibrated'): 93.}
    lines = render_table([Measured(run, .5, statistics, 'clean', top1)
                          for (run, statistics), top1 in values.items()]).splitlines()
    assert [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]] == [
        ['0.5', 'mixed', '85.0 ± 5.0'], ['0.5', 'recalibrated', '87.0 ± 6.0'], ['0.5', 'difference', '+2.0 ± 1.0']]


@pytest.mark.slow
def test_the_study_measures_each_blend_of_each_run(few_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blended_routes, 'WEIGHTS', (0., .5, 1.))
    monkeypatch.setattr(blended_routes, 'NUM_RECALIBRATION', 50)
    monkeypatch.setattr(blended_routes, 'SPLIT', 'train')
    train(['--data-dir', few_digits, '--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32',
           '--workers', '0', '--device', 'cpu', '--batch-size', '16', '--epochs', '1', '--warmup-epochs', '0',
           '--output', str(tmp_path), '--experiment', 'run'])
    main([few_digits, '--results', str(tmp_path / 'found'), str(tmp_path / 'run' / 'last.pth.tar')])
    measured = read_measured(tmp_path / 'found.csv')
    assert len(measured) == 3 * 2 * 3 and (tmp_path / 'found.png').is_file()
    assert render_table(measured) in capsys.readouterr().out
