"""The validation curve of a head in training: its best epoch, and when to stop."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.heads.metrics import DIRECTION, METRICS, objective, softmax


class Curve:
    """Validation metrics by epoch, of which `metric` decides.

    The best epoch is that with the best mean over folds and repeats, ties broken by log loss
    (`metrics.objective`). Early stopping counts epochs without progress: an epoch is progress where
    it is better than the last progress by more than one standard error of their paired difference
    over the folds, or, with one fold, at all.
    One standard error is the measure that Breiman, Friedman, Olshen and Stone (1984) use to choose
    among models by cross-validation.

    Attributes:
        values: by metric name, the mean over folds, one value an epoch.
        spread: sample standard deviation of `metric` over folds, one value an epoch; 0 for one.
        best_epoch: number of epochs after which `metric` was best, from 1; 0 before the first.
        best: its value then; NaN before the first.
        objective: what the study optimises, then.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.values: dict[str, list[float]] = {}
        self.spread: list[float] = []
        self.best_epoch = 0
        self.best = float("nan")
        self.objective = float("nan")
        self._progress_epoch = 0
        self._progress: NDArray[np.float64] | None = None

    @property
    def epochs(self) -> int:
        """Epochs so far."""
        return len(self.spread)

    def add(self, values: Mapping[str, NDArray[np.float64]]) -> bool:
        """Add one epoch, values (n_folds,) by name; return whether it is the best so far."""
        for name, of_folds in values.items():
            self.values.setdefault(name, []).append(float(of_folds.mean()))
        own = values[self.metric]
        self.spread.append(_deviation(own))
        if self._progress is None or self._is_progress(own, self._progress):
            self._progress, self._progress_epoch = own, self.epochs
        latest = {name: of_epochs[-1] for name, of_epochs in self.values.items()}
        found = objective(self.metric, latest)
        sign = 1 if DIRECTION[self.metric] == "maximize" else -1
        if not np.isfinite(found) or sign * (found - self.objective) <= 0:
            return False
        self.objective = found
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
    """Validation metrics of one head, float64 (n_folds,) by name.

    Args:
        label_ids: a fold's, (n,).
        logits: a fold's, (n, n_classes); where they are not numbers its metrics are NaN.
    """
    found: dict[str, list[float]] = {name: [] for name in names}
    for labels, values in zip(label_ids, logits, strict=True):
        is_finite = bool(np.isfinite(values).all())
        probabilities = softmax(values) if is_finite else None
        for name in names:
            found[name].append(
                float("nan")
                if probabilities is None
                else float(METRICS[name](labels, probabilities))
            )
    return {name: np.array(values) for name, values in found.items()}
