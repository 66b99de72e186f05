"""The linear probe: multinomial logistic regression with an L2 penalty, solved to convergence."""

import warnings

import numpy as np
from numpy.typing import NDArray

from headstart.heads.config import HeadConfig
from headstart.heads.fitted import (
    DenseWeights,
    FittedHead,
    feature_statistics,
)
from headstart.heads.stack import balanced_weights

_TOLERANCE = 1e-4
_MAX_ITERATIONS = 1000


def fit_probe(
    config: HeadConfig,
    features: NDArray[np.float32],
    label_ids: NDArray[np.int64],
    row_weights: NDArray[np.float32],
    n_classes: int,
) -> FittedHead:
    """Minimise the weighted mean log loss plus l2 / 2 times the kernel's squared norm.

    Args:
        features: float32 (n, n_views, feature_dim); every view is a row.
        row_weights: float32 (n,); rows of weight 0 are left out.

    With more features than rows the problem is solved in the rows' own space, where it is smaller
    and has the same solution: the penalty keeps the kernel within the span of the rows.
    """
    chosen = row_weights > 0
    n_views = features.shape[1]
    rows = features[chosen].reshape(-1, features.shape[2])
    labels = np.repeat(label_ids[chosen], n_views)
    weights = row_weights[chosen].astype(np.float64)
    if config.class_weights == "balanced":
        weights = weights * balanced_weights(label_ids[chosen], n_classes)[label_ids[chosen]]
    mean, variance = (
        feature_statistics(rows) if config.normalisation == "standardise" else (None, None)
    )
    shell = FittedHead(config, n_classes, (), mean, variance)
    inputs, rotation = rotated(shell.normalised(rows).astype(np.float64))
    kernel, bias = _solve(config.l2, inputs, labels, np.repeat(weights, n_views), n_classes)
    if rotation is not None:
        kernel = rotation @ kernel
    dense = DenseWeights(kernel.astype(np.float32), bias.astype(np.float32))
    return FittedHead(config, n_classes, (dense,), mean, variance, epochs=1)


def rotated(
    rows: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Rows in an orthonormal basis of their span, and the basis (feature_dim, rank).

    With fewer features than rows: the rows themselves, and None.
    """
    if rows.shape[1] <= rows.shape[0]:
        return rows, None
    basis, triangle = np.linalg.qr(rows.T)
    return np.ascontiguousarray(triangle.T), basis


def _solve(
    l2: float,
    rows: NDArray[np.float64],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    n_classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # scikit-learn solves two classes as one logit. Half of it for each class is the softmax with
    # the same probabilities, and its squared norm is half as large.
    penalty = l2 / 2 if len(np.unique(labels)) == 2 else l2
    model = LogisticRegression(
        C=1 / (penalty * weights.sum()), tol=_TOLERANCE, max_iter=_MAX_ITERATIONS
    )
    with warnings.catch_warnings():
        # A thousand iterations are near enough: the penalty is then too weak to matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, labels, sample_weight=weights)
    kernel = np.zeros((rows.shape[1], n_classes))
    bias = np.full(n_classes, -30.0)
    found, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        found = np.vstack([-found[0], found[0]]) / 2
        intercept = np.array([-intercept[0], intercept[0]]) / 2
    kernel[:, model.classes_] = found.T
    bias[model.classes_] = intercept
    return kernel, bias
