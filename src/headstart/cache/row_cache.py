"""The feature cache of one fingerprint: immutable shards in a folder that all workspaces share.

The index is what the shards say; there is nothing else to go stale. Any number of processes may
add shards and merge small ones at once. Knows nothing of images or of how rows are made.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from headstart.cache.shards import KEY, Keys, Shard, read_shard, write_shard
from headstart.common.errors import FormatError
from headstart.common.files import write_json

_SMALL_BYTES = 16 << 20
_MERGED_BYTES = 64 << 20
_MOST_SMALL = 12
_MOST_RECENT = 32


class DamagedShardWarning(UserWarning):
    """A shard failed its checks; it was set aside, and its rows are extracted again."""


@dataclass(frozen=True)
class _Index:
    """Sorted keys, and in which shard and row each one lies."""

    keys: Keys
    shards: NDArray[np.int32]
    rows: NDArray[np.int32]

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Positions of `keys`, -1 where there is none."""
        if len(self.keys) == 0:
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1).astype(np.int64)


_EMPTY = _Index(np.empty(0, KEY), np.empty(0, np.int32), np.empty(0, np.int32))


class FeatureCache:
    """Rows by key, under `folder`, which one fingerprint owns.

    Every shard is checked against its checksum before a row of it is counted as present. Where the
    folder cannot be written, its rows can be read all the same.
    """

    def __init__(self, folder: Path, contract: Mapping[str, Any]) -> None:
        self.folder = folder
        self.contract = dict(contract)
        self.shards_folder = folder / "shards"
        # What cannot be written is said by who must write, which is `add` alone.
        with contextlib.suppress(OSError):
            self.shards_folder.mkdir(parents=True, exist_ok=True)
            if (folder / "contract.json").exists():
                # The time of last use, for those who make room.
                os.utime(folder / "contract.json")
            else:
                write_json(folder / "contract.json", self.contract)
        self._shards: dict[str, Shard] = {}
        self._sound: set[str] = set()
        self._ignored: set[str] = set()
        self._names: list[str] = []
        self._base, self._recent = _EMPTY, _EMPTY
        self._recent_names: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes added or merged since."""
        present = {path.name: path for path in sorted(self.shards_folder.glob("[!.]*.h5"))}
        present = {name: path for name, path in present.items() if name not in self._ignored}
        gone = self._shards.keys() - present.keys()
        new = [path for name, path in present.items() if name not in self._shards]
        if not gone and not new:
            return
        for name in gone:
            del self._shards[name]
        for path in new:
            with contextlib.suppress(FileNotFoundError):
                self._take_in(path)
        self._reindex(rebuild=bool(gone), new={path.name for path in new})

    def _take_in(self, path: Path) -> None:
        try:
            self._shards[path.name] = read_shard(path)
        except FormatError as error:
            self._set_aside(path, str(error))

    def _reindex(self, *, rebuild: bool, new: set[str]) -> None:
        if rebuild or len(self._recent_names | new) > _MOST_RECENT:
            self._names = sorted(self._shards)
            self._base, self._recent = self._indexed(self._names), _EMPTY
            self._recent_names = set()
            return
        added = sorted(new & self._shards.keys())
        self._names.extend(added)
        self._recent_names.update(added)
        self._recent = self._indexed([n for n in self._names if n in self._recent_names])

    def _indexed(self, names: Sequence[str]) -> _Index:
        if not names:
            return _EMPTY
        numbers = {name: number for number, name in enumerate(self._names)}
        keys = np.concatenate([self._shards[name].keys for name in names])
        counts = [len(self._shards[name].keys) for name in names]
        shards = np.repeat(np.array([numbers[name] for name in names], np.int32), counts)
        rows = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        order = np.argsort(keys, kind="stable")
        return _Index(keys[order], shards[order], rows[order])

    def _locate(self, keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Shard number and row of each key; shard -1 where there is none."""
        shards = np.full(len(keys), -1, np.int32)
        rows = np.zeros(len(keys), np.int32)
        for index in (self._base, self._recent):
            at = index.find(keys)
            found = at >= 0
            shards[found], rows[found] = index.shards[at[found]], index.rows[at[found]]
        return shards, rows

    def missing(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of `keys` have no sound row. Damaged shards met on the way are set aside."""
        while True:
            shards, _ = self._locate(keys)
            needed = {self._names[number] for number in np.unique(shards[shards >= 0])}
            if all(self._check(name) for name in sorted(needed - self._sound)):
                return shards < 0
            self.refresh()

    def _check(self, name: str) -> bool:
        try:
            sound = self._shards[name].is_sound()
        except (FormatError, OSError):
            sound = False
        if sound:
            self._sound.add(name)
        elif (self.shards_folder / name).exists():
            self._set_aside(self.shards_folder / name, "its checksum does not match")
        return sound

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = self.folder / "damaged" / path.name
        try:
            aside.parent.mkdir(exist_ok=True)
            path.replace(aside)
            outcome = f"it was moved to {aside.parent}"
        except FileNotFoundError:
            return
        except OSError:
            self._ignored.add(path.name)
            outcome = "it cannot be moved away, so it is ignored"
        warnings.warn(
            f"a cache shard must be whole, but {path} is not ({reason}): {outcome} and its rows "
            "are extracted again",
            DamagedShardWarning,
            stacklevel=4,
        )

    def read(self, keys: Keys) -> NDArray[np.float32]:
        """The rows of `keys`, float32, shape (n, feature_dim), in their order.

        Raises:
            KeyError: a row is missing; ask `missing` first.
        """
        while True:
            shards, rows = self._locate(keys)
            if (shards < 0).any():
                raise KeyError(f"{int((shards < 0).sum())} rows are not in {self.folder}")
            try:
                return self._gather(shards, rows)
            except FileNotFoundError:
                self.refresh()

    def _gather(self, shards: NDArray[np.int32], rows: NDArray[np.int32]) -> NDArray[np.float32]:
        result = np.empty((len(shards), self.feature_dim), np.float32)
        for number in np.unique(shards):
            chosen = shards == number
            result[chosen] = self._shards[self._names[number]].features()[rows[chosen]]
        return result

    @property
    def feature_dim(self) -> int:
        """Length of a row; 0 while there is none."""
        return next((shard.feature_dim for shard in self._shards.values()), 0)

    def add(self, keys: Keys, features: NDArray[np.float32], provenance: Mapping[str, Any]) -> None:
        """Write rows as a new shard."""
        dim = features.shape[1]
        write_shard(self.shards_folder, keys, lambda: [features], dim, self.contract, provenance)

    def merge(self) -> int:
        """Make few large shards of many small ones; returns how many small ones are gone.

        Each row stays readable throughout: the merged shard is in place before the small ones go.
        Does nothing while another process merges, where there are few, or where there is no room.
        """
        lock = FileLock(self.folder / "merge.lock", thread_local=False)
        try:
            with lock.acquire(blocking=False):
                self.refresh()
                return sum(self._merge(group) for group in self._groups())
        except (Timeout, OSError):
            return 0

    def _groups(self) -> list[list[Shard]]:
        """Small shards, put together up to the size of a large one; oldest first."""
        small = [(shard.path.stat(), shard) for shard in self._shards.values()]
        small = [(stat, shard) for stat, shard in small if stat.st_size < _SMALL_BYTES]
        if len(small) <= _MOST_SMALL:
            return []
        groups: list[list[Shard]] = [[]]
        total = 0
        for stat, shard in sorted(small, key=lambda pair: (pair[0].st_mtime_ns, pair[1].path)):
            if total + stat.st_size > _MERGED_BYTES:
                groups.append([])
                total = 0
            groups[-1].append(shard)
            total += stat.st_size
        return [group for group in groups if len(group) > 1]

    def _merge(self, group: Sequence[Shard]) -> int:
        sound = [shard for shard in group if self._check(shard.path.name)]
        if len(sound) < 2:
            return 0
        keys = np.concatenate([shard.keys for shard in sound])
        _, first = np.unique(keys, return_index=True)
        kept = np.zeros(len(keys), bool)
        kept[first] = True

        def pieces() -> Iterator[NDArray[np.float32]]:
            done = 0
            for shard in sound:
                for piece in shard.pieces():
                    yield piece[kept[done : done + len(piece)]]
                    done += len(piece)

        dim = sound[0].feature_dim
        merged = write_shard(
            self.shards_folder, keys[kept], pieces, dim, self.contract, _shared(sound)
        )
        for shard in sound:
            if shard.path != merged:
                shard.path.unlink(missing_ok=True)
        self.refresh()
        return len(sound)


def _shared(shards: Sequence[Shard]) -> dict[str, Any]:
    """Provenance of a merged shard: what the parts agree on, and the list where they do not."""
    first = shards[0].provenance
    if all(shard.provenance == first for shard in shards):
        return first
    names = sorted({name for shard in shards for name in shard.provenance})
    return {name: sorted({str(shard.provenance.get(name)) for shard in shards}) for name in names}
