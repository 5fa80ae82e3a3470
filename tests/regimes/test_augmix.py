"""AugMix: what is mixed, by which weights."""
import pytest
import torch

from tests.regimes.source_checks import Linear, drawn_pixels, in_units, normalisation
from timm_advprop.regimes import AugMix, augmix
from timm_advprop.regimes.augmix import mixed

pytestmark = pytest.mark.usefixtures('one_thread')


def test_images_are_mixed_by_weights_and_share():
    generator = torch.Generator().manual_seed(0)
    images, chains = torch.rand(2, 3, 4, 4, generator=generator), torch.rand(2, 3, 3, 4, 4, generator=generator)
    weights, share = torch.tensor([[0.5, 0.3, 0.2], [0., 1., 0.]]), torch.tensor([0.25, 1.])
    result = mixed(images, chains, weights, share)
    for i in range(2):
        mixture = sum(weights[i, k] * chains[i, k] for k in range(3))
        torch.testing.assert_close(result[i], (1 - share[i]) * images[i] + share[i] * mixture)


@pytest.mark.parametrize('alpha, spread', [(1., 1 / 12), (100., 1 / 804)])
def test_weights_are_drawn_for_each_image_from_dirichlet_and_beta(monkeypatch, alpha, spread):
    seen = []
    monkeypatch.setattr(augmix, 'mixed', lambda images, chains, weights, share: (
        seen.append((weights, share)), images)[1])
    AugMix(alpha=alpha, **normalisation(1))(None, in_units(torch.rand(3000, 1, 8, 8)), torch.zeros(3000))
    (weights, share), = seen
    assert weights.shape == (3000, 3) and share.shape == (3000,)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3000))
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.var().item() == pytest.approx(spread, rel=0.1)
    assert weights.mean(dim=0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    expected = (1 / 3) * (2 / 3) / (3 * alpha + 1)
    assert weights.var(dim=0).tolist() == pytest.approx([expected] * 3, rel=0.1)


def test_the_mixture_is_of_chains_of_the_same_image(monkeypatch):
    """Chains that do nothing give the images back, whatever the normalisation."""
    monkeypatch.setattr(augmix, 'augmented_chains', lambda pixels, settings: pixels[:, None].repeat(1, 3, 1, 1, 1))
    images = in_units(drawn_pixels())
    torch.testing.assert_close(AugMix(**normalisation(3))(None, images, torch.zeros(6))[0], images)


def test_the_chains_are_as_set(monkeypatch):
    seen = []
    monkeypatch.setattr(augmix, 'augmented_chains', lambda pixels, settings: (
        seen.append(settings), pixels[:, None])[1])
    source = AugMix(width=1, depth=2, severity=7, **normalisation(3))
    source(Linear(), in_units(drawn_pixels()), torch.zeros(6))
    assert (seen[0].width, seen[0].depth, seen[0].severity) == (1, 2, 7)


def test_what_augmix_says_of_itself():
    assert AugMix().describe() == 'AugMix, 3 chains of depth 1–3, severity 3'
    assert AugMix(width=2, depth=4, severity=1.5).describe() == 'AugMix, 2 chains of depth 4, severity 1.5'
    assert AugMix().facts() == dict(trained_on='augmix', width=3, depth=-1, severity=3, alpha=1)
    assert AugMix().relative_cost() == 0
    with pytest.raises(ValueError, match='alpha must be at least 0.01, got 0'):
        AugMix(alpha=0)
