"""What the tests of the programs share: short runs on few real digits."""
import json
from pathlib import Path

from timm_advprop.cli.train import main as train_main
from timm_advprop.cli.validate import main as validate_main

ROOT = Path(__file__).parents[2]
MODEL = ['--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32', '--workers', '0', '--device', 'cpu']
FAST = [*MODEL, '--batch-size', '16', '--epochs', '1', '--warmup-epochs', '0', '--lr', '0.05', '--adv-eps', '1',
        '--log-interval', '100']
WITHOUT_ATTACK = FAST[:FAST.index('--adv-eps')] + FAST[FAST.index('--adv-eps') + 2:]


def run_train(data, output, *flags, common=FAST):
    train_main(['--data-dir', data, '--output', str(output), '--experiment', 'run', *common, *flags])
    return Path(output, 'run')


def run_validate(data, capsys, *flags):
    capsys.readouterr()
    validate_main(['--data-dir', data, *MODEL, *flags])
    return json.loads(capsys.readouterr().out.split('--result\n')[1])
