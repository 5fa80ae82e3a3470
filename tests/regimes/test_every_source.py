"""Rules that hold for the images of every source: range of pixels, type, seeds, what is left alone."""
import pytest
import torch

from tests.regimes.regime_models import assert_unchanged, make_batch, snapshot, split_model
from tests.regimes.source_checks import SOURCES, Linear, drawn_pixels, in_pixels, in_units, normalisation
from timm_advprop.regimes import SOURCES as BY_NAME
from timm_advprop.regimes import AdvPropTask, Attack

pytestmark = pytest.mark.usefixtures('one_thread')
EACH = pytest.mark.parametrize('source_type', SOURCES, ids=lambda source_type: source_type.__name__)


def test_every_registered_source_is_looked_at():
    assert set(SOURCES) <= set(BY_NAME.values())
    assert {maker for maker in BY_NAME.values() if maker.__module__ in {kind.__module__ for kind in SOURCES}} == set(
        SOURCES)


@EACH
@pytest.mark.parametrize('channels, side', [(3, 32), (1, 28), (3, 48)])
def test_images_are_new_and_in_the_range_of_pixels(source_type, channels, side):
    source, pixels = source_type(**normalisation(channels)), drawn_pixels(8, channels, side)
    images, target = in_units(pixels), torch.arange(8) % 5
    before = images.clone()
    made, labels = source(Linear(channels), images, target)
    assert torch.equal(images, before) and torch.equal(labels, target)
    assert made.shape == images.shape and not made.requires_grad
    changed = (made - images).abs().flatten(1).amax(dim=1) * 255 > 1
    assert changed.sum() >= 6
    values = in_pixels(made)
    assert values.min() >= -1e-6 and values.max() <= 1 + 1e-6


@EACH
def test_values_that_random_erasing_left_out_of_the_range_do_not_go_farther(source_type):
    images = in_units(drawn_pixels())
    images[:, :, 8:16, 8:16] = torch.randn(6, 3, 8, 8) * 5
    low, high = in_units(torch.zeros(1, 3, 1, 1)), in_units(torch.ones(1, 3, 1, 1))
    made, _ = source_type(**normalisation(3))(Linear(), images, torch.arange(6) % 5)
    assert (made >= torch.minimum(low, images)).all() and (made <= torch.maximum(high, images)).all()


@EACH
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_images_keep_their_type(source_type, dtype):
    images, target = in_units(drawn_pixels()), torch.arange(6) % 5
    source, results = source_type(**normalisation(3)), []
    for kind in (torch.float32, dtype):
        torch.manual_seed(0)
        results.append(source(Linear(), images.to(kind), target)[0])
    assert results[1].dtype == dtype and results[1].isfinite().all()
    if source_type.__name__ in ('AmplitudeMix', 'CorruptedImages'):  # whose draws do not depend on the type
        tolerance = 1e-5 if dtype == torch.float64 else 0.1
        different = (results[0] - results[1].float()).abs() > tolerance
        assert different.float().mean() < (0.25 if source_type.__name__ == 'CorruptedImages' else 0.01)


@EACH
def test_images_follow_torchs_seed_and_are_new_in_every_step(source_type):
    images, target = in_units(drawn_pixels()), torch.arange(6) % 5
    source = source_type(**normalisation(3))

    def twice(seed):
        torch.manual_seed(seed)
        return [source(Linear(), images, target)[0] for _ in range(2)]

    first, second = twice(1)
    assert not torch.equal(first, second)
    assert all(torch.equal(*pair) for pair in zip(twice(1), (first, second)))


@EACH
def test_a_batch_under_autocast_is_that_without(source_type):
    images, target = in_units(drawn_pixels()), torch.arange(6) % 5
    source, results = source_type(**normalisation(3)), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            results.append(source(Linear(), images, target)[0])
    assert results[1].dtype == torch.float32
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0.02 if source_type.__name__ == 'AugMax' else 0)


@EACH
def test_a_batch_of_one_image(source_type):
    images = in_units(drawn_pixels(1))
    assert source_type(**normalisation(3))(Linear(), images, torch.zeros(1).long())[0].shape == images.shape


@EACH
@pytest.mark.parametrize('soft', [False, True])
def test_a_source_trains_a_norm_and_leaves_the_model_as_it_was(source_type, soft):
    model, (images, target) = split_model(dtype=torch.float32, num_aux=2).train(), make_batch(dtype=torch.float32)
    target = torch.nn.functional.one_hot(target, 5).float() if soft else target
    model.layer1.eval()
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    task = AdvPropTask(
        model, sources=[Attack(steps=1), source_type()], mean=(0.5,) * 3, std=(0.5,) * 3, verbose=False)
    before = snapshot(model)
    made, _ = task.sources[1](model, images, target)
    assert_unchanged(model, before)
    result = task(images, target)
    result['loss'].backward()
    assert result['loss'].isfinite() and model.bn1.aux_bn[1].weight.grad.any()


@EACH
def test_images_in_inference_mode(source_type):
    model = Linear()
    with torch.inference_mode():
        images, target = in_units(drawn_pixels()), torch.arange(6) % 5
        made, _ = source_type(**normalisation(3))(model, images, target)
    assert made.shape == images.shape


@EACH
def test_a_source_says_what_it_makes(source_type):
    source = source_type()
    facts = source.facts()
    assert BY_NAME[facts.pop('trained_on')] is source_type
    assert set(facts) == set(source_type.declared())  # all settings, by their names
    assert source.describe() and '\n' not in source.describe()
