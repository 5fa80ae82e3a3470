"""The command that measures corruptions."""
import re

import pytest
import torch

from timm_advprop.corruptions.severities import ALL_CORRUPTIONS
from timm_advprop.robustness import corruption_speed
from timm_advprop.robustness.corruption_speed import main


def test_too_few_images_are_an_input_error(capsys):
    with pytest.raises(SystemExit) as end:
        main(['--num-images', '4'])
    assert end.value.code == 2
    assert '--num-images must be at least 10, got 4' in capsys.readouterr().err


def test_every_corruption_is_measured_against_reading(capsys, monkeypatch):
    monkeypatch.setattr(corruption_speed, '_SIZES', {28: (28, 28)})
    monkeypatch.setattr(corruption_speed, '_NUM_WORKERS', (1,))
    threads = torch.get_num_threads()
    try:
        main(['--num-images', '10'])
    finally:
        torch.set_num_threads(threads)
    rows = dict(re.findall(r'^\| ([\w ,]+?) \| ([\d.]+) \|', capsys.readouterr().out, flags=re.MULTILINE))
    assert set(rows) == {'reading, sizing, cropping', 'mean of the 19', *ALL_CORRUPTIONS}
    costs = [float(rows[name]) for name in ALL_CORRUPTIONS]
    assert min(costs) > 0 and float(rows['mean of the 19']) == pytest.approx(sum(costs) / 19, abs=2e-3)
