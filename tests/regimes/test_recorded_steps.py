"""One training step of every regime is what it was before the package was rebuilt (float64, seeded).

`recorded_steps.json` was written by the code of commit 4687df1, whose tasks took the same settings one by one.
"""
import json
from pathlib import Path

import pytest
import torch

from tests.regimes.regime_models import HALF, make_batch, split_model
from timm_advprop.norms import norm_parameters
from timm_advprop.regimes import (
    AdvPropTask,
    Attack,
    AugmentedView,
    FastAdvPropTask,
    GaussianNoise,
    JointTask,
    MadryTask,
    VanillaTask,
)

RECORDED = json.loads(Path(__file__).with_name('recorded_steps.json').read_text())
L2 = dict(eps_px=100, alpha_px=40, steps=2, norm='l2')

CASES = {
    'vanilla': lambda model: VanillaTask(model),
    'madry': lambda model: MadryTask(model, **HALF),
    'madry l2': lambda model: MadryTask(model, None, Attack(target='none', random_start=1., **L2), **HALF),
    'joint': lambda model: JointTask(model, **HALF),
    'joint weight': lambda model: JointTask(model, attack=Attack(eps_px=2), weight=0.5, **HALF),
    'advprop': lambda model: AdvPropTask(model, **HALF),
    'advprop one step': lambda model: AdvPropTask(model, None, Attack(eps_px=1), **HALF),
    'advprop untargeted': lambda model: AdvPropTask(
        model, sources=Attack(eps_px=2, alpha_px=1.5, steps=2, target='none', random_start=1.), weight=0.3, **HALF),
    'advprop ifgsm': lambda model: AdvPropTask(model, sources=Attack(kind='ifgsm', eps_px=2), **HALF),
    'advprop gd': lambda model: AdvPropTask(model, sources=Attack(kind='gd', eps_px=2, random_start=0.5), **HALF),
    'advprop l2': lambda model: AdvPropTask(model, sources=Attack(**L2), **HALF),
    'advprop batch statistics': lambda model: AdvPropTask(
        model, sources=Attack(eps_px=2, norm_stats='train'), **HALF),
    'advprop three strengths': lambda model: AdvPropTask(
        model, sources=[Attack(eps_px=eps) for eps in (1, 2, 4)], weight=0.5, **HALF),
    'advprop fine-grained': lambda model: AdvPropTask(model, sources=[AugmentedView(), Attack(eps_px=2)], **HALF),
    'advprop noise': lambda model: AdvPropTask(model, sources=GaussianNoise(eps_px=8), **HALF),
    'fast-advprop': lambda model: FastAdvPropTask(model, **HALF),
    'fast-advprop random target': lambda model: FastAdvPropTask(model, attack=Attack(eps_px=2), weight=0.25, **HALF),
}
NUM_AUX = {'advprop three strengths': 3, 'advprop fine-grained': 2}


def fingerprint(values):
    flat = torch.cat([value.detach().flatten() for value in values]) if values else torch.zeros(1)
    return [flat.norm().item(), (flat * torch.arange(len(flat)).double().cos()).sum().item()]


def step(task, model):
    """Scalars of the result, and length and a projection of the logits, the gradients and the buffers."""
    images, target = make_batch(10)
    torch.manual_seed(7)
    model.train()
    result = task(images, target)
    result['loss'].backward()
    main, aux = norm_parameters(model)
    of_norms = {id(parameter) for parameter in (*main, *aux)}
    shared = [parameter for parameter in model.parameters() if id(parameter) not in of_norms]
    gradients = {f'{name}_grad': fingerprint([value.grad for value in group if value.grad is not None])
                 for name, group in (('shared', shared), ('main', main), ('aux', aux))}
    return {
        **{name: value.item() for name, value in result.items() if value.ndim == 0},
        **gradients,
        'output': fingerprint([result['output']]),
        'buffers': fingerprint(list(model.buffers())),
    }


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('name', ['test_resnet_ap', 'test_efficientnet_ap'])
def test_step_is_the_recorded_one(name, case):
    model = split_model(name, num_aux=NUM_AUX.get(case, 1))
    measured = step(CASES[case](model), model)
    expected = RECORDED[f'{name}, {case}']
    assert measured.keys() == expected.keys()
    for entry, value in expected.items():
        assert measured[entry] == pytest.approx(value, rel=1e-9, abs=1e-12), entry


def test_every_recorded_step_is_compared():
    assert {key.partition(', ')[2] for key in RECORDED} == CASES.keys()
