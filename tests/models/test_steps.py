"""A step of each regime with split norms on every family: parts of a batch stay apart, whatever norms see as rows."""
import pytest
import timm
import torch

from tests.models.zoo_models import SMALLEST, make_images
from timm_advprop import AdvPropTask, Attack, FastAdvPropTask, split_state_dict
from timm_advprop.norms import norm_parameters

HALF = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
# Norms of tokens below each other and of windows, at a size that is fast. The others are slow as they are many.
ODD = {'levit_128s_ap': 64, 'efficientvit_m0_ap': 128}
CASES = [('fast-advprop', name) for name in ODD] + [
    pytest.param(regime, name, marks=pytest.mark.slow)
    for regime in ('advprop', 'fast-advprop') for name in (getattr(param, 'values', [param])[0] for param in SMALLEST)
    if (regime, name) not in {('fast-advprop', name) for name in ODD}]


def take_step(regime, variant, change):
    """What a step finds for main and auxiliary norms, by how much the images of the latter are changed."""
    torch.manual_seed(0)
    size = dict(img_size=ODD[variant]) if variant in ODD else {}
    model = timm.create_model(variant, num_classes=3, **size).train()
    images = torch.randn(6, 3, *[size['img_size']] * 2) if size else make_images(variant, 6)
    target = torch.arange(6) % 3
    if regime == 'advprop':
        task = AdvPropTask(model, sources=lambda model, x, y: (x + change * x.square(), y), verbose=False, **HALF)
    else:
        attack = Attack(eps_px=1, random_start=0., target='none')
        task = FastAdvPropTask(model, attack=attack, ratio=2, verbose=False, **HALF)
        images[4:] += change * images[4:].square()
    torch.manual_seed(1)
    task(images, target)['loss'].backward()
    gradients = [[parameter.grad for parameter in parameters] for parameters in norm_parameters(model)]
    return [(list(buffers.values()), found)
            for buffers, found in zip(split_state_dict(dict(model.named_buffers())), gradients)]


@pytest.mark.parametrize('regime, variant', CASES)
def test_images_of_the_auxiliary_norms_leave_the_main_norms_alone(regime, variant, one_thread):
    (main, aux), (other_main, other_aux) = (take_step(regime, variant, change) for change in (0, 1))
    assert all(torch.equal(*pair) for pair in zip(main[0], other_main[0], strict=True))
    assert not aux[0] or any(not torch.equal(*pair) for pair in zip(aux[0], other_aux[0], strict=True))
    for found, other in zip(main[1], other_main[1], strict=True):
        torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-4)
    assert any(not torch.allclose(*pair) for pair in zip(aux[1], other_aux[1], strict=True) if pair[0] is not None)
