"""reports/predictions.csv: what the model says of each validation and test image.

The same bytes for the same predictions; nine digits give back every float32. Knows nothing of how
predictions are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.common import files
from headstart.common.errors import FormatError
from headstart.features.feature_store import FeatureBatch

_COLUMNS = ("path", "label", "predicted_label", "split", "sha256")


@dataclass(frozen=True)
class Predictions:
    """Probabilities of the images of one split.

    Attributes:
        probabilities: float64, shape (n_images, n_classes), in the order of `classes`.
        label_ids: int64, shape (n_images,); the true class.
        novelty: float64, shape (n_images,), where it was measured.
    """

    classes: tuple[str, ...]
    split: str
    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    label_ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    novelty: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.label_ids)

    @property
    def predicted_ids(self) -> NDArray[np.int64]:
        """The most probable class of each image, int64, shape (n_images,)."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)


def as_predictions(
    batch: FeatureBatch,
    split: str,
    classes: Sequence[str],
    probabilities: NDArray[np.floating[Any]],
) -> Predictions:
    """Return probabilities of a batch of rows, with what identifies them."""
    return Predictions(
        classes=tuple(classes),
        split=split,
        paths=tuple(batch.paths),
        sha256=tuple(batch.sha256),
        label_ids=batch.label_ids,
        probabilities=probabilities.astype(np.float64),
    )


def write_predictions(
    path: Path, parts: Sequence[Predictions], folds: Sequence[int] | None = None
) -> None:
    """Write the images of one or more splits, in the order given.

    Args:
        folds: of each image, as a last column.
    """
    header = [*_COLUMNS, *(probability_column(name) for name in parts[0].classes)]
    rows = [
        [
            *(path, part.classes[label_id], part.classes[predicted_id], part.split, sha256),
            *(f"{value:.9g}" for value in row),
        ]
        for part in parts
        for path, sha256, label_id, predicted_id, row in zip(
            part.paths,
            part.sha256,
            part.label_ids,
            part.predicted_ids,
            part.probabilities,
            strict=True,
        )
    ]
    if any(part.novelty is not None for part in parts):
        # Of images that the model learned from there is none.
        header.append("novelty")
        each = (
            f"{value:.6g}" if np.isfinite(value) else ""
            for part in parts
            for value in (np.full(len(part), np.nan) if part.novelty is None else part.novelty)
        )
        rows = [[*row, value] for row, value in zip(rows, each, strict=True)]
    if folds is not None:
        header.append("fold")
        rows = [[*row, str(fold)] for row, fold in zip(rows, folds, strict=True)]
    files.write_csv(path, header, rows)


def read_predictions_table(path: Path) -> pd.DataFrame:
    """Return all rows as a table; a class that is called NA or null stays what it is called."""
    table = pd.read_csv(
        path, dtype=dict.fromkeys(_COLUMNS, str), keep_default_na=False, na_filter=False
    )
    texts = [name for name in _COLUMNS if name in table.columns]
    return table.assign(**{name: table[name].map(files.of_cell) for name in texts})


def read_predictions(path: Path, split: str) -> Predictions:
    """Read back the images of one split.

    Raises:
        FormatError: the file is missing or is not one of `write_predictions`.
    """
    try:
        table = read_predictions_table(path)
    except FileNotFoundError:
        raise FormatError(f"{path} must exist, but it does not: run `dvc repro`") from None
    classes = tuple(name[2:-1] for name in table.columns if name.startswith("p("))
    if tuple(table.columns[: len(_COLUMNS)]) != _COLUMNS or not classes:
        raise FormatError(
            f"{path} must have the columns {', '.join(_COLUMNS)} and p(<class>), but got "
            f"{', '.join(table.columns)}: make it again with `dvc repro --force evaluate`"
        )
    rows = table[table["split"] == split]
    index = {name: i for i, name in enumerate(classes)}
    return Predictions(
        classes=classes,
        split=split,
        paths=tuple(rows["path"]),
        sha256=tuple(rows["sha256"]),
        label_ids=np.array([index[name] for name in rows["label"]], dtype=np.int64),
        probabilities=rows[[probability_column(name) for name in classes]].to_numpy(np.float64),
    )


def probability_column(class_name: str) -> str:
    """Return the column that holds the probability of a class, here as in served answers."""
    return f"p({class_name})"
