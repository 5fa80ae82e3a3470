"""The demonstration, `make demo`: a vanilla and an AdvProp model on scikit-learn's digits, compared.

Run it in the repository's root: `python -m timm_advprop.demo`. It trains through `train.py` and a recipe of `hparams/`
and evaluates through `validate.py`, as a user would.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Sequence

import torch
from timm.data import create_dataset, create_transform

from .checkpoints import load_checkpoint
from .data import write_digits
from .errors import InputError, exits_on_input_error
from .evaluation.pictures import draw_attack
from .inputs import open_model
from .regimes import Adversary

__all__ = ['main']

RECIPE = 'hparams/test_resnet_ap_digits.yaml'
MODEL = ['--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32', '--crop-pct', '1.0']
EPS, ALPHA, STEPS = 8, 2, 10
NUM_PICTURES = 8


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the demonstration.

    Args:
        argv: Command line, `sys.argv[1:]` by default.
    """
    parser = argparse.ArgumentParser(description='Compare vanilla and AdvProp training on digits.')
    parser.add_argument('--output', default='output/demo', metavar='DIR', help='folder (default: output/demo)')
    args = parser.parse_args(argv)
    for path in ('train.py', 'validate.py', RECIPE):
        if not os.path.isfile(path):
            raise InputError(f'No {path} here: run the demonstration in the root of the repository.')
    start = time.monotonic()
    data = os.path.join(args.output, 'digits')
    os.makedirs(args.output, exist_ok=True)
    write_digits(data)
    jobs = _Jobs(args.output, total=5)
    for regime in ('vanilla', 'advprop'):
        jobs.run(f'Training, --regime {regime}', 'train.py', '--config', RECIPE, '--data-dir', data,
                 '--regime', regime, '--output', args.output, '--experiment', regime)
    rows = {
        'vanilla': {'clean': _validate(jobs, args.output, data, 'vanilla', 'clean')},
        'advprop': {route: _validate(jobs, args.output, data, 'advprop', route) for route in ('clean', 'aux')},
    }
    picture = os.path.join(args.output, 'adversarial.png')
    _draw(os.path.join(args.output, 'vanilla', 'last.pth.tar'), data, picture)
    print(_table(rows))
    print(f'\nPicture of images that fool the vanilla model: {picture}\nDone in {time.monotonic() - start:.0f} s.')


class _Jobs:
    # Runs programs one after the other, with their progress on the screen.
    def __init__(self, folder: str, total: int):
        self.folder, self.total, self.done, self.start = folder, total, 0, time.monotonic()

    def run(self, title: str, *command: str) -> None:
        self.done += 1
        print(f'[{self.done}/{self.total}] {title}  ({time.monotonic() - self.start:.0f} s)', flush=True)
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={'OMP_NUM_THREADS': '1', **os.environ},  # on images this small, threads wait more than they work
        )
        lines: List[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(('Train:', 'Test:', 'advprop', 'vanilla', 'Attack')):
                print(f'      {line}', end='', flush=True)
        if process.wait():
            raise InputError(f'{" ".join(command)} failed:\n{"".join(lines[-20:])}')


def _validate(jobs: _Jobs, output: str, data: str, regime: str, route: str) -> Dict[str, Any]:
    results = os.path.join(output, regime, f'results_{route}.json')
    jobs.run(
        f'Validation of {regime} through the {"main" if route == "clean" else "aux"} norms',
        'validate.py', '--data-dir', data, *MODEL, '--checkpoint', os.path.join(output, regime, 'last.pth.tar'),
        '--route', route, '--workers', '1', '--adv-attack', 'pgd', '--adv-eps', str(EPS), '--adv-alpha', str(ALPHA),
        '--adv-steps', str(STEPS), '--results-file', results, '--results-format', 'json')
    with open(results, encoding='utf-8') as file:
        return json.load(file)


def _table(rows: Dict[str, Dict[str, Dict[str, Any]]]) -> str:
    lines = [
        '',
        f'| regime | clean top-1, main norms | top-1 under PGD-{STEPS} (eps {EPS}/255), main norms | '
        'the same, aux norms |',
        '|---|---|---|---|',
    ]
    for regime, by_route in rows.items():
        main, aux = by_route['clean'], by_route.get('aux')
        aux_top1 = f'{aux["adv_top1"]:.1f}' if aux else '–'
        lines.append(f'| {regime} | {main["top1"]:.1f} | {main["adv_top1"]:.1f} | {aux_top1} |')
    return '\n'.join(lines)


def _draw(checkpoint: str, data: str, path: str) -> None:
    # Images that the vanilla model takes for another digit once they are attacked.
    model = open_model('test_resnet_ap', num_classes=10).eval()
    load_checkpoint(model, checkpoint)
    dataset = create_dataset('', root=data, split='validation', input_img_mode='RGB')
    dataset.transform = create_transform((3, 32, 32), crop_pct=1.0, mean=(0., 0., 0.), std=(1., 1., 1.))
    images = torch.stack([image for image, _ in dataset])
    target = torch.tensor([label for _, label in dataset])
    mean, std = model.pretrained_cfg['mean'], model.pretrained_cfg['std']
    adversary = Adversary(
        eps=EPS, alpha=ALPHA, steps=STEPS, target='none', random_start=1., mean=mean, std=std)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    normalised = (images - mean) / std
    adversarial = adversary(model, normalised, target, route='clean')
    with torch.inference_mode():
        before, after = (model(batch).argmax(dim=1) for batch in (normalised, adversarial))
    fooled = torch.nonzero((before == target) & (after != target)).flatten()
    fooled = fooled if len(fooled) else torch.arange(NUM_PICTURES)
    chosen = fooled[torch.linspace(0, len(fooled) - 1, min(NUM_PICTURES, len(fooled))).long()]
    titles = [f'{before[i]} → {after[i]}' for i in chosen]
    draw_attack(path, images[chosen], adversarial[chosen] * std + mean, titles, amplification=64 / EPS)


if __name__ == '__main__':
    main()
