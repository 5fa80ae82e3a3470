"""Rates and weight decays of the studies are the best ones on held-out images."""
from pathlib import Path
from statistics import fmean

import pytest

from studies import fashion_mnist, solar_cells
from studies.comparison.differences import values_of
from studies.comparison.job import study_jobs
from studies.comparison.program import STUDIES
from studies.comparison.rows import rows_of_rates
from studies.comparison.table import Table

ROOT = Path(__file__).parents[2]
_FASHION, _SOLAR, _TUNED = fashion_mnist._RATES, solar_cells._SCRATCH, solar_cells._TUNING


@pytest.mark.parametrize('name, row, chosen', [
    ('fashion-mnist-choice', 'vanilla', _FASHION.one_loss),
    ('fashion-mnist-choice', 'advprop', _FASHION.summed),
    ('solar-cells-choice', 'vanilla', _SOLAR.one_loss),
    ('solar-cells-choice', 'advprop', _SOLAR.summed),
    ('solar-cells-choice', 'tuned-vanilla', _TUNED.one_loss),
    ('solar-cells-choice', 'tuned-advprop', _TUNED.summed),
])
def test_rates_are_the_best_on_held_out_images(monkeypatch, name, row, chosen):
    monkeypatch.chdir(ROOT)
    study = STUDIES[name]
    results = Table(f'results/{study.file_name}.csv').results(study_jobs(study))
    means = {tried: fmean(values_of(results, tried, 'clean').values()) for tried in study.rows
             if tried.startswith(f'{row}-lr')}
    assert all(len(values_of(results, tried, 'clean')) == len(study.seeds) for tried in means)
    best, = rows_of_rates(row, study.rows[max(means, key=means.get)], [chosen])
    assert max(means, key=means.get) == best, means
