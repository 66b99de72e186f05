"""Temperature scaling: one number makes a head's confidence honest and changes no prediction.

Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017. Knows
logits and labels, not where they come from.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from headstart.heads.metrics import softmax

# The likelihood of a head that makes no mistake on a small validation split grows without end as
# T falls. A gamma prior on 1/T with mode 1, worth this many images, keeps such a fit where the
# images support it and weighs nothing on a large split.
PRIOR_IMAGES = 32.0
MAX_TEMPERATURE = 20.0
# One number needs no more images; with a thousand classes they take minutes.
_MOST_IMAGES = 8192
# Scores of least squares have any scale.
_MAX_SCALE = 1e4

Floats = NDArray[np.floating[Any]]


def fit_temperature(logits: Floats, label_ids: NDArray[np.int64]) -> float:
    """Temperature T whose softmax(logits / T) is most probable given the labels.

    Args:
        logits: shape (n_images, n_classes), of images that the head was not trained on.
        label_ids: shape (n_images,).

    Returns:
        T in [1/20, 20]; 1.0 where there are no images.
    """
    if len(label_ids) == 0:
        return 1.0
    above_true = _above_true(logits, label_ids)

    def slope(inverse: float) -> float:
        """Derivative of the negative log posterior by 1/T."""
        expected = (softmax(above_true * inverse) * above_true).sum()
        return float(expected + PRIOR_IMAGES * (1 - 1 / inverse))

    return _zero_of(slope, MAX_TEMPERATURE)


def fit_score_temperature(scores: Floats, label_ids: NDArray[np.int64]) -> float:
    """Temperature T that makes logits of scores, of whatever scale: most probable, without prior.

    Labels are smoothed by 1 / (n_images + 2), as by Platt ("Probabilistic outputs for support
    vector machines", 1999), so that T is not 0 where every image is right.

    Args:
        scores: shape (n_images, n_classes), of images that the head was not trained on.
        label_ids: shape (n_images,).
    """
    above_true = _above_true(scores, label_ids)
    n_images, n_classes = above_true.shape
    smoothed = above_true.sum() / ((n_images + 2) * max(n_classes - 1, 1))

    def slope(inverse: float) -> float:
        """Derivative of the negative log likelihood by 1/T."""
        return float((softmax(above_true * inverse) * above_true).sum() - smoothed)

    return _zero_of(slope, _MAX_SCALE)


def _above_true(logits: Floats, label_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logits minus the true class's logit, shape (n_images, n_classes), of enough images."""
    stride = -(-len(label_ids) // _MOST_IMAGES)
    logits, label_ids = logits[::stride], label_ids[::stride]
    exact = logits.astype(np.float64)
    return np.asarray(exact - exact[np.arange(len(label_ids)), label_ids][:, None])


def _zero_of(slope: Callable[[float], float], most: float) -> float:
    """T in [1/most, most] where a loss, which is convex in 1/T, is least."""
    low, high = -float(np.log(most)), float(np.log(most))
    if slope(float(np.exp(low))) >= 0:
        return most
    if slope(float(np.exp(high))) <= 0:
        return 1 / most
    return float(np.exp(-brentq(lambda log: slope(float(np.exp(log))), low, high)))
