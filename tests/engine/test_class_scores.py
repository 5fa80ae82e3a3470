"""Scores by class, against scikit-learn and by hand, in one process and in several."""
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from timm_advprop.engine.class_scores import ClassCounts
from timm_advprop.engine.placement import Placement


def counted(answers, labels, num_classes=6, size=5):
    counts, logits = ClassCounts(), torch.nn.functional.one_hot(answers, num_classes).float()
    for output, target in zip(logits.split(size), labels.split(size)):
        counts.add('', output, target)
        counts.add('adv_', 1 - output, target)  # another kind
    return counts


@pytest.fixture
def drawn():
    # class 4 is never there, class 5 neither there nor answered, class 0 never answered
    labels = torch.randint(4, (43,))
    return torch.where(torch.rand(43) < .6, labels, torch.randint(5, (43,))).clamp(min=1), labels


@pytest.mark.parametrize('average', ['macro', 'weighted', 'micro'])
@pytest.mark.filterwarnings('ignore:y_pred contains classes')
def test_scores_are_those_of_scikit_learn(drawn, average):
    answers, labels = drawn
    scores = counted(answers, labels).scores(average)
    expected = precision_recall_fscore_support(labels, answers, average=average, zero_division=0)
    assert [scores[name] for name in ('precision', 'recall', 'f1_score')] == pytest.approx(
        [100 * value for value in expected[:3]])
    assert scores['balanced_accuracy'] == pytest.approx(100 * balanced_accuracy_score(labels, answers))


def test_a_class_that_is_always_answered_has_accuracy_and_no_balance():
    labels = torch.tensor([0] * 9 + [1])
    scores = counted(torch.zeros(10, dtype=torch.long), labels, num_classes=2).scores()
    assert scores['balanced_accuracy'] == pytest.approx(50)
    assert scores['f1_score'] == pytest.approx(100 * (2 * 9 / 19 + 0) / 2)  # top-1 is 90


def test_counts_are_of_all_processes_one_without_images(drawn, monkeypatch):
    answers, labels = drawn
    whole = counted(answers, labels).scores()
    parts = [counted(answers[::2], labels[::2]), counted(answers[1::2], labels[1::2]), ClassCounts()]
    placement = Placement(torch.device('cpu'), world_size=3, distributed=True)
    own = {part: part._counts(None) for part in parts}
    monkeypatch.setattr(Placement, 'gather', lambda self, value: list(own.values()))
    for part in parts:
        assert part.scores(placement=placement) == pytest.approx(whole) != parts[0].scores()
