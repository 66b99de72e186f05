"""Where a model goes wrong: worst errors, most confused pairs, label issues, accuracy by slice.

Knows labels and probabilities of images that the model was not trained on, and their manifest.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.dataset.manifest import FLAGS, Manifest
from headstart.evaluation.bootstrap import Interval, intervals, of_all_or_none
from headstart.heads.metrics import accuracy, log_loss
from headstart.models.predictions import Predictions

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
MIN_IMAGES = 10
_MOST_MAP_ROWS = 1000


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes and the images of the one that were taken for the other.

    Attributes:
        rows: row numbers of the images, those with the surest mistakes first.
    """

    true_id: int
    predicted_id: int
    rows: Ids

    @property
    def count(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Slice:
    """Images that have something in common.

    Attributes:
        kind: what the images were divided by.
        accuracy, interval: on the slice, with the 95 % bootstrap interval.
    """

    kind: str
    name: str
    n_images: int
    accuracy: float
    interval: Interval
    log_loss: float


def worst_errors(label_ids: Ids, probabilities: Floats, most: int) -> Ids:
    """Return the rows of wrong predictions, those with the least probability of the truth first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != label_ids)
    true = probabilities[wrong, label_ids[wrong]]
    return wrong[np.argsort(true, kind="stable")][:most].astype(np.int64)


def confused_pairs(label_ids: Ids, probabilities: Floats, most: int) -> list[ConfusedPair]:
    """Return the most frequent confusions of one class with another, in one direction."""
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    ordered = worst_errors(label_ids, probabilities, len(label_ids))
    keys = label_ids[ordered] * n_classes + predicted[ordered]
    found, counts = np.unique(keys, return_counts=True)
    frequent = found[np.argsort(-counts, kind="stable")][:most]
    return [
        ConfusedPair(int(key // n_classes), int(key % n_classes), ordered[keys == key])
        for key in frequent
    ]


def likely_label_errors(label_ids: Ids, probabilities: Floats) -> Ids:
    """Return the rows of images whose given label is probably wrong, worst first.

    Confident learning (Northcutt, Jiang, Chuang, 2021), as cleanlab's `filter_by=
    "confident_learning"`: an image is suspicious if the model predicts another class than its
    label, and a class other than its label is at least as probable as it is on average for the
    images labelled so. Ordered by normalised margin: the probability of the label minus the
    largest other one.
    """
    n_classes = probabilities.shape[1]
    counts = np.bincount(label_ids, minlength=n_classes)
    own = probabilities[np.arange(len(label_ids)), label_ids]
    thresholds = np.bincount(label_ids, own, n_classes) / np.maximum(counts, 1)
    thresholds[counts == 0] = np.inf
    # A class only counts where it reaches its threshold; of several, the most probable does.
    reached = np.where(probabilities >= thresholds - 1e-12, probabilities, -1.0)
    suspected = reached.argmax(axis=1)
    disagrees = probabilities.argmax(axis=1) != label_ids
    is_suspicious = disagrees & (reached.max(axis=1) > 0) & (suspected != label_ids)
    others = probabilities.copy()
    others[np.arange(len(label_ids)), label_ids] = -np.inf
    margin = own - others.max(axis=1)
    rows = np.flatnonzero(is_suspicious)
    return rows[np.argsort(margin[rows], kind="stable")].astype(np.int64)


def principal_plane(
    reference: NDArray[np.float32], rows: NDArray[np.float32], *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `rows` in the plane of the first two principal components of `reference`.

    Args:
        reference, rows: float32, shape (n, feature_dim); of many reference rows a sample is used.

    Returns:
        Coordinates, shape (n_rows, 2), and the fraction of the variance along each axis, shape
        (2,). Signs are fixed, so that the same data give the same map.
    """
    generator = np.random.default_rng(seed)
    if len(reference) > _MOST_MAP_ROWS:
        reference = reference[generator.permutation(len(reference))[:_MOST_MAP_ROWS]]
    mean = reference.mean(axis=0, dtype=np.float64)
    centred = reference.astype(np.float64) - mean
    if centred.shape[1] <= len(centred):
        _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
        plane, squares = axes[:2], np.square(sizes)
    else:
        # By way of the rows' products, which are few: an SVD would hold three copies of long rows.
        products, vectors = np.linalg.eigh(centred @ centred.T)
        plane, squares = (centred.T @ vectors[:, :-3:-1]).T, products[::-1]
        plane /= np.maximum(np.linalg.norm(plane, axis=1, keepdims=True), 1e-30)
    plane = plane * np.sign(plane[np.arange(len(plane)), np.abs(plane).argmax(axis=1)])[:, None]
    explained = squares[:2] / max(float(squares.sum()), 1e-30)
    return (rows.astype(np.float64) - mean) @ plane.T, explained


def sliced(
    predictions: Predictions, manifest: Manifest, *, n_resamples: int, seed: int
) -> list[Slice]:
    """Return metrics of slices of at least `MIN_IMAGES` images, where there are two to compare."""
    rows = manifest.table.set_index("path").loc[list(predictions.paths)]
    pixels = rows["width"] * rows["height"]
    low, high = np.quantile(pixels, (1 / 3, 2 / 3))
    third = np.searchsorted(np.array([low, high]), pixels.to_numpy(), side="left")
    group_sizes = rows["group"].map(manifest.table["group"].value_counts()).to_numpy()
    # Each name begins with a digit that orders the slices of its kind.
    thirds = [f"0 up to {_megapixels(low)}", f"1 up to {_megapixels(high)}", "2 larger"]
    columns = {
        "image size": np.array(thirds)[third],
        "near-duplicate group": np.where(group_sizes > 1, "1 has near-duplicates", "0 alone"),
        **{
            f"issue {flag.replace('_', ' ')}": np.where(rows[flag].to_numpy(), "0 yes", "1 no")
            for flag in FLAGS
        },
    }
    slices = []
    for kind, names in columns.items():
        parts = {name: np.flatnonzero(names == name) for name in np.unique(names)}
        large = {name: chosen for name, chosen in parts.items() if len(chosen) >= MIN_IMAGES}
        if len(large) < 2:
            continue
        for name, chosen in large.items():
            labels, probabilities = predictions.label_ids[chosen], predictions.probabilities[chosen]
            right = probabilities.argmax(axis=1) == labels
            groups = list(rows["group"].iloc[chosen])
            found = intervals(
                lambda drawn: {"accuracy": float(right[drawn].mean())},  # noqa: B023 (called here)
                groups,
                n_resamples=n_resamples,
                seed=seed,
            )
            slices.append(
                Slice(
                    kind=kind,
                    name=name.split(" ", 1)[1],
                    n_images=len(chosen),
                    accuracy=float(accuracy(labels, probabilities)),
                    interval=of_all_or_none(found["accuracy"], groups),
                    log_loss=float(log_loss(labels, probabilities)),
                )
            )
    return slices


def _megapixels(pixels: float) -> str:
    return f"{pixels / 1e6:.2g} MP" if pixels >= 1e5 else f"{pixels:.0f} px"
