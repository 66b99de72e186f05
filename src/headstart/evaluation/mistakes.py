"""Where a model goes wrong: its worst errors, the classes it confuses, labels that look wrong.

Knows labels and probabilities of images that the model was not trained on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes and the images of the one that were taken for the other.

    Attributes:
        rows: row numbers of the images, those with the surest mistakes first.
    """

    true_id: int
    predicted_id: int
    rows: Ids

    @property
    def count(self) -> int:
        return len(self.rows)


def worst_errors(label_ids: Ids, probabilities: Floats, most: int) -> Ids:
    """Row numbers of wrong predictions, those with the least probability of the truth first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != label_ids)
    true = probabilities[wrong, label_ids[wrong]]
    return wrong[np.argsort(true, kind="stable")][:most].astype(np.int64)


def confused_pairs(label_ids: Ids, probabilities: Floats, most: int) -> list[ConfusedPair]:
    """The most frequent confusions of one class with another, in one direction."""
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    ordered = worst_errors(label_ids, probabilities, len(label_ids))
    keys = label_ids[ordered] * n_classes + predicted[ordered]
    found, counts = np.unique(keys, return_counts=True)
    frequent = found[np.argsort(-counts, kind="stable")][:most]
    return [
        ConfusedPair(int(key // n_classes), int(key % n_classes), ordered[keys == key])
        for key in frequent
    ]


def likely_label_errors(label_ids: Ids, probabilities: Floats) -> Ids:
    """Row numbers of images whose given label is probably wrong, the most suspicious first.

    Confident learning (Northcutt, Jiang, Chuang, 2021), as cleanlab's `filter_by=
    "confident_learning"`: an image is suspicious if the model predicts another class than its
    label, and a class other than its label is at least as probable as it is on average for the
    images labelled so. Ordered by normalised margin: the probability of the label minus the
    largest other one.
    """
    n_classes = probabilities.shape[1]
    counts = np.bincount(label_ids, minlength=n_classes)
    own = probabilities[np.arange(len(label_ids)), label_ids]
    thresholds = np.bincount(label_ids, own, n_classes) / np.maximum(counts, 1)
    thresholds[counts == 0] = np.inf
    # A class only counts where it reaches its threshold; of several, the most probable does.
    reached = np.where(probabilities >= thresholds - 1e-12, probabilities, -1.0)
    suspected = reached.argmax(axis=1)
    disagrees = probabilities.argmax(axis=1) != label_ids
    is_suspicious = disagrees & (reached.max(axis=1) > 0) & (suspected != label_ids)
    others = probabilities.copy()
    others[np.arange(len(label_ids)), label_ids] = -np.inf
    margin = own - others.max(axis=1)
    rows = np.flatnonzero(is_suspicious)
    return rows[np.argsort(margin[rows], kind="stable")].astype(np.int64)
