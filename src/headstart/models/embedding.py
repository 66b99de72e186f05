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
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    plane = axes[:2]
    plane = plane * np.sign(plane[np.arange(len(plane)), np.abs(plane).argmax(axis=1)])[:, None]
    explained = np.square(sizes[:2]) / max(float(np.square(sizes).sum()), 1e-30)
    return (rows.astype(np.float64) - mean) @ plane.T, explained
