"""AugMax: weights climb the model's loss, against finite differences and a second implementation."""
import pytest
import torch
import torch.nn.functional as F

from tests.regimes.regime_models import HALF, assert_unchanged, make_batch, plain_twin, snapshot, split_model
from tests.regimes.source_checks import Linear, drawn_pixels, in_units, normalisation
from timm_advprop.norms import norm_route
from timm_advprop.regimes import AdvPropTask, AugMax, AugMix, augmax
from timm_advprop.regimes.augmix import ChainSource

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def chains(monkeypatch):
    """Chains that are the same in every call, of float64 images."""
    made = in_units(torch.stack([drawn_pixels(seed=seed) for seed in (2, 3, 4)], dim=1).flatten(0, 1).double())
    made = made.view(6, 3, 3, 32, 32)
    monkeypatch.setattr(ChainSource, 'chains', lambda self, images: made.to(images.dtype))
    return made


def start():
    """What AugMax draws first after the seed 0, for 6 images and 3 chains."""
    torch.manual_seed(0)
    return torch.rand(6, 3, dtype=torch.float64), torch.rand(6, dtype=torch.float64)


def mixture(images, chains, logits, share):
    weights = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    inner = torch.einsum('nk,nkchw->nchw', weights, chains)
    return (1 - share[:, None, None, None]) * images + share[:, None, None, None] * inner


def climbed(model, images, chains, target, steps, step_size, loss=F.cross_entropy):
    """The images after steps by the sign of central finite differences of the loss in each weight."""
    logits, share = start()

    def losses(logits, share):
        with torch.no_grad():
            outputs = model(mixture(images, chains, logits, share))
        return torch.stack([loss(outputs[i:i + 1], target[i:i + 1]) for i in range(6)])

    for _ in range(steps):
        slopes, delta = torch.zeros_like(logits), 1e-5
        for k in range(3):
            change = torch.zeros_like(logits)
            change[:, k] = delta
            slopes[:, k] = losses(logits + change, share) - losses(logits - change, share)
        slope = losses(logits, share + delta) - losses(logits, share - delta)
        logits, share = logits + step_size * slopes.sign(), (share + step_size * slope.sign()).clamp(0, 1)
    return mixture(images, chains, logits, share)


@pytest.mark.parametrize('steps, step_size', [(1, 0.1), (5, 0.1), (3, 0.5)])
def test_weights_climb_the_loss_by_the_sign_of_its_slope(chains, steps, step_size):
    images, target, model = in_units(drawn_pixels().double()), torch.arange(6) % 5, Linear().double()
    expected = climbed(model, images, chains, target, steps, step_size)
    torch.manual_seed(0)
    made, labels = AugMax(steps=steps, step_size=step_size, **normalisation(3))(model, images, target)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-9)
    assert labels is target


def test_the_model_is_asked_on_the_route_of_the_norm_in_eval_mode(chains):
    model, images, target = split_model(num_aux=2).train(), in_units(drawn_pixels().double()), torch.arange(6) % 5
    results = {}
    for route in (1, 2):
        twin = plain_twin(model, route).eval()
        expected = climbed(twin, images, chains, target, 2, 0.1)
        torch.manual_seed(0)
        with norm_route(model, route):
            results[route], _ = AugMax(steps=2, **normalisation(3))(model, images, target)
        torch.testing.assert_close(results[route], expected, rtol=0, atol=1e-9)
    assert not torch.allclose(results[1], results[2])


def test_the_loss_is_higher_than_augmixs():
    images, target, model = in_units(drawn_pixels(64)), torch.arange(64) % 5, Linear()
    losses = {}
    for source in (AugMix(**normalisation(3)), AugMax(steps=10, step_size=0.5, **normalisation(3))):
        torch.manual_seed(0)
        losses[type(source)] = F.cross_entropy(model(source(model, images, target)[0]), target).item()
    assert losses[AugMax] > losses[AugMix] * 1.05


@pytest.mark.parametrize('classes, make_target', [
    (5, lambda count: torch.nn.functional.one_hot(torch.arange(count) % 5, 5).double()),  # several labels
    (1, lambda count: (torch.arange(count) % 2).double()[:, None])], ids=['labels', 'single logit'])
def test_the_loss_is_that_of_the_task(chains, classes, make_target):
    images, target, model = in_units(drawn_pixels().double()), make_target(6), Linear(classes=classes).double()
    expected = climbed(model, images, chains, target, 2, 0.1, loss=F.binary_cross_entropy_with_logits)
    torch.manual_seed(0)
    source = AugMax(steps=2, **normalisation(3)).against(torch.nn.BCEWithLogitsLoss())
    torch.testing.assert_close(source(model, images, target)[0], expected, rtol=0, atol=1e-9)
    own = AugMax(loss=F.mse_loss)
    assert own.against(torch.nn.BCEWithLogitsLoss()) is own


def test_a_failure_leaves_no_trace():
    model, (images, target) = split_model(num_aux=2).train(), make_batch()
    model.layer1.eval()
    model.conv1[1].aux_bn[0].bias.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    task = AdvPropTask(model, sources=[AugMax(), AugMax()], verbose=False, **HALF)
    before = snapshot(model)

    def fail(module, args):
        raise RuntimeError('out of memory')

    handle = model.layer3.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        task(images, target)
    handle.remove()
    assert_unchanged(model, before)


def test_passes_and_cost():
    images, target, model = in_units(drawn_pixels()), torch.arange(6) % 5, Linear()
    modes = []
    model.register_forward_hook(lambda module, args, output: modes.append(module.training))
    source = AugMax(steps=3, **normalisation(3))
    source(model.train(), images, target)
    assert modes == [False] * 3 and source.relative_cost() == 2


def test_gradients_that_overflow_make_no_nan(monkeypatch):
    def huge(forward, images, target, loss):
        return torch.full_like(images, 3e38) * torch.linspace(1, -1, 32).sign()[:, None]

    monkeypatch.setattr(augmax, 'input_gradient', huge)
    images = in_units(drawn_pixels())
    made, _ = AugMax(**normalisation(3))(Linear(), images, torch.arange(6) % 5)
    assert made.isfinite().all()


def test_what_augmax_says_of_itself():
    assert AugMax().describe() == 'AugMax-5, step size 0.1, 3 chains of depth 1–3, severity 3'
    assert AugMax().facts() == dict(trained_on='augmax', width=3, depth=-1, severity=3, steps=5, step_size=0.1)
    for wrong in (dict(steps=0), dict(step_size=-1)):
        with pytest.raises(ValueError, match='must be at least'):
            AugMax(**wrong)
