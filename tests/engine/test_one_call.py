"""`timm_advprop.evaluate`: a face of the programs' evaluation, which puts the model back."""
import math

import pytest
import timm
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import timm_advprop
from tests.engine.runs import CPU
from timm_advprop import Attack, InputError, convert_split_norm, evaluate, norm_route, set_norm_route
from timm_advprop.engine.evaluation import evaluate as evaluate_placed
from timm_advprop.norms import split_norms
from timm_advprop.regimes import GaussianNoise

MEAN, STD = (.5, .4, .3), (.2, .3, .25)
WEAK = Attack(eps_px=8, alpha_px=8, steps=1, target='none', random_start=0.)
IMAGES, LABELS = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 8


@pytest.fixture
def model(randomize_norms):
    model = randomize_norms(timm.create_model('test_resnet_ap', num_classes=8, num_aux=2))
    model.pretrained_cfg = dict(model.pretrained_cfg, mean=MEAN, std=STD)
    return model


def batches():
    return list(zip(IMAGES.split(5), LABELS.split(5)))


def approximately(results):
    return {name: pytest.approx(value, rel=1e-5) for name, value in results.items()}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(IMAGES, LABELS))


LOADERS = {
    'list': batches, 'generator': lambda: iter(batches()),
    'torch': lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5),
    'stream': lambda: DataLoader(Stream(), batch_size=5),
}


@pytest.mark.parametrize('loader', LOADERS)
def test_any_iterable_of_batches_gives_percents_of_all_images(loader, model):
    with torch.no_grad():
        order = model.eval()(IMAGES).argsort(1, descending=True) == LABELS.unsqueeze(1)
    results = evaluate(model, LOADERS[loader]())
    assert set(results) == {'loss', 'top1', 'top5'}
    assert results['top1'] == pytest.approx(100 * order[:, 0].double().mean().item())
    assert results['top5'] == pytest.approx(100 * order[:, :5].any(1).double().mean().item())


@pytest.mark.parametrize('route', ['main', 'clean', 0, 'aux', 1, 2])
def test_images_pass_the_route_and_the_attack_sees_it(route, model):
    with norm_route(model, route):
        expected = evaluate_placed(model, batches(), CPU, attack=WEAK)
    assert evaluate(model, batches(), route, WEAK) == approximately(expected)
    assert expected['adv_loss'] > expected['loss']
    others = [evaluate(model, batches(), other)['loss'] for other in (0, 1, 2)]
    assert sum(loss == pytest.approx(expected['loss']) for loss in others) == 1


def test_strength_is_in_pixels_of_the_models_normalisation(model):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    evaluate(model, [(IMAGES.clamp(-.5, .5), LABELS)], attack=WEAK)
    clean, adversarial = seen[0], seen[-1]
    pixels = ((adversarial - clean) * torch.tensor(STD).view(3, 1, 1) * 255).abs().amax(dim=(0, 2, 3))
    torch.testing.assert_close(pixels, torch.full((3,), 8.))


def test_given_normalisation_is_for_models_that_do_not_say_theirs(model):
    expected = evaluate(model, batches(), 'aux', WEAK)
    model.pretrained_cfg = {}
    with pytest.raises(InputError, match='does not say how its inputs are normalised: pass mean and std'):
        evaluate(model, batches(), 'aux', WEAK)
    assert evaluate(model, batches(), 'aux', WEAK, mean=MEAN, std=STD) == expected
    own = Attack(**{**vars(WEAK), 'mean': MEAN, 'std': STD})
    assert evaluate(model, batches(), 'aux', own, mean=(0, 0, 0), std=(1, 1, 1)) == expected


@pytest.mark.parametrize('source', [GaussianNoise(eps_px=64), lambda model, images, target: (images.flip(-1), target)],
                         ids=['source', 'function'])
def test_other_images_than_those_of_an_attack(source, model):
    results = evaluate(model, batches(), 'aux', source)
    assert math.isfinite(results['adv_loss']) and results['adv_loss'] != results['loss']


@pytest.mark.parametrize('failing', [False, True])
def test_modes_and_routes_are_put_back(failing, model):
    model.train()
    model.layer1.eval()
    set_norm_route(model, 'split', sizes=(1, 2, 3))
    set_norm_route(model.layer2, 2)
    state = [(norm.route, norm.split_sizes) for norm in split_norms(model)], [m.training for m in model.modules()]
    if failing:
        with pytest.raises(RuntimeError):
            evaluate(model, [(IMAGES[:, 0], LABELS)], 'aux', WEAK)
    else:
        evaluate(model, batches(), 'aux', WEAK)
    assert state == (
        [(norm.route, norm.split_sizes) for norm in split_norms(model)], [m.training for m in model.modules()])


def test_precision_is_the_models_or_that_of_amp(model):
    full = evaluate(model, batches())
    mixed = evaluate(model, batches(), amp_dtype=torch.bfloat16)
    assert mixed['loss'] == pytest.approx(full['loss'], rel=.05) and mixed['loss'] != full['loss']
    assert evaluate(model.double(), batches())['loss'] == pytest.approx(full['loss'], rel=1e-4)


def test_plain_models_have_the_main_route():
    plain = timm.create_model('test_resnet', num_classes=8)
    expected = evaluate(plain, batches(), 'main', WEAK)
    assert set(expected) == {'loss', 'top1', 'top5', 'adv_loss', 'adv_top1', 'adv_top5'}
    assert evaluate(convert_split_norm(plain), batches(), 'aux', WEAK) == approximately(expected)


@pytest.mark.parametrize('route, message', [
    ('split', 'Route split divides batches in training'), (3, 'Route 3 needs 3 auxiliary norms, the model has 2'),
    ('mian', "Unknown route 'mian'"),
])
def test_unknown_routes_are_refused(route, message, model):
    with pytest.raises(InputError, match=message):
        evaluate(model, batches(), route)
    with pytest.raises(InputError, match="ResNet has no split norms, so no route"):
        evaluate(timm.create_model('test_resnet'), batches(), 'aux')


@pytest.mark.parametrize('loader', [[], iter([])], ids=['list', 'generator'])
def test_no_images_are_an_error(loader, model):
    with pytest.raises(InputError, match='no images'):
        evaluate(model, loader)


def test_the_package_has_it():
    assert timm_advprop.evaluate is evaluate and 'evaluate' in timm_advprop.__all__
