"""The validation curve of a head in training: its best epoch, and when to stop."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.heads.metrics import DIRECTION, METRICS, badness, softmax


class Curve:
    """Validation metrics by epoch, of which `metric` decides.

    The best epoch is that with the best mean over row groups (folds and repeats); of equal ones,
    which are many where few images decide, that with the least log loss. Patience ends by what
    can be told from chance: an epoch is progress where it is better than the last progress by more
    than one standard error of their paired difference over the groups, or, with one group, at all.
    One standard error is the measure that Breiman, Friedman, Olshen and Stone (1984) use to choose
    among models by cross-validation.

    Attributes:
        values: by metric name, the mean over groups, one value an epoch.
        spread: sample standard deviation of `metric` over groups, one value an epoch; 0 for one.
        best_epoch: number of epochs after which `metric` was best, from 1; 0 before the first.
        best: its value then; NaN before the first.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.values: dict[str, list[float]] = {}
        self.spread: list[float] = []
        self.best_epoch = 0
        self.best = float("nan")
        self._least_badness = (math.inf, math.inf)
        self._progress_epoch = 0
        self._progress: NDArray[np.float64] | None = None

    @property
    def epochs(self) -> int:
        """Epochs so far."""
        return len(self.spread)

    def add(self, values: Mapping[str, NDArray[np.float64]]) -> bool:
        """Add one epoch, values (n_groups,) by name; return whether it is the best so far."""
        for name, found in values.items():
            self.values.setdefault(name, []).append(float(found.mean()))
        own = values[self.metric]
        self.spread.append(_deviation(own))
        if self._progress is None or self._is_progress(own, self._progress):
            self._progress, self._progress_epoch = own, self.epochs
        latest = {name: found[-1] for name, found in self.values.items()}
        rank = badness(self.metric, latest)
        if not rank < self._least_badness:
            return False
        self._least_badness = rank
        self.best_epoch, self.best = self.epochs, latest[self.metric]
        return True

    def stalled(self, patience: int | None) -> bool:
        """Whether the last `patience` epochs in a row were no progress."""
        return patience is not None and self.epochs - self._progress_epoch >= patience

    def _is_progress(self, now: NDArray[np.float64], before: NDArray[np.float64]) -> bool:
        gain = now - before if DIRECTION[self.metric] == "maximize" else before - now
        return bool(gain.mean() > _deviation(gain) / np.sqrt(len(gain)))


def _deviation(values: NDArray[np.float64]) -> float:
    """Sample standard deviation; 0 of one value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


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
