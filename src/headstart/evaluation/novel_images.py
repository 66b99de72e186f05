"""How well novelty tells images of other classes: each class is left out in turn.

What is measured of a class is what would be, had the development images lacked it: its test images
against those of all other classes. The encoder and the scale of its features stay as they are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.models.novelty import NoveltyReference

_FALSE_ALARMS = 0.05
_MOST_CLASSES = 50
_SHARES = (1.0, 0.99, 0.95, 0.9, 0.8)


@dataclass(frozen=True)
class LeftOutClass:
    """What novelty makes of a class that the development images lack.

    Attributes:
        n_images: its test images.
        auroc: how probably one of them is more unusual than an image of the other classes.
        caught: the fraction of them above a limit that 5 % of the others are above too.
    """

    label_id: int
    n_images: int
    auroc: float
    caught: float


@dataclass(frozen=True)
class Answered:
    """What is left where images above a novelty get no label.

    Attributes:
        share, accuracy: of the test images that get one; the latter NaN where none does.
    """

    max_novelty: float
    share: float
    accuracy: float


@dataclass(frozen=True)
class NoveltyEvaluation:
    """Of the test images.

    Attributes:
        novelty: float64 (n,).
        left_out: hardest first; without classes that have no test or no development image, and of
            many classes 50.
    """

    novelty: NDArray[np.float64]
    left_out: tuple[LeftOutClass, ...]
    answered: tuple[Answered, ...]

    def metrics(self) -> dict[str, float]:
        """Means over left-out classes, and the worst, for reports/metrics.json."""
        if not self.left_out:
            return {}
        aurocs = [one.auroc for one in self.left_out]
        return {
            "novelty_auroc": float(np.mean(aurocs)),
            "novelty_auroc_worst": min(aurocs),
            "novelty_caught": float(np.mean([one.caught for one in self.left_out])),
        }


def evaluate_novelty(
    reference: NoveltyReference,
    features: NDArray[np.float32],
    label_ids: NDArray[np.int64],
    probabilities: NDArray[np.float64],
) -> NoveltyEvaluation:
    """Evaluate novelty on test images.

    Args:
        features: float32 (n, d), as the model's head takes them.
        probabilities: (n, n_classes).
    """
    from sklearn.metrics import roc_auc_score

    n_classes = probabilities.shape[1]
    known = np.bincount(reference.label_ids, minlength=n_classes)
    counts = np.bincount(label_ids, minlength=n_classes)
    possible = np.flatnonzero(
        (known > 0) & (known < known.sum()) & (counts > 0) & (counts < len(label_ids))
    )
    if len(possible) > _MOST_CLASSES:
        possible = possible[np.linspace(0, len(possible) - 1, _MOST_CLASSES).astype(int)]
    left_out = []
    for label in possible.tolist():
        own, unusual = label_ids == label, reference.without_class(label, features)
        limit = np.quantile(unusual[~own], 1 - _FALSE_ALARMS)
        auroc = float(roc_auc_score(own, unusual))
        caught = float((unusual[own] > limit).mean())
        left_out.append(LeftOutClass(label, int(own.sum()), auroc, caught))
    novelty = reference.novelty(features)
    right = probabilities.argmax(axis=1) == label_ids
    answered = []
    for most in _SHARES:
        kept = novelty <= most
        accuracy = float(right[kept].mean()) if kept.any() else float("nan")
        answered.append(Answered(most, float(kept.mean()), accuracy))
    left_out.sort(key=lambda one: one.auroc)
    return NoveltyEvaluation(novelty, tuple(left_out), tuple(answered))
