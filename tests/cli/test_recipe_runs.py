"""Every recipe plans a run and makes two updates, with its own settings on few and tiny images."""
import math
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import yaml

from tests.engine.runs import read_summary
from timm_advprop.cli.recipes import find_recipe, recipe_names
from timm_advprop.cli.train import main as train_main

# Networks that are large for a CPU, and the smallest of their family.
SMALLER = {'efficientnet_b[1-8]_ap': 'test_efficientnet_ap', 'resnet1??_ap': 'test_resnet_ap'}
# Networks built for images of one size.
FIXED_SIZE = {'deit_*': ['--model-kwargs', 'img_size=32']}
# 64 images: two updates of three batches, which mixup can halve and Fast AdvProp can divide by 5
TINY = ['--img-size', '32', '--num-classes', '10', '--batch-size', '10', '--grad-accum-steps', '3', '--workers', '0',
        '--device', 'cpu', '--val-split', 'validation', '--aug-repeats', '0']


@pytest.fixture
def tiny(tmp_path, few_digits):
    """The command line of a recipe without downloaded weights, as a function of its name."""
    def flags(name):
        text = Path(find_recipe(name)).read_text()
        path = tmp_path / f'{name}.yaml'
        path.write_text(text.replace('\npretrained: true\n', '\n'))
        model = yaml.safe_load(text)['model']
        smaller = next((small for pattern, small in SMALLER.items() if fnmatch(model, pattern)), model)
        fixed = [flag for pattern, flags in FIXED_SIZE.items() if fnmatch(model, pattern) for flag in flags]
        return ['--config', str(path), '--data-dir', few_digits, '--output', str(tmp_path), '--experiment', 'run',
                '--model', smaller, *TINY, *fixed]
    return flags


@pytest.mark.slow
@pytest.mark.parametrize('name', recipe_names())
def test_a_recipe_makes_two_updates(tiny, tmp_path, capsys, name):
    train_main([*tiny(name), '--dry-run'])  # with all its epochs
    plan = dict(line.split('  ', 1) for line in capsys.readouterr().out.splitlines() if '  ' in line)
    assert ' of 2 updates' in plan['epochs'] and not (tmp_path / 'run').exists()

    train_main([*tiny(name), '--epochs', '1', '--warmup-epochs', '0'])
    row, = read_summary(tmp_path / 'run')
    # not of validation: running statistics of a few batches may be far from those of the last one
    assert all(math.isfinite(float(value)) for name, value in row.items() if name.startswith('train_'))
    state_dict = torch.load(tmp_path / 'run/last.pth.tar', weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in state_dict.values())
