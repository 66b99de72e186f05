"""data/features.h5: bottleneck features, one row an image (and view), in the manifest's order.

The same bytes whatever the history. Features lie contiguously in the file and are mapped into
memory, so that a split loads about as fast as `np.load`, slices of any size are cheap, and several
processes may read at once. Knows nothing of how features are made.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from headstart.common.files import replacing
from headstart.common.hdf5 import Strings, check_format, gather, map_dataset, open_h5, write_strings

FORMAT, FORMAT_VERSION = "headstart-features", 1
_STRINGS = ("sha256", "paths", "splits", "groups")


@dataclass(frozen=True)
class FeatureBatch:
    """Rows of one split in memory.

    Attributes:
        features: float32, shape (n_images, n_views, feature_dim); view 0 is the plain one.
        label_ids: int64, shape (n_images,); indexes into the store's classes.
        sha256, paths, groups: one string an image; groups may not straddle folds.
    """

    features: NDArray[np.float32]
    label_ids: NDArray[np.int64]
    sha256: Sequence[str]
    paths: Sequence[str]
    groups: Sequence[str]

    def __len__(self) -> int:
        return len(self.label_ids)


@dataclass(frozen=True)
class FeatureRows:
    """What identifies the rows of a store: one entry an image, in the manifest's order."""

    label_ids: NDArray[np.int64]
    sha256: Sequence[str]
    paths: Sequence[str]
    splits: Sequence[str]
    groups: Sequence[str]


def write_features(
    path: Path,
    *,
    rows: FeatureRows,
    blocks: Iterable[NDArray[np.float32]],
    n_views: int,
    feature_dim: int,
    classes: Sequence[str],
    contract: Mapping[str, Any],
    fingerprint: str,
) -> None:
    """Write a store atomically; the same rows give the same bytes.

    `blocks` are float32 of shape (n, n_views, feature_dim), together one row an image of `rows`.
    """
    n_images = len(rows.sha256)
    with replacing(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["classes"] = json.dumps(list(classes), ensure_ascii=False)
        file.attrs["contract"] = json.dumps(dict(contract), sort_keys=True)
        file.attrs["fingerprint"] = fingerprint
        file.create_dataset("labels", data=np.asarray(rows.label_ids, np.int64))
        for name in _STRINGS:
            write_strings(file, name, getattr(rows, name))
        features = file.create_dataset("features", (n_images, n_views, feature_dim), np.float32)
        done = 0
        for block in blocks:
            features[done : done + len(block)] = block
            done += len(block)
        if done != n_images:
            raise ValueError(f"expected {n_images} rows of features, got {done}")


class FeatureStore:
    """A features.h5 opened for reading. Use as a context manager.

    Raises:
        FormatError: the file is missing, truncated, of another format or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_h5(path, "run dvc repro extract") as file:
            check_format(file, path, FORMAT, FORMAT_VERSION, "run dvc repro extract")
            self.classes: tuple[str, ...] = tuple(json.loads(file.attrs["classes"]))
            self.contract: dict[str, Any] = json.loads(file.attrs["contract"])
            self.fingerprint = str(file.attrs["fingerprint"])
            self.label_ids: NDArray[np.int64] = file["labels"][...]
            self._encoded = {name: file[name][...] for name in _STRINGS}
            self.features: NDArray[np.float32] = map_dataset(file["features"], path)
        self.sha256, self.paths, self.splits, self.groups = (
            Strings(self._encoded[name]) for name in _STRINGS
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mapped file; batches already loaded stay valid."""
        self.features = np.empty((0, *self.features.shape[1:]), np.float32)

    def __len__(self) -> int:
        return len(self.label_ids)

    @property
    def n_views(self) -> int:
        return int(self.features.shape[1])

    @property
    def feature_dim(self) -> int:
        return int(self.features.shape[2])

    def indices(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split, ascending."""
        return np.flatnonzero(self._encoded["splits"] == split.encode()).astype(np.int64)

    def split(self, name: str) -> FeatureBatch:
        """All rows of a split, in memory."""
        return self.rows(self.indices(name))

    def rows(self, indices: NDArray[np.int64]) -> FeatureBatch:
        """The rows of those numbers, in that order, in memory."""
        return FeatureBatch(
            features=gather(self.features, indices),
            label_ids=self.label_ids[indices],
            sha256=Strings(self._encoded["sha256"], indices),
            paths=Strings(self._encoded["paths"], indices),
            groups=Strings(self._encoded["groups"], indices),
        )
