"""How unlike the development images an image is: its novelty, from 0 (typical) to 1 (novel).

An image is as unusual as its mean distance to the nearest development images (k nearest neighbours
of features of length 1: Sun, Ming, Zhu and Li, "Out-of-distribution detection with deep nearest
neighbors", ICML 2022). Before that features are standardised, brought to their principal
components, and whitened by what varies within classes (Fisher, 1936): directions in which images of
one class differ anyway say little. Its novelty is the fraction of development images that are less
unusual, each of which is measured against images of other groups than its own: so nothing has to be
chosen for a data set, and 5 % of images like the development images have a novelty above 0.95.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NEIGHBOURS = 5
# What a model keeps: 2.5 MB of rows at most.
_MOST_ROWS, _MOST_COMPONENTS = 10_000, 128
# Components and whitening are of so many images; 0.3 of the mean variance is added to each.
_FITTED_ROWS, _SHRINKAGE = 4096, 0.3
_CHUNK_ROWS = 512


@dataclass(frozen=True)
class NoveltyReference:
    """The development images that others are compared with.

    Attributes:
        mean: float32 (d,).
        projection: float32 (d, r), of features less their mean.
        rows: float16 (m, r), projected and of length 1.
        label_ids: int64 (m,), of the rows.
        typical: float64 (m,), how unusual the rows themselves are, ascending.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    rows: NDArray[np.float16]
    label_ids: NDArray[np.int64]
    typical: Floats

    def novelty(self, features: NDArray[np.float32]) -> Floats:
        """Return the novelty of each image, float64 (n,), of features float32 (n, d)."""
        unusual = np.concatenate(
            [_distance(np.partition(some, -k)[:, -k:]) for some, k in self._similar(features)]
            or [np.zeros(0)]
        )
        return np.searchsorted(self.typical, unusual, side="left") / len(self.typical)

    def without_each_class(
        self, features: NDArray[np.float32], n_classes: int
    ) -> NDArray[np.float64]:
        """How unusual images would be, had the development images lacked a class.

        Returns:
            float64 (n_classes, n); NaN for a class that has no development image, or all.
        """
        counts = np.bincount(self.label_ids, minlength=n_classes)
        # As many that, without the largest class, enough are left.
        most = min(len(self.rows), int(counts.max()) + NEIGHBOURS)
        found = np.full((n_classes, len(features)), np.nan)
        start = 0
        for similar, _ in self._similar(features):
            nearest = np.argsort(-similar, axis=1, kind="stable")[:, :most]
            labels = self.label_ids[nearest]
            values = np.take_along_axis(similar, nearest, axis=1)
            for label in np.flatnonzero((counts > 0) & (counts < len(self.rows))):
                others = labels != label
                rank = others.cumsum(axis=1)
                is_taken = others & (rank <= min(NEIGHBOURS, len(self.rows) - counts[label]))
                distances = np.where(is_taken, _of_length_1(values), 0).sum(axis=1)
                found[label, start : start + len(similar)] = distances / is_taken.sum(axis=1)
            start += len(similar)
        return found

    def _similar(self, features: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Yield cosines between images and rows, some images at a time, and how many count."""
        for start in range(0, len(features), _CHUNK_ROWS):
            some = _unit((features[start : start + _CHUNK_ROWS] - self.mean) @ self.projection)
            yield some @ self._exact.T, min(NEIGHBOURS, len(self.rows))

    @cached_property
    def _exact(self) -> NDArray[np.float32]:
        return _unit(self.rows.astype(np.float32))


def fit_novelty(
    features: NDArray[np.float32],
    label_ids: NDArray[np.int64],
    groups: Sequence[str],
    mean: NDArray[np.float32],
    variance: NDArray[np.float32],
    *,
    seed: int,
) -> NoveltyReference | None:
    """Return what novelty is measured by, or None where all images are one group.

    Args:
        features: float32 (n, d), of the development images; of many, some drawn by `seed` are used.
        groups: of each image; a copy of an image says nothing of how unusual it is.
        mean, variance: float32 (d,), by which features are standardised.
    """
    ids = np.unique(np.asarray(groups), return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(len(features))
    chosen = np.sort(order[:_MOST_ROWS])
    if len(np.unique(ids[chosen])) < 2:
        return None
    ids, some = ids[chosen], np.sort(order[:_FITTED_ROWS])
    scale = 1 / np.sqrt(variance.astype(np.float64))
    components = _components((features[some] - mean) * scale, label_ids[some])
    projection = (scale[:, None] * components).astype(np.float32)
    rows = _unit((features[chosen] - mean) @ projection).astype(np.float16)
    exact, typical = _unit(rows.astype(np.float32)), []
    for start in range(0, len(rows), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        similar = exact[part] @ exact.T
        similar[ids[part, None] == ids] = -np.inf
        nearest = np.sort(similar, axis=1)[:, ::-1][:, :NEIGHBOURS]
        is_other = np.isfinite(nearest)
        distances = np.where(is_other, _of_length_1(np.where(is_other, nearest, 0)), 0)
        typical.append(distances.sum(axis=1) / is_other.sum(axis=1))
    every = np.sort(np.concatenate(typical))
    return NoveltyReference(mean, projection, rows, label_ids[chosen], every)


def _components(rows: Floats, label_ids: NDArray[np.int64]) -> Floats:
    """Project standardised rows on principal components, whitened within classes: (d, r)."""
    n, d = rows.shape
    if d <= n:
        directions = np.linalg.eigh(rows.T @ rows)[1]
    else:
        values, vectors = np.linalg.eigh(rows @ rows.T)
        directions = rows.T @ (vectors / np.sqrt(np.maximum(values, 1e-9 * values[-1])))
    principal = directions[:, ::-1][:, : min(_MOST_COMPONENTS, n - 1, d)]
    projected = rows @ principal
    counts = np.bincount(label_ids)
    sums = np.zeros((len(counts), projected.shape[1]))
    np.add.at(sums, label_ids, projected)
    within = projected - (sums / np.maximum(counts, 1)[:, None])[label_ids]
    values, vectors = np.linalg.eigh(within.T @ within / n)
    values = np.maximum(values, 0)
    # Where every class has one image, nothing varies within.
    floor = _SHRINKAGE * values.mean() or 1.0
    return np.asarray(principal @ (vectors / np.sqrt(values + floor)))


def _unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)


def _distance(nearest: NDArray[np.float32]) -> Floats:
    return np.asarray(_of_length_1(nearest).mean(axis=1))


def _of_length_1(cosines: NDArray[np.float32]) -> Floats:
    """Distances between vectors of length 1."""
    return np.sqrt(np.maximum(2 - 2 * cosines.astype(np.float64), 0))
