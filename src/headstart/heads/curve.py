"""The validation curve of a head in training: its best epoch, and when to stop."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.heads.metrics import METRICS, is_better, softmax


class Curve:
    """Validation metrics by epoch, of which `metric` decides.

    Attributes:
        values: by metric name, one value an epoch.
        best_epoch: number of epochs after which `metric` was best, from 1; 0 before the first.
        best: its value then; NaN before the first.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.values: dict[str, list[float]] = {}
        self.best_epoch = 0
        self.best = float("nan")

    @property
    def epochs(self) -> int:
        """Epochs so far."""
        return len(self.values.get(self.metric, []))

    def add(self, values: dict[str, float]) -> bool:
        """Add one epoch; return whether it is the best so far."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)
        if not is_better(self.metric, values[self.metric], self.best):
            return False
        self.best_epoch, self.best = self.epochs, values[self.metric]
        return True

    def stalled(self, patience: int | None) -> bool:
        """Whether `patience` epochs in a row were no better than the best."""
        return patience is not None and self.epochs - self.best_epoch >= patience


def curve_metrics(metric: str) -> tuple[str, ...]:
    """What every curve holds: the same names for every head of a study."""
    return tuple(dict.fromkeys((metric, "log_loss", "accuracy")))


def epoch_scores(
    names: Sequence[str],
    label_ids: Sequence[NDArray[np.int64]],
    logits: Sequence[NDArray[np.float32]],
) -> dict[str, NDArray[np.float64]]:
    """Validation metrics of several heads, float64 (n_groups, n_heads) by name.

    Args:
        label_ids: a group's, (n,).
        logits: a group's, (n_heads, n, n_classes); a head whose logits are not numbers gets NaN.
    """
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for labels, values in zip(label_ids, logits, strict=True):
        finite = np.asarray(np.isfinite(values).all(axis=(1, 2)))
        probabilities = softmax(np.where(finite[:, None, None], values, 0.0))
        for name in names:
            found[name].append(np.where(finite, METRICS[name](labels, probabilities), np.nan))
    return {name: np.stack(rows) for name, rows in found.items()}
