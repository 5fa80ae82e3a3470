"""The demonstration, `make demo`: a vanilla and an AdvProp model on scikit-learn's digits, compared.

Run it in the repository's root: `python -m studies.digits`. It trains through `train.py` and a recipe of `hparams/` and
evaluates through `validate.py`, as a user would.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from timm_advprop.engine.datasets import channel_normalisation
from timm_advprop.engine.figures import draw_attack
from timm_advprop.engine.small_datasets import write_digits
from timm_advprop.errors import InputError, exits_on_input_error
from timm_advprop.output import markdown_table
from timm_advprop.regimes import Attack

from .trained import check_root, open_trained

__all__ = ['main']

RECIPE = 'hparams/test_resnet_ap_digits.yaml'
MODEL = ['--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32', '--crop-pct', '1.0']
EPS, ALPHA, STEPS = 8, 2, 10
ATTACK = ['--adv-attack', 'pgd', '--adv-eps', str(EPS), '--adv-alpha', str(ALPHA), '--adv-steps', str(STEPS)]
ROUTES = {'vanilla': ('main',), 'advprop': ('main', 'aux')}  # the routes to validate, by regime
NUM_PICTURES = 8
_SHOWN = ('Train:', 'Test:', 'Attack', *ROUTES)  # beginnings of the lines that are shown of a program


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description='Compare vanilla and AdvProp training on digits.')
    parser.add_argument('--output', default='output/demo', metavar='DIR', help='folder (default: output/demo)')
    output = parser.parse_args(argv).output
    check_root('the demonstration', 'train.py', 'validate.py', RECIPE)
    start = time.monotonic()
    data, picture = os.path.join(output, 'digits'), os.path.join(output, 'adversarial.png')
    os.makedirs(output, exist_ok=True)
    write_digits(data)
    jobs = _Jobs(total=5)
    for regime in ROUTES:
        shutil.rmtree(os.path.join(output, regime), ignore_errors=True)  # of a former demonstration
        jobs.run(f'Training, --regime {regime}', 'train.py', '--config', RECIPE, '--data-dir', data,
                 '--regime', regime, '--output', output, '--experiment', regime)
    results = {(regime, route): _validate(jobs, os.path.join(output, regime), data, route)
               for regime, routes in ROUTES.items() for route in routes}
    _draw(os.path.join(output, 'vanilla', 'last.pth.tar'), data, picture)
    print(f'\n{_table(results)}\n\nPicture of images that fool the vanilla model: {picture}\n'
          f'Done in {time.monotonic() - start:.0f} s.')


class _Jobs:
    # Runs programs one after the other, with their progress on the screen.
    def __init__(self, total: int):
        self.total, self.done, self.start = total, 0, time.monotonic()

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
        try:
            for line in process.stdout:
                lines.append(line)
                if line.startswith(_SHOWN):
                    print(f'      {line}', end='', flush=True)
        except BaseException:  # this program is stopped: the other one, too
            process.terminate()
            process.wait()
            raise
        if process.wait():
            raise InputError(f'{" ".join(command)} failed:\n{"".join(lines[-20:])}')


def _validate(jobs: _Jobs, folder: str, data: str, route: str) -> Dict[str, Any]:
    results = os.path.join(folder, f'results_{route}.json')
    jobs.run(
        f'Validation of {os.path.basename(folder)} through the {route} norms',
        'validate.py', '--data-dir', data, *MODEL, '--checkpoint', os.path.join(folder, 'last.pth.tar'),
        '--route', route, '--workers', '1', *ATTACK, '--results-file', results, '--results-format', 'json')
    with open(results, encoding='utf-8') as file:
        return json.load(file)


def _table(results: Dict[Tuple[str, str], Dict[str, Any]]) -> str:
    attacked = f'top-1 under PGD-{STEPS} (eps {EPS}/255), main norms'
    rows = [['regime', 'clean top-1, main norms', attacked, 'the same, aux norms']]
    for regime in ROUTES:
        main, aux = results[regime, 'main'], results.get((regime, 'aux'))
        values = (main['top1'], main['adv_top1'], aux and aux['adv_top1'])
        rows.append([regime, *('–' if value is None else f'{value:.1f}' for value in values)])
    return markdown_table(rows)


def _draw(checkpoint: str, data: str, path: str) -> None:
    # Images that the model takes for another digit once they are attacked.
    trained = open_trained(checkpoint)
    samples = list(trained.images(data, normalise=False))
    images, target = torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
    attack = Attack(eps_px=EPS, alpha_px=ALPHA, steps=STEPS, target='none', random_start=1.).normalised_by(
        *channel_normalisation(trained.config))
    clean = attack.from_pixels(images)
    adversarial, _ = attack(trained.model, clean, target)
    with torch.inference_mode():
        before, after = (trained.model(batch).argmax(dim=1) for batch in (clean, adversarial))
    fooled = torch.nonzero((before == target) & (after != target)).flatten()
    fooled = fooled if len(fooled) else torch.arange(NUM_PICTURES)
    chosen = fooled[torch.linspace(0, len(fooled) - 1, min(NUM_PICTURES, len(fooled))).long()]
    titles = [f'{before[i]} → {after[i]}' for i in chosen]
    draw_attack(path, images[chosen], attack.in_pixels(adversarial[chosen]), titles, amplification=64 / EPS)


if __name__ == '__main__':
    main()
