"""data/features.h5: feature blocks, one row an image (and view), in the manifest's order.

A block is a dataset of its own, `features/<encoder>/<layer>`. The same bytes whatever the history.
Blocks lie contiguously in the file and are mapped into memory, so that a split loads about as fast
as `np.load`, slices of any size are cheap, and several processes may read at once. Knows nothing of
how features are made.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from headstart.common.cost import Cost
from headstart.common.errors import FormatError
from headstart.common.files import replacing
from headstart.common.hdf5 import Strings, check_format, gather, map_dataset, open_h5, write_strings

FORMAT, FORMAT_VERSION = "headstart-features", 2
_STRINGS = ("sha256", "paths", "splits", "groups")


@dataclass(frozen=True)
class FeatureBatch:
    """Rows of one split in memory.

    Attributes:
        features: float32, shape (n_images, n_views, feature_dim): the chosen blocks side by side;
            view 0 is the plain one.
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
    parts: Iterable[NDArray[np.float32]],
    n_views: int,
    encoder: str,
    blocks: Mapping[str, slice],
    classes: Sequence[str],
    recipe: Mapping[str, Any],
    fingerprint: str,
    validation_given: bool = False,
    costs: Mapping[str, Cost] = MappingProxyType({}),
) -> None:
    """Write a store atomically; the same rows give the same bytes.

    Args:
        validation_given: the validation split came with the data.
        costs: of the encoder up to each layer, where it is known.
        parts: float32 (n, n_views, row length), together one row an image of `rows`.
        blocks: layer → its columns of the parts, in the order in which heads see them.
    """
    n_images = len(rows.sha256)
    with replacing(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["classes"] = json.dumps(list(classes), ensure_ascii=False)
        file.attrs["recipe"] = json.dumps(dict(recipe), sort_keys=True)
        file.attrs["fingerprint"] = fingerprint
        file.attrs["validation_given"] = validation_given
        of_blocks = {layer: asdict(costs[layer]) for layer in blocks if layer in costs}
        file.attrs["costs"] = json.dumps(of_blocks, sort_keys=True)
        file.create_dataset("labels", data=np.asarray(rows.label_ids, np.int64))
        for name in _STRINGS:
            write_strings(file, name, getattr(rows, name))
        file.attrs["blocks"] = json.dumps([f"{encoder}/{layer}" for layer in blocks])
        datasets = {
            layer: file.create_dataset(
                f"features/{encoder}/{layer}",
                (n_images, n_views, columns.stop - columns.start),
                np.float32,
            )
            for layer, columns in blocks.items()
        }
        done = 0
        for part in parts:
            for layer, columns in blocks.items():
                datasets[layer][done : done + len(part)] = part[..., columns]
            done += len(part)
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
            # The second is how version 0.1.0 called it.
            recipe = file.attrs.get("recipe") or file.attrs["contract"]
            self.recipe: dict[str, Any] = json.loads(recipe)
            self.fingerprint = str(file.attrs["fingerprint"])
            self.validation_given = bool(file.attrs.get("validation_given", False))
            costs = json.loads(file.attrs.get("costs", "{}"))
            self.costs = {layer: Cost(**values) for layer, values in costs.items()}
            self.label_ids: NDArray[np.int64] = file["labels"][...]
            self._encoded = {name: file[name][...] for name in _STRINGS}
            self._blocks: dict[str, NDArray[np.float32]] = {
                name.partition("/")[2]: map_dataset(file[f"features/{name}"], path)
                for name in json.loads(file.attrs["blocks"])
            }
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
        for name, block in self._blocks.items():
            self._blocks[name] = np.empty((0, *block.shape[1:]), np.float32)

    def __len__(self) -> int:
        return len(self.label_ids)

    @property
    def n_views(self) -> int:
        return int(next(iter(self._blocks.values())).shape[1])

    @property
    def feature_dim(self) -> int:
        """Length of a row of all blocks."""
        return sum(int(block.shape[2]) for block in self._blocks.values())

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose blocks the file holds, the encoder's last one first."""
        return tuple(self._blocks)

    def columns(self, layers: Sequence[str] | None = None) -> dict[str, slice]:
        """Where in a row of these layers' blocks, of all by default, each one lies."""
        found, start = {}, 0
        for layer in self.layers:
            if layers is None or layer in layers:
                width = int(self._blocks[layer].shape[2])
                found[layer] = slice(start, start + width)
                start += width
        return found

    def indices(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split, ascending."""
        return np.flatnonzero(self._encoded["splits"] == split.encode()).astype(np.int64)

    def split(self, *names: str, layers: Sequence[str] | None = None) -> FeatureBatch:
        """All rows of a split, or of several one after the other, in memory."""
        return self.rows(np.concatenate([self.indices(name) for name in names]), layers)

    def rows(self, indices: NDArray[np.int64], layers: Sequence[str] | None = None) -> FeatureBatch:
        """The rows of those numbers, in that order, in memory; of these layers, or of all.

        Raises:
            FormatError: a layer is not in the file.
        """
        if missing := set(layers or ()) - set(self.layers):
            raise FormatError(
                f"{self.path} must hold the blocks {', '.join(sorted(missing))}, but holds "
                f"{', '.join(self.layers)}: run `dvc repro`"
            )
        chosen = [block for name, block in self._blocks.items() if not layers or name in layers]
        found = [gather(block, indices) for block in chosen]
        return FeatureBatch(
            features=found[0] if len(found) == 1 else np.concatenate(found, axis=-1),
            label_ids=self.label_ids[indices],
            sha256=Strings(self._encoded["sha256"], indices),
            paths=Strings(self._encoded["paths"], indices),
            groups=Strings(self._encoded["groups"], indices),
        )
