"""The linear probe: multinomial logistic regression with an L2 penalty, solved to convergence."""

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from headstart.heads.config import HeadConfig
from headstart.heads.fitted import DenseWeights, FittedHead, feature_statistics
from headstart.heads.metrics import softmax
from headstart.heads.stack import balanced_weights

Floats = NDArray[np.float64]

_GRADIENT_TOLERANCE = 1e-5
_MAX_ITERATIONS = 1000


class ProbeRows:
    """The rows that linear probes are fitted on; what several of them share is computed once.

    Args:
        features: float32 (n, n_views, feature_dim); every view is a row.
        label_ids: int64 (n,).
        row_weights: float32 (n,); rows of weight 0 are left out.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        label_ids: NDArray[np.int64],
        row_weights: NDArray[np.float32],
        n_classes: int,
    ) -> None:
        chosen = np.flatnonzero(row_weights > 0)
        self._features, self._chosen, self._n_views = features, chosen, features.shape[1]
        self._label_ids = label_ids[chosen]
        self._weights = row_weights[chosen].astype(np.float64)
        self._n_classes = n_classes
        self._rotated: dict[str, tuple[Floats, Floats]] = {}

    def fit(self, config: HeadConfig) -> FittedHead:
        """Minimise the weighted mean log loss plus l2 / 2 times the kernel's squared norm.

        The bias is not penalised. With more features than rows the problem is solved in the rows'
        own space, where it is smaller and has the same solution: the penalty keeps the kernel in
        the span of the rows.
        """
        shell = FittedHead(config, self._n_classes, (), *self._statistics(config.normalisation))
        weights = self._row_weights(config)
        if self._features.shape[2] > len(weights):
            rotated, back = self._in_row_space(shell)
            kernel, bias = solve(rotated, self._labels, weights, self._n_classes, config.l2)
            kernel = shell.normalised(self._rows).T @ (back @ kernel)
        else:
            rows = shell.normalised(self._rows).astype(np.float64)
            kernel, bias = solve(rows, self._labels, weights, self._n_classes, config.l2)
        dense = DenseWeights(kernel.astype(np.float32), bias.astype(np.float32))
        return replace(shell, layers=(dense,), epochs=1)

    @property
    def _rows(self) -> NDArray[np.float32]:
        return self._features[self._chosen].reshape(-1, self._features.shape[2])

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        return np.repeat(self._label_ids, self._n_views)

    @cached_property
    def _standard(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return feature_statistics(self._rows)

    def _statistics(
        self, normalisation: str
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        return self._standard if normalisation == "standardise" else (None, None)

    def _row_weights(self, config: HeadConfig) -> Floats:
        """Of every view of every row, summing to 1."""
        weights = self._weights
        if config.class_weights == "balanced":
            weights = weights * balanced_weights(self._label_ids, self._n_classes)[self._label_ids]
        weights = np.repeat(weights, self._n_views)
        return np.asarray(weights / weights.sum())

    def _in_row_space(self, shell: FittedHead) -> tuple[Floats, Floats]:
        """`row_space` of the normalised rows, once for each normalisation."""
        key = shell.config.normalisation
        if key not in self._rotated:
            self._rotated[key] = row_space(shell.normalised(self._rows).astype(np.float64))
        return self._rotated[key]


def row_space(rows: Floats) -> tuple[Floats, Floats]:
    """An exact rotation into the span of the rows, from their Gram matrix's eigenvectors.

    Args:
        rows: (n, d), more columns than rows.

    Returns:
        rotated (n, rank) and back (n, rank): `basis = rows.T @ back` is orthonormal, and
        `rows == rotated @ basis.T`. The basis itself is as large as the rows, and is not kept.
    """
    squares, vectors = np.linalg.eigh(rows @ rows.T)
    kept = squares > squares[-1] * len(rows) * np.finfo(np.float64).eps
    lengths = np.sqrt(squares[kept])
    vectors = vectors[:, kept]
    return vectors * lengths, vectors / lengths


def solve(
    rows: Floats, label_ids: NDArray[np.int64], weights: Floats, n_classes: int, l2: float
) -> tuple[Floats, Floats]:
    """Kernel (d, c) and bias (c,) of the penalised logistic regression, by L-BFGS.

    weights: (n,), summing to 1.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    d = rows.shape[1]
    # The free bias takes up any shift of the rows; the path to the end is much shorter without.
    mean = weights @ rows
    centred = rows - mean
    one_hot = np.eye(n_classes)[label_ids]

    def objective(flat: Floats) -> tuple[float, Floats]:
        theta = flat.reshape(d + 1, n_classes)
        kernel, bias = theta[:d], theta[d]
        probabilities = softmax(centred @ kernel + bias)
        own = np.take_along_axis(probabilities, label_ids[:, None], axis=1)[:, 0]
        loss = -(weights @ np.log(np.maximum(own, 1e-300)))
        error = (probabilities - one_hot) * weights[:, None]
        slope = np.vstack([centred.T @ error + l2 * kernel, error.sum(axis=0)])
        return float(loss + l2 / 2 * np.vdot(kernel, kernel)), slope.ravel()

    # BLAS threads cost more than they bring on problems this small.
    small = rows.size * n_classes < 5e7
    with threadpool_limits(1 if small else None):
        found = minimize(
            objective,
            np.zeros((d + 1) * n_classes),
            method="L-BFGS-B",
            jac=True,
            options={"gtol": _GRADIENT_TOLERANCE, "ftol": 1e-12, "maxiter": _MAX_ITERATIONS},
        )
    theta = found.x.reshape(d + 1, n_classes)
    return theta[:d], theta[d] - mean @ theta[:d]
