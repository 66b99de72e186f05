"""The manifest: one row an image, sorted by path; the list that every later stage goes by."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.common.errors import DataError, FormatError
from headstart.common.files import as_cell, of_cell, replacing
from headstart.params.split import Split

FLAGS = (
    "dark",
    "light",
    "low_information",
    "blurry",
    "odd_aspect_ratio",
    "odd_size",
    "exact_duplicates",
    "near_duplicates",
    "label_conflict",
)
_TEXT = ("path", "label", "sha256", "split", "group")
_NUMBERS = ("size_bytes", "width", "height")
COLUMNS = (
    "path", "label", "sha256", "size_bytes", "width", "height", "split", "split_given", "group",
    *FLAGS,
)  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """Rows of images, in columns COLUMNS: paths are posix, relative to data/fetched.

    `classes` are the sorted class names; the index of a name is its label id.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def label_ids(self) -> NDArray[np.int64]:
        """Label ids, int64, shape (n,)."""
        ids = {name: index for index, name in enumerate(self.classes)}
        return np.array([ids[label] for label in self.table["label"]], dtype=np.int64)

    @property
    def paths(self) -> list[str]:
        return self._texts("path")

    @property
    def sha256(self) -> list[str]:
        return self._texts("sha256")

    @property
    def splits(self) -> list[str]:
        return self._texts("split")

    def is_given(self, split: Split) -> bool:
        """Whether some image came with this split, rather than that it was assigned here."""
        return bool(self.table["split_given"][self.table["split"] == split].any())

    @property
    def groups(self) -> list[str]:
        return self._texts("group")

    @cached_property
    def max_pixels(self) -> int:
        """Pixels of the largest image: what reading accepted images again must allow."""
        return int((self.table["width"] * self.table["height"]).max()) if len(self) else 0

    def select(self, *splits: Split) -> "Manifest":
        """The rows of these splits, in the manifest's order, with the manifest's classes."""
        chosen = self.table[self.table["split"].isin(splits)].reset_index(drop=True)
        return Manifest(chosen, self.classes)

    def _texts(self, column: str) -> list[str]:
        return [str(value) for value in self.table[column]]


def make_manifest(columns: dict[str, Sequence[object] | NDArray[np.generic]]) -> Manifest:
    """A manifest from its columns, in any order of rows."""
    table = pd.DataFrame({name: columns[name] for name in COLUMNS})
    return _of_table(table.sort_values("path", ignore_index=True))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest as CSV atomically; the same rows give the same bytes."""
    cells = {name: manifest.table[name].map(as_cell) for name in _TEXT}
    with replacing(path) as temporary:
        manifest.table.assign(**cells).to_csv(
            temporary, index=False, lineterminator="\n", columns=list(COLUMNS)
        )


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        DataError: there is none.
        FormatError: the file lacks columns that this version writes.
    """
    if not path.is_file():
        raise DataError(f"the manifest must exist, but {path} does not: run `dvc repro ingest`")
    types = (
        dict.fromkeys(_TEXT, "str")
        | dict.fromkeys(_NUMBERS, "int64")
        | dict.fromkeys(("split_given", *FLAGS), "bool")
    )
    try:
        # A class may be called "NA" or "null".
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_filter=False)
    except (ValueError, KeyError) as error:
        raise FormatError(f"{path} is not a manifest ({error}): run `dvc repro ingest`") from None
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise FormatError(
            f"{path} lacks the columns {', '.join(missing)}; another version wrote it: run "
            "`dvc repro ingest`"
        )
    texts = {name: table[name].map(of_cell) for name in _TEXT}
    return _of_table(table.assign(**texts)[list(COLUMNS)])


def _of_table(table: pd.DataFrame) -> Manifest:
    return Manifest(table, tuple(sorted({str(label) for label in table["label"]})))
