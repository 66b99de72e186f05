"""What earlier runs found out about files and images, so that nothing is decoded twice.

Two tables beside the feature cache: what a file's bytes hash to (by path, size, time and inode),
and what an image is (by hash). A lost or damaged cache costs time and nothing else.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headstart.common.terminal import say
from headstart.dataset.image_statistics import STATISTICS

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size_bytes INTEGER, mtime_ns INTEGER, inode INTEGER, sha256 BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (
    recipe TEXT, sha256 BLOB, facts BLOB, reason TEXT, sentence TEXT,
    PRIMARY KEY (recipe, sha256)
) WITHOUT ROWID;
"""
_WAIT_FOR_WRITERS_S = 60.0
# A file that is written twice within the clock's grain keeps its time, so a fresh time proves
# nothing ("racy git").
_FRESH_NS = 2_000_000_000


class FileState(NamedTuple):
    """What changes when a file's bytes change, short of reading them."""

    size_bytes: int
    mtime_ns: int
    inode: int


class Finding(NamedTuple):
    """What is known of an image: its statistics (bytes of one row), or why it is rejected."""

    sha256: bytes
    statistics: bytes | None
    reason: str = ""
    sentence: str = ""


class KnownImages:
    """The cache. Safe with several processes; without `path` it knows nothing."""

    def __init__(self, path: Path | None, recipe: str) -> None:
        self.path = path
        self.recipe = recipe
        self._database = None if path is None else _open(path)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def hashes(self, files: Sequence[tuple[str, FileState]]) -> dict[str, bytes]:
        """sha256 of those files whose state is as it was when they were last read."""
        states = dict(files)
        rows = self._select(
            "SELECT path, size_bytes, mtime_ns, inode, sha256 FROM files WHERE path IN",
            list(states),
        )
        return {row[0]: row[4] for row in rows if states[row[0]] == FileState(*row[1:4])}

    def findings(self, hashes: Iterable[bytes]) -> dict[bytes, Finding]:
        """What is known of images with these hashes."""
        wanted = list(set(hashes))
        rows = self._select(
            "SELECT sha256, facts, reason, sentence FROM images WHERE recipe = ? AND sha256 IN",
            wanted,
            self.recipe,
        )
        return {row[0]: Finding(*row) for row in rows if _is_whole(row[1])}

    def remember(
        self, files: Iterable[tuple[str, FileState, bytes]], findings: Iterable[Finding]
    ) -> None:
        """Note what files hash to and what images are."""
        fresh = time.time_ns() - _FRESH_NS
        states = [
            (path, state.size_bytes, state.mtime_ns, state.inode, sha256)
            for path, state, sha256 in files
            if state.mtime_ns < fresh
        ]
        images = [(self.recipe, f.sha256, f.statistics, f.reason, f.sentence) for f in findings]
        if self._database is None:
            return
        try:
            with self._database:
                self._database.executemany("REPLACE INTO files VALUES (?, ?, ?, ?, ?)", states)
                self._database.executemany("REPLACE INTO images VALUES (?, ?, ?, ?, ?)", images)
        except sqlite3.Error as error:
            self._give_up(error)

    def _select(self, query: str, keys: Sequence[object], *before: object) -> list[tuple[Any, ...]]:
        if self._database is None or not keys:
            return []
        marks = ", ".join("?" * len(keys))
        try:
            return self._database.execute(f"{query} ({marks})", [*before, *keys]).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _give_up(self, error: sqlite3.Error) -> None:
        say(f"ingest: going on without the cache {self.path}: {error}", error=True)
        self.close()


def file_state(status: os.stat_result) -> FileState:
    """The state of a file from its `stat`."""
    return FileState(status.st_size, status.st_mtime_ns, status.st_ino)


def _is_whole(statistics: bytes | None) -> bool:
    return statistics is None or len(statistics) == STATISTICS.itemsize


def _open(path: Path) -> sqlite3.Connection | None:
    """The database at `path`; a damaged one is set aside; none if it cannot be had at all."""
    try:
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        say(f"ingest: the cache {path} is damaged; it is set aside as {aside.name}", error=True)
        return _connect(path)
    except (sqlite3.Error, OSError) as error:
        say(f"ingest: going on without the cache {path}: {error}", error=True)
        return None


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=_WAIT_FOR_WRITERS_S)
    try:
        # What a crash of the machine may cost here is not worth a flush for every transaction.
        database.execute("PRAGMA synchronous = OFF")
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database
