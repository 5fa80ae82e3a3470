"""What an attack draws: random starts and random targets."""
import pytest
import torch
import torch.nn.functional as F

from tests.attacks.linear_model import NORMS, LinearModel, make_labels, make_weight
from timm_advprop.attacks import gd, pgd, random_target


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('probability', [0., 0.3, 0.8, 1.])
def test_a_random_start_is_drawn_for_each_sample_with_its_probability(probability, norm):
    torch.manual_seed(0)
    count = 4000
    images, model = torch.zeros(count, 2, 2, 2), LinearModel(make_weight((2, 2, 2)))
    pgd(
        model, images, make_labels(images), eps=0.5, alpha=0., steps=1, bounds=(-1, 1), random_start=probability,
        norm=norm)
    start = model.seen[0].flatten(1)
    moved = (start != 0).any(dim=1)
    assert abs(moved.float().mean() - probability) <= 4 * (probability * (1 - probability) / count) ** 0.5
    assert len(start[moved].unique(dim=0)) == moved.sum()


def test_the_random_start_is_uniform_in_the_ball():
    torch.manual_seed(0)
    count, eps = 20000, 0.5
    images, model = torch.zeros(count, 2, 1, 2), LinearModel(make_weight((2, 1, 2)))
    settings = dict(eps=eps, alpha=0., steps=1, bounds=(-1, 1), random_start=True)
    pgd(model, images, make_labels(images), **settings)
    start = model.seen[-1].flatten()
    deciles = torch.histc(start, bins=10, min=-eps, max=eps) / len(start)
    assert (deciles - 0.1).abs().max() < 0.005
    pgd(model, images, make_labels(images), **settings, norm='l2')
    start = model.seen[-1].flatten(1)
    fraction_within = (start.norm(dim=1) / eps) ** 4  # of the volume of a ball in 4 dimensions
    deciles = torch.histc(fraction_within, bins=10, min=0, max=1) / count
    assert (deciles - 0.1).abs().max() < 0.01
    assert start.mean(dim=0).abs().max() < 0.01


@pytest.mark.parametrize('attack', [pgd, gd])
@pytest.mark.parametrize('probability', [-0.1, 1.1, 5, float('nan')])
def test_a_random_start_is_a_probability(attack, probability):
    with pytest.raises(ValueError, match='random_start'):
        attack(LinearModel(make_weight((3, 4, 4))), torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), eps=0.1, alpha=0.1,
               steps=1, bounds=(0, 1), random_start=probability)


@pytest.mark.parametrize('num_classes', [2, 3, 5, 1000])
@pytest.mark.parametrize('soft', [False, True])
def test_a_random_target_is_never_the_true_label(num_classes, soft):
    torch.manual_seed(0)
    labels = torch.arange(num_classes).repeat(2000 // num_classes + 1)
    drawn = random_target(F.one_hot(labels, num_classes).float() if soft else labels, num_classes)
    assert drawn.shape == labels.shape and drawn.dtype == torch.long
    assert (drawn != labels).all()
    assert drawn.min() >= 0 and drawn.max() < num_classes
    if num_classes == 2:
        assert torch.equal(drawn, 1 - labels)


@pytest.mark.parametrize('label', [0, 2, 4])
@pytest.mark.parametrize('smoothing', [None, 0., 0.1])
def test_a_random_target_is_uniform_over_the_wrong_labels(label, smoothing):
    torch.manual_seed(0)
    count = 20000
    target = torch.full((count,), label)
    if smoothing is not None:
        target = F.one_hot(target, 5) * (1 - smoothing) + smoothing / 5
    drawn = random_target(target, 5)
    counts = torch.bincount(drawn, minlength=5).double()
    wrong = torch.arange(5) != label
    assert counts[label] == 0
    chi_square = ((counts[wrong] - count / 4) ** 2 / (count / 4)).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize('smoothing', [0., 0.1])
@pytest.mark.parametrize('lam', [0.02, 0.4, 0.5])
def test_a_random_target_of_two_mixed_classes_is_neither(smoothing, lam):
    torch.manual_seed(0)
    first, second = torch.randint(0, 6, (2, 3000))
    weights = [F.one_hot(labels, 6) * (1 - smoothing) + smoothing / 6 for labels in (first, second)]
    drawn = random_target(weights[0] * lam + weights[1] * (1 - lam), 6)
    assert ((drawn != first) & (drawn != second)).all()
    assert len(drawn.unique()) == 6


def test_a_random_target_of_two_classes_mixed_with_each_other_is_the_lesser_one():
    target = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    assert random_target(target, 2).tolist() == [0, 1]


@pytest.mark.parametrize('num_classes', [0, 1])
def test_a_random_target_needs_a_wrong_label(num_classes):
    with pytest.raises(ValueError, match='2 classes'):
        random_target(torch.zeros(3, dtype=torch.long), num_classes)


def test_a_random_target_needs_weights_of_every_class():
    with pytest.raises(ValueError, match='10'):
        random_target(torch.rand(3, 5), 10)


@pytest.mark.parametrize('num_classes', [4, 5, 100])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_random_target_of_a_teachers_answer_is_any_class_but_the_most_likely_one(num_classes, dtype):
    torch.manual_seed(0)
    answer = torch.randn(num_classes).softmax(0).to(dtype)
    drawn = random_target(answer.expand(4000, -1), num_classes)
    counts = torch.bincount(drawn, minlength=num_classes)
    assert counts[answer == answer.max()].sum() == 0
    assert (counts[answer < answer.max()] > 0).all()


@pytest.mark.parametrize('smoothing', [0., 0.1])
def test_a_random_target_of_several_labels_is_none_of_them(smoothing):
    torch.manual_seed(0)
    first, second = (torch.rand(2, 3000, 8) < 0.3).float()
    first[:, 0] = second[:, 0] = 0.  # an image has at least one label that is wrong
    mixed = 0.3 * first + 0.7 * second
    for labels in (first, mixed):
        drawn = random_target(labels * (1 - smoothing) + smoothing / 2, 8)
        assert (labels.gather(1, drawn.unsqueeze(1)) == 0).all()
    assert len(random_target(torch.zeros(200, 8), 8).unique()) == 8  # of no label, any


def test_wrong_labels_of_class_weights_are_the_draws_of_multinomial():
    weights = torch.eye(6)[torch.arange(40) % 6]
    torch.manual_seed(3)
    drawn = random_target(weights, 6)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.multinomial(1 - weights, 1).squeeze(1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        random_target(weights, 6)
    assert not {'aten::item', 'aten::_local_scalar_dense'} & {event.key for event in profiler.key_averages()}
