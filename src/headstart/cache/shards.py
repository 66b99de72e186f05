"""One immutable shard of the row cache: rows by key, written aside, checksummed, renamed.

A key is an image's sha256 (32 bytes) and what view of it was taken (8 bytes). A shard is named
after its checksum, so that whoever writes the same rows writes the same name. Knows nothing of
other shards.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import FormatError
from headstart.common.files import replacing
from headstart.common.hdf5 import check_format, map_dataset, open_h5

FORMAT, FORMAT_VERSION = "headstart-feature-shard", 1
KEY_BYTES = 40
KEY = np.dtype(f"S{KEY_BYTES}")
PLAIN_VIEW = bytes(8)

_REMEDY = "it is set aside and its rows are computed again"

Keys = NDArray[np.bytes_]
Rows = NDArray[Any]


def row_keys(sha256: Sequence[str], view: bytes = PLAIN_VIEW) -> Keys:
    """Keys of one view of each image, shape (n,), from hexadecimal sha256s."""
    digests = np.frombuffer(bytes.fromhex("".join(sha256)), np.uint8).reshape(-1, 32)
    views = np.broadcast_to(np.frombuffer(view, np.uint8), (len(digests), 8))
    return np.ascontiguousarray(np.hstack([digests, views])).view(KEY).reshape(-1)


@dataclass(frozen=True)
class Shard:
    """What a shard's head says: its path, the keys of its rows, and what they depend on."""

    path: Path
    keys: Keys
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    checksum: str
    recipe: dict[str, Any]
    provenance: dict[str, Any]

    def rows(self) -> Rows:
        """The rows mapped into memory, shape (n, *row_shape).

        Raises:
            FileNotFoundError: the shard was removed meanwhile.
        """
        with h5py.File(self.path, "r", locking=False) as file:
            return map_dataset(file[_ROWS], self.path)

    def is_sound(self) -> bool:
        """Whether keys and rows have the checksum that the head states."""
        with h5py.File(self.path, "r", locking=False) as file:
            # Read and not mapped: a damaged disk is an error and no signal.
            return _checksum(self.keys, file[_ROWS][...]) == self.checksum


# The name is that of the rows that were first kept.
_ROWS = "features"


def write_shard(
    folder: Path, keys: Keys, rows: Rows, recipe: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Path:
    """Write rows, shape (n, *row_shape), one per key, as a new shard; returns its path."""
    checksum = _checksum(keys, rows)
    path = folder / f"{checksum[:32]}.h5"
    with replacing(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["recipe"] = json.dumps(dict(recipe), sort_keys=True)
        file.attrs["provenance"] = json.dumps(dict(provenance), sort_keys=True)
        file.attrs["checksum"] = checksum
        file.create_dataset("keys", data=_raw(keys))
        file.create_dataset(_ROWS, data=rows)
    return path


def read_shard(path: Path) -> Shard:
    """Read a shard's head.

    Raises:
        FormatError: it is truncated, damaged, of another format or version.
        FileNotFoundError: it was removed meanwhile.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    with open_h5(path, _REMEDY) as file:
        check_format(file, path, FORMAT, FORMAT_VERSION, _REMEDY)
        try:
            raw, rows = file["keys"][...], file[_ROWS]
            map_dataset(rows, path)
            return Shard(
                path=path,
                keys=np.ascontiguousarray(raw).view(KEY).reshape(-1),
                row_shape=tuple(map(int, rows.shape[1:])),
                dtype=rows.dtype,
                checksum=str(file.attrs["checksum"]),
                recipe=json.loads(file.attrs.get("recipe") or file.attrs["contract"]),
                provenance=json.loads(file.attrs["provenance"]),
            )
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            raise FormatError(f"{path} is damaged ({error}): {_REMEDY}") from None


def _raw(keys: Keys) -> NDArray[np.uint8]:
    return np.ascontiguousarray(keys, KEY).view(np.uint8).reshape(-1, KEY_BYTES)


def _checksum(keys: Keys, rows: Rows) -> str:
    digest = hashlib.sha256(_raw(keys).tobytes())
    digest.update(np.asarray(rows.shape, "<i8").tobytes())
    digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()
