"""One immutable shard of the feature cache: rows by key, written aside, checksummed, renamed.

A key is an image's sha256 (32 bytes) and what view of it was taken (8 bytes). A shard is named
after its checksum, so that whoever writes the same rows writes the same name. Knows nothing of
other shards.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

_REMEDY = "it is set aside and its rows are extracted again"
_BLOCK_ROWS = 1024

Keys = NDArray[np.bytes_]
# Rows in pieces, float32 (n, feature_dim) each; called anew for each pass over them.
Pieces = Callable[[], Iterable[NDArray[np.float32]]]


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
    feature_dim: int
    checksum: str
    contract: dict[str, Any]
    provenance: dict[str, Any]

    def features(self) -> NDArray[np.float32]:
        """The rows mapped into memory, float32, shape (n, feature_dim).

        Raises:
            FileNotFoundError: the shard was merged into another meanwhile.
        """
        with h5py.File(self.path, "r", locking=False) as file:
            return map_dataset(file["features"], self.path)

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """The rows a thousand at a time, read and not mapped: a shard is never whole in memory."""
        with h5py.File(self.path, "r", locking=False) as file:
            features = file["features"]
            for start in range(0, len(features), _BLOCK_ROWS):
                yield features[start : start + _BLOCK_ROWS]

    def is_sound(self) -> bool:
        """Whether keys and rows have the checksum that the head states."""
        return _checksum(self.keys, self.feature_dim, self.pieces()) == self.checksum


def write_shard(
    folder: Path,
    keys: Keys,
    pieces: Pieces,
    feature_dim: int,
    contract: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Path:
    """Write rows, one a key, as a new shard of `folder`; returns its path."""
    checksum = _checksum(keys, feature_dim, pieces())
    path = folder / f"{checksum[:32]}.h5"
    with replacing(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["contract"] = json.dumps(dict(contract), sort_keys=True)
        file.attrs["provenance"] = json.dumps(dict(provenance), sort_keys=True)
        file.attrs["checksum"] = checksum
        file.create_dataset("keys", data=_raw(keys))
        features = file.create_dataset("features", (len(keys), feature_dim), np.float32)
        done = 0
        for piece in pieces():
            features[done : done + len(piece)] = piece
            done += len(piece)
    return path


def read_shard(path: Path) -> Shard:
    """Read a shard's head.

    Raises:
        FormatError: it is truncated, damaged, of another format or version.
        FileNotFoundError: it was merged into another meanwhile.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    with open_h5(path, _REMEDY) as file:
        check_format(file, path, FORMAT, FORMAT_VERSION, _REMEDY)
        try:
            raw, features = file["keys"][...], file["features"]
            map_dataset(features, path)
            return Shard(
                path=path,
                keys=np.ascontiguousarray(raw).view(KEY).reshape(-1),
                feature_dim=int(features.shape[1]),
                checksum=str(file.attrs["checksum"]),
                contract=json.loads(file.attrs["contract"]),
                provenance=json.loads(file.attrs["provenance"]),
            )
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            raise FormatError(f"{path} is damaged ({error}): {_REMEDY}") from None


def _raw(keys: Keys) -> NDArray[np.uint8]:
    return np.ascontiguousarray(keys, KEY).view(np.uint8).reshape(-1, KEY_BYTES)


def _checksum(keys: Keys, feature_dim: int, pieces: Iterable[NDArray[np.float32]]) -> str:
    digest = hashlib.sha256(_raw(keys).tobytes())
    digest.update(np.asarray((len(keys), feature_dim), "<i8").tobytes())
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece, np.float32).data)
    return digest.hexdigest()
