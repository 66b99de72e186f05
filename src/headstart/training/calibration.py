"""Temperature scaling: one number makes a head's confidence honest and changes no prediction.

Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017. Knows
logits and labels, not where they come from.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.heads.metrics import softmax

# The likelihood of a head that makes no mistake on a small validation split grows without end as
# T falls. A gamma prior on 1/T with mode 1, worth this many images, keeps such a fit where the
# images support it and weighs nothing on a large split.
PRIOR_IMAGES = 32.0
MAX_TEMPERATURE = 20.0
_BISECTIONS = 60

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
    exact = logits.astype(np.float64)
    above_true = exact - exact[np.arange(len(label_ids)), label_ids][:, None]
    low, high = -np.log(MAX_TEMPERATURE), np.log(MAX_TEMPERATURE)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _slope(above_true, np.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))


def _slope(above_true: NDArray[np.float64], inverse: np.float64) -> float:
    """Derivative of the negative log posterior by 1/T; it is convex in 1/T, so it has one zero.

    Args:
        above_true: logits minus the true class's logit, shape (n_images, n_classes).
    """
    expected = (softmax(above_true * inverse) * above_true).sum()
    return float(expected + PRIOR_IMAGES * (1 - 1 / inverse))
