"""Scores that take every class by itself: what the accuracy of unbalanced classes hides."""
from typing import Dict, List, Optional

import torch

from .placement import Placement

__all__ = ['ClassCounts']


class ClassCounts:
    """Counts images, answers and right answers of each class: all that the scores need of a confusion matrix.

    Args:
        kind: The kind of images that are counted, as `evaluate` names it.
    """

    def __init__(self, kind: str = ''):
        self.kind, self.num_classes = kind, 0
        self._answers: List[torch.Tensor] = []  # on the device until they are asked for

    def add(self, kind: str, output: torch.Tensor, target: torch.Tensor) -> None:
        """Count a batch, for `evaluate(…, on_output=counts.add)`.

        Args:
            kind: The kind of images; others than those of these counts are passed over.
            output: Logits [N, classes].
            target: Labels [N].
        """
        if kind == self.kind:
            self.num_classes = output.shape[1]
            self._answers.append(torch.stack([target, output.argmax(dim=1)]))

    def scores(self, average: str = 'macro', placement: Optional[Placement] = None) -> Dict[str, float]:
        """Precision, recall and F1 as scikit-learn defines them, 0 where a class was never answered or is not there.

        Args:
            average: `'macro'`, the mean over classes that are there or were answered; `'weighted'`, by their images;
                `'micro'`, of all images.
            placement: Count the images of all of its processes.

        Returns:
            `precision`, `recall`, `f1_score` and `balanced_accuracy` (the mean recall of the classes that are there,
            whatever the average), in percent.
        """
        images, answers, right = self._counts(placement)
        present = images > 0
        recalls = _shares(right, images)
        balanced = recalls[present].mean()
        if average == 'micro':
            images, answers, right = (counts.sum(dim=0, keepdim=True) for counts in (images, answers, right))
        known = (images + answers) > 0
        weights = images[known] if average == 'weighted' else torch.ones_like(images[known])
        values = [_shares(right, answers), _shares(right, images), _shares(2 * right, images + answers)]
        means = [(value[known] * weights).sum() / weights.sum() for value in values]
        names = ('precision', 'recall', 'f1_score', 'balanced_accuracy')
        return {name: 100 * value.item() for name, value in zip(names, (*means, balanced))}

    def _counts(self, placement: Optional[Placement]) -> torch.Tensor:
        # Images, answers and right answers [3, classes] of one process or of all; a process may have had no images.
        counts = [torch.zeros(3, 0, dtype=torch.float64)]
        if self._answers:
            labels, answers = torch.cat(self._answers, dim=1).cpu()
            counts = [torch.stack([torch.bincount(values, minlength=self.num_classes)
                                   for values in (labels, answers, labels[labels == answers])]).double()]
        if placement is not None and placement.world_size > 1:
            counts = placement.gather(counts[0])
        total = torch.zeros(3, max(count.shape[1] for count in counts), dtype=torch.float64)
        for count in counts:
            total[:, :count.shape[1]] += count
        return total


def _shares(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), 0.)
