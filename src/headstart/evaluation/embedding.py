"""A map of the features: their two directions of largest variance (principal components).

Knows numbers only.
"""

import numpy as np
from numpy.typing import NDArray

_MOST_ROWS = 1000


def principal_plane(
    reference: NDArray[np.float32], rows: NDArray[np.float32], *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places of `rows` in the plane of the first two principal components of `reference`.

    Args:
        reference, rows: float32, shape (n, feature_dim); of many reference rows a sample is used.

    Returns:
        Places, shape (n_rows, 2), and the fraction of the variance along each axis, shape (2,).
        Signs are fixed, so that the same data give the same map.
    """
    generator = np.random.default_rng(seed)
    if len(reference) > _MOST_ROWS:
        reference = reference[generator.permutation(len(reference))[:_MOST_ROWS]]
    mean = reference.mean(axis=0, dtype=np.float64)
    centred = reference.astype(np.float64) - mean
    plane, explained = _first_axes(centred)
    plane = plane * np.sign(plane[np.arange(len(plane)), np.abs(plane).argmax(axis=1)])[:, None]
    return (rows.astype(np.float64) - mean) @ plane.T, explained


def _first_axes(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two orthonormal axes (2, d), and their fractions of the variance (2,)."""
    n, d = centred.shape
    if d <= n:
        _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
        return axes[:2], np.square(sizes[:2]) / max(float(np.square(sizes).sum()), 1e-30)
    # By way of the rows' products, which are few: an SVD would hold three copies of long rows.
    squares, vectors = np.linalg.eigh(centred @ centred.T)
    axes = (centred.T @ vectors[:, :-3:-1]).T
    axes /= np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-30)
    return axes, squares[:-3:-1] / max(float(squares.sum()), 1e-30)
