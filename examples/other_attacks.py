"""Attacks of other libraries on a chosen route: torchattacks and AutoAttack. `routed` makes the module that they take.

Needs `pip install --no-deps torchattacks` (without its pins) and `pip install 'timm-advprop[robustness]'`.

    python examples/other_attacks.py
"""
import torch
import torchattacks
from digits import digit_pixels
from own_loop import train

import timm_advprop
from timm_advprop.robustness import autoattack


def main(epochs=3, num_images=64, num_of_autoattack=2):
    """Top-1 of both routes, clean, under PGD and, of a few images as it takes long, under AutoAttack of 8/255."""
    model, _ = train(epochs)
    pixels, labels = (values[-num_images:] for values in digit_pixels())  # in 0–1, not normalised
    few = [(pixels[:num_of_autoattack], labels[:num_of_autoattack])]
    results = {}
    for route in ('main', 'aux'):
        target = timm_advprop.routed(model, route)  # normalises by itself, and passes this route
        adversarial = torchattacks.PGD(target, eps=8 / 255, alpha=2 / 255, steps=5)(pixels, labels)
        with torch.inference_mode():
            clean, pgd = (100 * (target(images).argmax(1) == labels).float().mean().item()
                          for images in (pixels, adversarial))
        strong = autoattack(target, few, eps=8 / 255)['aa_top1']
        print(f'{route} norms: top-1 {clean:.1f} %, PGD {pgd:.1f} %, AutoAttack {strong:.1f} % (of {len(few[0][1])})')
        results[route] = dict(
            clean=clean, pgd=pgd, autoattack=strong, distance=(adversarial - pixels).abs().max().item())
    return results


if __name__ == '__main__':
    main()
