"""Scores of logits."""
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from studies.comparison.scores import SCORES, calibration_error, ranking_score


@pytest.fixture
def logits():
    return torch.randn(200, 2) * 3


@pytest.fixture
def labels():
    return (torch.rand(200) < 0.2).long()


def test_accuracies(logits, labels):
    predicted = logits.argmax(dim=1)
    assert SCORES['top1'](logits, labels) == pytest.approx(100 * (predicted == labels).float().mean().item())
    assert SCORES['balanced'](logits, labels) == pytest.approx(100 * balanced_accuracy_score(labels, predicted))


def test_the_ranking_score_is_of_two_classes(logits, labels):
    expected = roc_auc_score(labels, logits.softmax(dim=1)[:, 1])
    assert ranking_score(logits, labels) == {'auc': pytest.approx(100 * expected)}
    assert ranking_score(torch.randn(5, 3), torch.arange(5) % 3) == {}


def test_the_calibration_error_weighs_bins_by_their_images():
    # Of confidence 0.9 three of four are right, of 0.6 none of one.
    logits = torch.tensor([[.9, .1]] * 4 + [[.6, .4]]).log()
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert calibration_error(logits, labels) == pytest.approx(100 * (4 * (.9 - .75) + .6) / 5, abs=1e-4)


def test_a_calibrated_model_has_no_error():
    logits = torch.tensor([[.75, .25]] * 4).log()
    assert calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-4)
    assert calibration_error(torch.tensor([[50., -50.]]), torch.tensor([0])) == pytest.approx(0, abs=1e-4)
