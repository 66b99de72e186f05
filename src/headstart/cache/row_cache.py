"""The row cache: rows of one dtype and shape by content key, under a recipe.

Rows lie in immutable shards in a folder that all workspaces share; the index is what the shards
say, so there is nothing else to go stale. One process at a time computes what is missing; whoever
waited for it finds it there. Knows nothing of images or of how rows are made.
"""

import contextlib
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, ReadWriteLock, Timeout
from numpy.typing import NDArray

from headstart.cache.shards import KEY, Keys, Rows, Shard, read_shard, write_shard
from headstart.common.errors import DiskError, FormatError, one_line
from headstart.common.files import write_json
from headstart.common.progress import begin_step

RECIPE = "recipe.json"
# A shard is written when it has so many rows or bytes, or after so long: what a kill may cost.
SHARD_ROWS, _SHARD_BYTES, _SHARD_SECONDS = 2048, 32 << 20, 10.0

# Rows of the given keys, in whatever pieces and order they come.
Compute = Callable[[Keys], Iterable[tuple[Keys, Rows]]]


class DamagedShardWarning(UserWarning):
    """A shard failed its checks; it was set aside, and its rows are computed again."""


class RowCache:
    """Rows by key, under `folder`, which one recipe owns.

    Every shard is checked against its checksum before a row of it is counted as present. Where the
    folder cannot be written, its rows can be read all the same.
    """

    def __init__(
        self, folder: Path, recipe: Mapping[str, Any], *, shard_rows: int = SHARD_ROWS
    ) -> None:
        self.folder = folder
        self.recipe = dict(recipe)
        self.shard_rows = shard_rows
        self.shards_folder = folder / "shards"
        self._shards: dict[str, Shard] = {}
        self._mapped: dict[str, Rows] = {}
        self._sound: set[str] = set()
        self._ignored: set[str] = set()
        self._names: list[str] = []
        self._keys = np.empty(0, KEY)
        self._shard_of, self._row_of = np.empty(0, np.int32), np.empty(0, np.int32)
        self.refresh()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Nobody makes room by removing these rows meanwhile; notes that they are used now."""
        with contextlib.ExitStack() as stack:
            # Where this cannot be written, rows can be read, and nobody can remove them.
            with contextlib.suppress(OSError, sqlite3.Error):
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(use_lock(self.folder).read_lock())
                os.utime(self.folder / RECIPE)
            self.refresh()
            yield

    def refresh(self) -> None:
        """Take in the shards that were added or removed since."""
        present = {path.name: path for path in sorted(self.shards_folder.glob("[!.]*.h5"))}
        found: dict[str, Shard] = {}
        for name in sorted(present.keys() - self._ignored):
            if name in self._shards:
                found[name] = self._shards[name]
                continue
            try:
                found[name] = read_shard(present[name])
            except FormatError as error:
                self._set_aside(present[name], str(error))
            except FileNotFoundError:
                continue
        if found.keys() == self._shards.keys():
            return
        self._shards, self._names = found, list(found)
        keys = [np.empty(0, KEY), *(shard.keys for shard in found.values())]
        counts = [len(own) for own in keys[1:]]
        shards = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        rows = [np.empty(0, np.int32), *(np.arange(count, dtype=np.int32) for count in counts)]
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        self._keys, self._shard_of = joined[order], shards[order]
        self._row_of = np.concatenate(rows)[order]

    def _locate(self, keys: Keys) -> NDArray[np.int64]:
        """Positions of `keys` in the index, -1 where there is none."""
        if len(self._keys) == 0:
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, at, -1).astype(np.int64)

    def missing(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of `keys` have no sound row. Damaged shards met on the way are set aside."""
        while True:
            at = self._locate(keys)
            needed = {self._names[number] for number in np.unique(self._shard_of[at[at >= 0]])}
            if all(self._check(name) for name in sorted(needed - self._sound)):
                return at < 0
            self.refresh()

    def _check(self, name: str) -> bool:
        try:
            is_sound = self._shards[name].is_sound()
        except (FormatError, OSError):
            is_sound = False
        if is_sound:
            self._sound.add(name)
        elif (self.shards_folder / name).exists():
            self._set_aside(self.shards_folder / name, "its checksum does not match")
        return is_sound

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
            "are computed again",
            DamagedShardWarning,
            stacklevel=4,
        )

    def get(self, keys: Keys) -> Rows:
        """The rows of `keys`, shape (n, *row_shape), in their order.

        Raises:
            KeyError: a row is missing; ask `missing` first.
        """
        at = self._locate(keys)
        if (at < 0).any():
            raise KeyError(f"{int((at < 0).sum())} rows are not in {self.folder}")
        shards, rows = self._shard_of[at], self._row_of[at]
        first = next(iter(self._shards.values()), None)
        result = np.empty(
            (len(keys), *self.row_shape), np.float32 if first is None else first.dtype
        )
        for number in np.unique(shards):
            chosen = shards == number
            name = self._names[number]
            if name not in self._mapped:
                self._mapped[name] = self._shards[name].rows()
            result[chosen] = self._mapped[name][rows[chosen]]
        return result

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row; (0,) while there is none."""
        return next((shard.row_shape for shard in self._shards.values()), (0,))

    def fill(
        self, keys: Keys, compute: Compute, provenance: Callable[[], Mapping[str, Any]]
    ) -> int:
        """Compute and keep the rows of `keys` that are missing; returns how many those were.

        Where another process computes rows of this recipe, this one waits, and then computes what
        is still missing. What was computed before an error or a kill is kept.

        Args:
            provenance: what the rows may depend on beside the recipe, noted in each shard. Asked
                for in the thread that writes.

        Raises:
            DiskError: rows are missing and the folder cannot be written.
        """
        if not self.missing(keys).any():
            return 0
        with self.writer(provenance) as writer:
            lacking = np.unique(keys[self.missing(keys)])
            if len(lacking):
                for own, rows in compute(lacking):
                    writer.put(own, rows)
        return len(lacking)

    @contextlib.contextmanager
    def writer(self, provenance: Callable[[], Mapping[str, Any]]) -> Iterator["ShardWriter"]:
        """The one writer of this recipe's rows, when it is this process's turn.

        Raises:
            DiskError: the folder cannot be written.
        """
        lock = write_lock(self.folder)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                begin_step("waiting for another process that fills the same part of the cache")
                lock.acquire()
            self.shards_folder.mkdir(parents=True, exist_ok=True)
            # Nobody else writes: what is unfinished was left by a process that was killed.
            for path in unfinished(self.folder):
                path.unlink(missing_ok=True)
            if not (self.folder / RECIPE).exists():
                write_json(self.folder / RECIPE, self.recipe)
        except OSError as error:
            lock.release()
            raise DiskError(
                f"the cache must be writable while it lacks rows, but {self.folder} is not "
                f"({error.strerror or one_line(error)}): make room or change its mode, or set "
                "HEADSTART_CACHE to another folder"
            ) from None
        try:
            self.refresh()
            with ShardWriter(self, provenance) as writer:
                yield writer
        finally:
            lock.release()
            self.refresh()

    def put(self, keys: Keys, rows: Rows, provenance: Mapping[str, Any]) -> None:
        """Write rows as a new shard; `refresh` takes it in."""
        path = write_shard(self.shards_folder, keys, rows, self.recipe, provenance)
        self._sound.add(path.name)


class ShardWriter:
    """Collects rows and writes them as shards in a thread of its own. Use as a context manager."""

    def __init__(self, cache: RowCache, provenance: Callable[[], Mapping[str, Any]]) -> None:
        self._cache, self._provenance = cache, provenance
        self._keys: list[Keys] = []
        self._rows: list[Rows] = []
        self._since = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        # Also after an error: what was computed is kept.
        try:
            self._start_writing()
            self._wait()
        finally:
            self._pool.shutdown()

    def put(self, keys: Keys, rows: Rows) -> None:
        """Take rows; writes a shard when enough have come, or after a while."""
        self._keys.append(keys)
        self._rows.append(rows)
        is_full = (
            sum(map(len, self._keys)) >= self._cache.shard_rows
            or sum(own.nbytes for own in self._rows) >= _SHARD_BYTES
        )
        if is_full or time.monotonic() - self._since > _SHARD_SECONDS:
            self._start_writing()

    def _start_writing(self) -> None:
        self._wait()
        if self._keys:
            keys, rows = np.concatenate(self._keys), np.concatenate(self._rows)
            self._writing = self._pool.submit(self._put, keys, rows)
        self._keys, self._rows = [], []
        self._since = time.monotonic()

    def _put(self, keys: Keys, rows: Rows) -> None:
        self._cache.put(keys, rows, self._provenance())

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def use_lock(folder: Path) -> ReadWriteLock:
    """Held shared by those who use the rows of a folder, alone by who removes them.

    It lies beside the folder, so that whoever waited for a removal makes the folder anew.
    """
    # One for each caller: what one and the same lock is held for cannot be asked of it again.
    return ReadWriteLock(folder.with_name(f".{folder.name}.in-use.lock"), is_singleton=False)


def write_lock(folder: Path) -> FileLock:
    """Held by the one process that adds rows."""
    return FileLock(folder.with_name(f".{folder.name}.write.lock"), thread_local=False)


def unfinished(folder: Path) -> Sequence[Path]:
    """Shards that were begun and not finished."""
    return list((folder / "shards").glob(".*.tmp.h5"))
