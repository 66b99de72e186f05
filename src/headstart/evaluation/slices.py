"""The same model on parts of the images: small ones, blurred ones, ones with near-duplicates.

Knows the manifest's columns and predictions.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.dataset.manifest import FLAGS, Manifest
from headstart.evaluation.bootstrap import Interval, intervals
from headstart.heads.metrics import accuracy, log_loss
from headstart.models.predictions import Predictions

MIN_IMAGES = 10


@dataclass(frozen=True)
class Slice:
    """Images that have something in common.

    Attributes:
        kind: what the images were parted by.
        accuracy, interval: on the slice, with the 95 % bootstrap interval.
    """

    kind: str
    name: str
    n_images: int
    accuracy: float
    interval: Interval
    log_loss: float


def sliced(
    predictions: Predictions, manifest: Manifest, *, n_resamples: int, seed: int
) -> list[Slice]:
    """Metrics of the parts of at least `MIN_IMAGES` images, where there are two to compare."""
    rows = manifest.table.set_index("path").loc[list(predictions.paths)]
    group_sizes = manifest.table["group"].value_counts()
    columns = {
        "image size": _thirds(rows["width"] * rows["height"]),
        "near-duplicate group": _group_size(rows["group"].map(group_sizes)),
        **{f"issue {flag.replace('_', ' ')}": _yes_no(rows[flag]) for flag in FLAGS},
    }
    found = []
    for kind, names in columns.items():
        parts = {name: np.flatnonzero(names == name) for name in np.unique(names)}
        large = {name: chosen for name, chosen in parts.items() if len(chosen) >= MIN_IMAGES}
        for name, chosen in large.items() if len(large) > 1 else ():
            groups = list(rows["group"].iloc[chosen])
            found.append(_slice(kind, name, predictions, chosen, groups, n_resamples, seed))
    return found


def _slice(
    kind: str,
    name: str,
    predictions: Predictions,
    chosen: NDArray[np.intp],
    groups: list[str],
    n_resamples: int,
    seed: int,
) -> Slice:
    labels, probabilities = predictions.label_ids[chosen], predictions.probabilities[chosen]
    right = probabilities.argmax(axis=1) == labels
    found = intervals(
        lambda rows: {"accuracy": float(right[rows].mean())},
        groups,
        n_resamples=n_resamples,
        seed=seed,
    )
    return Slice(
        kind=kind,
        name=name.split(" ", 1)[1],
        n_images=len(chosen),
        accuracy=float(accuracy(labels, probabilities)),
        interval=found["accuracy"],
        log_loss=float(log_loss(labels, probabilities)),
    )


# Each name begins with a digit that orders the slices of its kind.
def _thirds(pixels: "pd.Series[int]") -> NDArray[np.str_]:
    low, high = np.quantile(pixels, (1 / 3, 2 / 3))
    names = [f"0 up to {_megapixels(low)}", f"1 up to {_megapixels(high)}", "2 larger"]
    place = np.searchsorted(np.array([low, high]), pixels.to_numpy(), side="left")
    return np.array(names)[place]


def _megapixels(pixels: float) -> str:
    return f"{pixels / 1e6:.2g} MP" if pixels >= 1e5 else f"{pixels:.0f} px"


def _group_size(sizes: "pd.Series[int]") -> NDArray[np.str_]:
    return np.where(sizes.to_numpy() > 1, "1 has near-duplicates", "0 alone")


def _yes_no(flags: "pd.Series[bool]") -> NDArray[np.str_]:
    return np.where(flags.to_numpy(), "0 yes", "1 no")
