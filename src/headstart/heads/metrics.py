"""Every metric once: what the search optimises, training reports and evaluation writes.

Each takes labels of shape (n,) and probabilities of shape (..., n, n_classes), and answers with
shape (...): many heads are scored in one call.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from headstart.common.errors import SearchError

Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Metric = Callable[[Labels, Floats], NDArray[np.float64]]

N_CONFIDENCE_BINS = 15
_MIN_ROWS_OF_A_BIN = 10
_SMALLEST_PROBABILITY = 1e-7


def accuracy(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    """Fraction of rows whose largest probability is the label's."""
    return np.asarray(_hits(label_ids, probabilities).mean(axis=-1))


def balanced_accuracy(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    """Mean recall of the classes that occur."""
    rows = _one_hot(label_ids, probabilities.shape[-1])
    counts = rows.sum(axis=0)
    recalled = _hits(label_ids, probabilities) @ rows
    present = counts > 0
    return np.asarray((recalled[..., present] / counts[present]).mean(axis=-1))


def macro_f1(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    """Mean F1 of the classes that occur or are predicted."""
    n_classes = probabilities.shape[-1]
    actual = _one_hot(label_ids, n_classes)
    predicted = np.eye(n_classes)[probabilities.argmax(axis=-1)]
    both = (predicted * actual).sum(axis=-2)
    either = predicted.sum(axis=-2) + actual.sum(axis=0)
    f1 = 2 * both / np.maximum(either, 1)
    return np.asarray(f1.sum(axis=-1) / (either > 0).sum(axis=-1))


def top_3_accuracy(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    """Fraction of rows whose label is among the three most probable; ties go to the lower id."""
    return np.asarray(_is_in_top_3(label_ids, probabilities).mean(axis=-1))


def log_loss(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    """Mean negative log probability of the label (natural logarithm)."""
    return np.asarray(_losses(label_ids, probabilities).mean(axis=-1))


def brier(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    """Mean squared distance of the probabilities from the label's one-hot row; 0 to 2."""
    return np.asarray(_squared_distances(label_ids, probabilities).mean(axis=-1))


def ece(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    """Expected calibration error of the top class: the root of `squared_ece`, 0 where negative."""
    return np.asarray(np.sqrt(np.maximum(squared_ece(label_ids, probabilities), 0.0)))


def squared_ece(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    """Mean squared gap between confidence and accuracy, debiased.

    Rows are sorted by confidence into bins of equal size. A bin's squared mean gap is larger than
    the true one by the variance of that mean, which is subtracted: Kumar, Liang and Ma, "Verified
    Uncertainty Calibration", 2019. The plain mean of absolute gaps shows an error of several per
    cent for a calibrated head on a few hundred images; this is 0 on average, and may be negative.
    """
    confidence = probabilities.max(axis=-1).astype(np.float64)
    gaps = confidence - _hits(label_ids, probabilities)
    gaps = np.take_along_axis(gaps, np.argsort(confidence, axis=-1, kind="stable"), axis=-1)
    n = len(label_ids)
    n_bins = int(np.clip(n // _MIN_ROWS_OF_A_BIN, 1, N_CONFIDENCE_BINS))
    starts = np.arange(n_bins) * n // n_bins
    sizes = np.diff(starts, append=n)
    means = np.add.reduceat(gaps, starts, axis=-1) / sizes
    squares = np.add.reduceat(np.square(gaps), starts, axis=-1)
    variances = (squares - sizes * np.square(means)) / np.maximum(sizes - 1, 1)
    return np.asarray(((np.square(means) - variances / sizes) * sizes).sum(axis=-1) / n)


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "top_3_accuracy": top_3_accuracy,
    "log_loss": log_loss,
    "brier": brier,
    "ece": ece,
}
DIRECTION: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "balanced_accuracy": "maximize",
    "macro_f1": "maximize",
    "top_3_accuracy": "maximize",
    "log_loss": "minimize",
    "brier": "minimize",
    "ece": "minimize",
}
_MIN_CLASSES_FOR_TOP_3 = 4
# Less than one image of a million, with any log loss that clipped probabilities allow.
_TIE_BREAK = 5e-8


def scores(label_ids: Labels, probabilities: Floats) -> dict[str, float]:
    """Every metric of one head.

    Args:
        label_ids: shape (n,), at least one row.
        probabilities: shape (n, n_classes); rows sum to 1.

    Returns:
        Metrics by name; `top_3_accuracy` only where there are at least four classes.
    """
    names = metric_names(probabilities.shape[-1])
    return {name: float(METRICS[name](label_ids, probabilities)) for name in names}


def metric_names(n_classes: int) -> tuple[str, ...]:
    """The metrics that mean something with so many classes."""
    enough = n_classes >= _MIN_CLASSES_FOR_TOP_3
    return tuple(name for name in METRICS if enough or name != "top_3_accuracy")


def check_metric(metric: str, n_classes: int) -> None:
    """Refuse a metric that means nothing with so many classes.

    Raises:
        SearchError: naming those that do.
    """
    allowed = metric_names(n_classes)
    if metric not in allowed:
        raise SearchError(
            f"search.metric must be one of {', '.join(allowed)} for {n_classes} classes, "
            f"but got {metric}"
        )


def objective(metric: str, values: Mapping[str, float]) -> float:
    """The one number by which heads and epochs are compared: the metric, its ties broken.

    Where few images decide, many heads get the same number of them right. A tiny part of the log
    loss is subtracted from metrics of which more is better, and added to the others.
    """
    if metric == "log_loss" or "log_loss" not in values:
        return values[metric]
    sign = 1 if DIRECTION[metric] == "maximize" else -1
    return values[metric] - sign * _TIE_BREAK * values["log_loss"]


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Probabilities along the last axis, in float64."""
    return np.asarray(special.softmax(logits.astype(np.float64), axis=-1))


def mean_over_views(logits: Floats) -> NDArray[np.float64]:
    """Logits of the mean probabilities of several views of an image.

    Args:
        logits: shape (..., n_views, n_classes).

    Returns:
        Shape (..., n_classes), normalised: their exponentials sum to 1.
    """
    means = softmax(logits).mean(axis=-2)
    return np.asarray(np.log(np.maximum(means, np.finfo(np.float64).tiny)))


def one_of_views(logits: NDArray[np.float32], n_views: int) -> NDArray[np.float32]:
    """Logits (..., n, c) of n rows from those of their views (..., n * n_views, c)."""
    if n_views == 1:
        return logits
    *before, _, n_classes = logits.shape
    return mean_over_views(logits.reshape(*before, -1, n_views, n_classes)).astype(np.float32)


def _hits(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    return np.asarray(probabilities.argmax(axis=-1) == label_ids, np.float64)


def _is_in_top_3(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    own = _of_label(label_ids, probabilities)[..., None]
    ids = np.arange(probabilities.shape[-1])
    before = (probabilities > own) | ((probabilities == own) & (ids < label_ids[:, None]))
    return np.asarray(before.sum(axis=-1) < 3, np.float64)


def _losses(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    own = _of_label(label_ids, probabilities).astype(np.float64)
    return np.asarray(-np.log(np.clip(own, _SMALLEST_PROBABILITY, 1.0)))


def _squared_distances(label_ids: Labels, probabilities: Floats) -> NDArray[np.float64]:
    return np.asarray(
        np.square(probabilities - _one_hot(label_ids, probabilities.shape[-1])).sum(axis=-1)
    )


# Metrics that are means over images, by what each image adds: (..., n).
PER_IMAGE: dict[str, Metric] = {
    "accuracy": _hits,
    "top_3_accuracy": _is_in_top_3,
    "log_loss": _losses,
    "brier": _squared_distances,
}


def _of_label(label_ids: Labels, probabilities: Floats) -> Floats:
    return np.take_along_axis(probabilities, _spread(label_ids, probabilities), axis=-1)[..., 0]


def _spread(label_ids: Labels, probabilities: Floats) -> Labels:
    return np.broadcast_to(label_ids[:, None], (*probabilities.shape[:-1], 1))


def _one_hot(label_ids: Labels, n_classes: int) -> NDArray[np.float64]:
    return np.eye(n_classes)[label_ids]
