"""Curves that say more than one figure: ROC, precision-recall, reliability, accuracy by coverage.

Knows labels and probabilities, not how they are drawn.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.heads.metrics import N_CONFIDENCE_BINS

Floats = NDArray[np.float64]
_MOST_POINTS = 200


@dataclass(frozen=True)
class ClassCurve:
    """One class against the rest.

    Attributes:
        x, y: shape (n_points,); false and true positive rate, or recall and precision.
        area: under the ROC curve, or the average precision.
    """

    name: str
    x: Floats
    y: Floats
    area: float


@dataclass(frozen=True)
class Reliability:
    """How right the model is when it is so sure, by bins of its confidence in its prediction.

    Attributes:
        low, high: edges of the bins, shape (n_bins,); a bin holds low < confidence <= high.
        count: images in each bin.
        confidence, accuracy: their means; NaN in an empty bin.
    """

    low: Floats
    high: Floats
    count: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats


@dataclass(frozen=True)
class Coverage:
    """Accuracy on the images that the model is surest of.

    Attributes:
        coverage: fraction of the images that are answered, ascending, shape (n_images,).
        accuracy: on those.
        threshold: the least confidence among them.
    """

    coverage: Floats
    accuracy: Floats
    threshold: Floats


def roc_curves(
    label_ids: NDArray[np.int64], probabilities: Floats, classes: tuple[str, ...]
) -> list[ClassCurve]:
    """Return the ROC curve of each class that some but not all images have."""
    from sklearn.metrics import auc, roc_curve

    found = []
    for index, positive in _one_against_rest(label_ids, len(classes)):
        x, y, _ = roc_curve(positive, probabilities[:, index])
        found.append(ClassCurve(classes[index], *_thinned(x, y), float(auc(x, y))))
    return found


def precision_recall_curves(
    label_ids: NDArray[np.int64], probabilities: Floats, classes: tuple[str, ...]
) -> list[ClassCurve]:
    """Return precision by recall of each class that some but not all images have."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    found = []
    for index, positive in _one_against_rest(label_ids, len(classes)):
        scores = probabilities[:, index]
        precision, recall, _ = precision_recall_curve(positive, scores)
        area = float(average_precision_score(positive, scores))
        # Beyond the threshold that finds them all, a lower one only costs precision.
        first_full = int(np.flatnonzero(recall == 1)[-1])
        points = recall[first_full:][::-1], precision[first_full:][::-1]
        found.append(ClassCurve(classes[index], *_thinned(*points), area))
    return found


def reliability(label_ids: NDArray[np.int64], probabilities: Floats) -> Reliability:
    """Return bins of equal width, as the reliability diagram shows them (Guo et al., 2017)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == label_ids
    bins = np.clip(np.ceil(confidence * N_CONFIDENCE_BINS) - 1, 0, N_CONFIDENCE_BINS - 1)
    index = bins.astype(np.int64)
    count = np.bincount(index, minlength=N_CONFIDENCE_BINS).astype(np.int64)
    safe = np.where(count > 0, count, np.nan)
    edges = np.arange(N_CONFIDENCE_BINS + 1) / N_CONFIDENCE_BINS
    return Reliability(
        low=edges[:-1],
        high=edges[1:],
        count=count,
        confidence=np.bincount(index, confidence, N_CONFIDENCE_BINS) / safe,
        accuracy=np.bincount(index, right.astype(np.float64), N_CONFIDENCE_BINS) / safe,
    )


def coverage(label_ids: NDArray[np.int64], probabilities: Floats) -> Coverage:
    """Return the accuracy when the images that the model is least sure of are left to a person."""
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = (probabilities.argmax(axis=1) == label_ids)[order]
    answered = np.arange(1, len(order) + 1)
    return Coverage(
        coverage=answered / len(order),
        accuracy=np.cumsum(right) / answered,
        threshold=confidence[order],
    )


def _one_against_rest(
    label_ids: NDArray[np.int64], n_classes: int
) -> list[tuple[int, NDArray[np.bool_]]]:
    masks = [(index, label_ids == index) for index in range(n_classes)]
    return [(index, mask) for index, mask in masks if mask.any() and not mask.all()]


def _thinned(x: NDArray[Any], y: NDArray[Any]) -> tuple[Floats, Floats]:
    """Keep at most `_MOST_POINTS` of the points, first and last among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(np.int64))
    return np.asarray(x[kept], np.float64), np.asarray(y[kept], np.float64)
