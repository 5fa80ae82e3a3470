"""What logits are worth."""
from typing import Dict

import torch

__all__ = ['SCORES', 'calibration_error', 'ranking_score']

_BINS = 15


def top1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy in percent.

    Args:
        logits: [N, classes].
        labels: [N].
    """
    return 100 * (logits.argmax(dim=1) == labels).double().mean().item()


def balanced_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean of the accuracies of classes, in percent; arguments as of `top1`."""
    hits = (logits.argmax(dim=1) == labels).double()
    return 100 * torch.stack([hits[labels == label].mean() for label in labels.unique()]).mean().item()


SCORES = {'top1': top1, 'balanced': balanced_accuracy}


def calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error in percent, of 15 bins of equal width (Guo et al., ICML 2017, arXiv:1706.04599).

    Args:
        logits: [N, classes].
        labels: [N].
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    surplus = confidence - (predicted == labels).double()
    bins = (confidence * _BINS).ceil().long().clamp(1, _BINS)
    return 100 * torch.zeros(_BINS + 1, dtype=torch.double).index_add(0, bins, surplus).abs().sum().item() / len(labels)


def ranking_score(logits: torch.Tensor, labels: torch.Tensor) -> Dict[str, float]:
    """Of two classes, `auc`: how often, in percent, the second one's probability is higher for an image of it than for
    one of the first; nothing of more classes.

    Args:
        logits: [N, classes].
        labels: [N].
    """
    if logits.shape[1] != 2:
        return {}
    from sklearn.metrics import roc_auc_score
    return dict(auc=100 * float(roc_auc_score(labels.numpy(), (logits[:, 1] - logits[:, 0]).numpy())))
