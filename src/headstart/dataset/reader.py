"""One pass over the bytes of many files, on all cores, with bounded memory.

Each file is read, hashed and decoded once, and its statistics taken, in a worker process, so that a
decoder that crashes on a hostile file takes nothing with it. What earlier runs found of the same
files and of the same bytes is kept in a cache and not computed again; a lost or damaged cache costs
time and nothing else.
"""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.common.interrupts import children_ignoring_interrupts
from headstart.common.machine import usable_cores
from headstart.common.progress import progress_bar
from headstart.common.terminal import say
from headstart.dataset.image_statistics import (
    STATISTICS,
    Sample,
    recipe,
    sample,
    sample_and_input,
    statistics_of,
)
from headstart.images.decode import RejectedImage
from headstart.images.memory import keep_freed_memory
from headstart.params.image import ImageParams

_FILES_LOOKED_UP_AT_ONCE = 1024
_FILES_A_TASK = 32
_FILES_REMEMBERED_AT_ONCE = 256
_TASKS_AHEAD_A_WORKER = 4
_FEW_FILES = 32
_MEGABYTE = 1_000_000
_BYTES_HELD = 16 * _MEGABYTE

# What depends on more than an image's bytes is not remembered for them.
_PASSING_REASONS = frozenset(
    {"missing", "unreadable", "file_too_large", "out_of_memory", "crashed"}
)


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may ask of the reader."""

    max_pixels: int
    max_file_mb: float


# Images by their sha256 with their input pixels, uint8 (n, size, size, 3).
OnPixels = Callable[[list[bytes], NDArray[np.uint8]], None]


@dataclass(frozen=True)
class Reading:
    """What files came to: `statistics[i]` (dtype STATISTICS) of file i, unless `rejected` has i."""

    statistics: NDArray[Any]
    rejected: dict[int, tuple[str, str]] = field(default_factory=dict)
    n_decoded: int = 0


class FileState(NamedTuple):
    """What changes when a file's bytes change, short of reading them."""

    size_bytes: int
    mtime_ns: int
    inode: int


class ImageRecord(NamedTuple):
    """What is kept of an image: its statistics (bytes of one row), or why it is rejected."""

    sha256: bytes
    statistics: bytes | None
    reason: str = ""
    sentence: str = ""


# Tuples, because they cross from process to process: a dataclass takes many times as long.
class _Outcome(NamedTuple):
    number: int
    state: FileState | None
    record: ImageRecord
    is_new: bool
    pixels: NDArray[np.uint8] | None = None


_Item = tuple[int, str]


def read_images(
    folder: Path,
    paths: Sequence[str],
    limits: Limits,
    *,
    cache: Path | None = None,
    n_workers: int | None = None,
    image: ImageParams | None = None,
    on_pixels: OnPixels | None = None,
) -> Reading:
    """Read the files at `paths` below `folder`; `cache` is the file of what earlier runs found.

    Whatever is decoded is resized to the input of `image`, where that is given, and handed to
    `on_pixels`.
    """
    statistics = np.zeros(len(paths), STATISTICS)
    rejected: dict[int, tuple[str, str]] = {}
    n_decoded = 0
    kept = StatisticsCache(cache, recipe(limits.max_pixels))
    workers = _Workers(limits, cache, image, n_workers or usable_cores())
    handed: set[bytes] = set()
    with progress_bar(total=len(paths), unit="images", title="ingest") as bar:
        for outcomes in _all_outcomes(folder, paths, kept, workers):
            for outcome in outcomes:
                record = outcome.record
                if record.statistics is None:
                    rejected[outcome.number] = (record.reason, record.sentence)
                else:
                    statistics[outcome.number] = np.frombuffer(record.statistics, STATISTICS)[0]
            n_decoded += sum(outcome.is_new for outcome in outcomes)
            found = {o.record.sha256: o.pixels for o in outcomes if o.pixels is not None}
            new = [sha256 for sha256 in found if sha256 not in handed]
            if on_pixels is not None and new:
                on_pixels(new, np.stack([found[sha256] for sha256 in new]))
                handed.update(new)
            bar.update(len(outcomes))
    kept.close()
    return Reading(statistics, rejected, n_decoded)


def _all_outcomes(
    folder: Path, paths: Sequence[str], cache: "StatisticsCache", workers: "_Workers"
) -> Iterator[list[_Outcome]]:
    """Yield the outcomes of all files in the order in which they come in, cached ones first."""
    waiting: list[_Outcome] = []

    def remember() -> None:
        lasting = [o for o in waiting if o.record.reason not in _PASSING_REASONS]
        names = [str(folder / paths[o.number]) for o in lasting]
        cache.remember(
            ((n, o.state, o.record.sha256) for n, o in zip(names, lasting, strict=True) if o.state),
            (o.record for o in lasting if o.is_new),
        )
        waiting.clear()

    with workers:
        for start in range(0, len(paths), _FILES_LOOKED_UP_AT_ONCE):
            names = paths[start : start + _FILES_LOOKED_UP_AT_ONCE]
            items = [(start + i, str(folder / name)) for i, name in enumerate(names)]
            states = []
            for _, path in items:
                try:
                    states.append((path, _state_of(os.stat(path))))  # noqa: PTH116 (a string, many times)
                except OSError:
                    continue
            hashes = cache.hashes(states)
            records = cache.records(hashes.values())
            cached = [
                _Outcome(number, None, records[hashes[path]], is_new=False)
                for number, path in items
                if path in hashes and hashes[path] in records
            ]
            yield cached
            seen = {outcome.number for outcome in cached}
            found = workers.read(item for item in items if item[0] not in seen)
            is_last = start + len(names) == len(paths)
            for outcomes in itertools.chain(found, workers.rest() if is_last else ()):
                waiting.extend(outcome._replace(pixels=None) for outcome in outcomes)
                if len(waiting) >= _FILES_REMEMBERED_AT_ONCE:
                    remember()
                yield outcomes
    remember()


class _Workers:
    """Processes that read files. A few files are read in this process instead."""

    def __init__(
        self, limits: Limits, cache: Path | None, image: ImageParams | None, n_workers: int
    ) -> None:
        self._begin = (limits, cache, image)
        self._task_size = _FILES_A_TASK
        if image is not None:
            self._task_size = max(1, min(_FILES_A_TASK, _BYTES_HELD // (3 * image.size**2)))
        self._n_workers = n_workers
        self._pool: ProcessPoolExecutor | None = None
        self._pending: dict[Future[list[_Outcome]], list[_Item]] = {}
        self._task: list[_Item] = []

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, items: Iterable[_Item]) -> Iterator[list[_Outcome]]:
        """Take items to read; yield outcomes of these and earlier ones, as they come."""
        for item in items:
            self._task.append(item)
            if len(self._task) >= (self._task_size if self._pool else _FEW_FILES):
                self._submit_task()
            if len(self._pending) >= _TASKS_AHEAD_A_WORKER * self._n_workers:
                yield from self._collect()

    def rest(self) -> Iterator[list[_Outcome]]:
        """Yield outcomes of all items that were taken and not answered yet."""
        if self._task and self._pool is None:
            task, self._task = self._task, []
            yield _Reader(*self._begin).read(task)
        elif self._task:
            self._submit_task()
        while self._pending:
            yield from self._collect()

    def _submit_task(self) -> None:
        self._pending[self._submit(self._task)] = self._task
        self._task = []

    def _submit(self, task: list[_Item]) -> "Future[list[_Outcome]]":
        try:
            if self._pool is None:
                # Processes that start clean: a fork would copy the locks of this process's threads.
                methods = multiprocessing.get_all_start_methods()
                method = "forkserver" if "forkserver" in methods else "spawn"
                context = multiprocessing.get_context(method)
                if method == "forkserver":
                    context.set_forkserver_preload([__name__])
                    # Now rather than with the first worker, so that all of them leave Ctrl-C to
                    # this process.
                    with children_ignoring_interrupts():
                        forkserver.ensure_running()
                self._pool = ProcessPoolExecutor(
                    self._n_workers, context, initializer=_begin_worker, initargs=self._begin
                )
            # It begins processes, and would not know of one in whose beginning it is interrupted.
            with children_ignoring_interrupts(), _without_main():
                return self._pool.submit(_read_in_worker, task)
        except BrokenProcessPool as error:
            broken: Future[list[_Outcome]] = Future()
            broken.set_exception(error)
            return broken

    def _collect(self) -> Iterator[list[_Outcome]]:
        """Yield outcomes of what is ready; after a crash, of everything that was under way."""
        ready, _ = wait(self._pending, return_when=FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in ready):
            ready, _ = wait(self._pending)
        suspects: list[_Item] = []
        for future in ready:
            task = self._pending.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                suspects += task
            else:
                yield future.result()
        if suspects:
            self._stop()
        for item in suspects:
            # Alone, so that the one that crashes the decoder is known.
            try:
                yield self._submit([item]).result()
            except BrokenProcessPool:
                self._stop()
                record = ImageRecord(b"", None, "crashed", "The decoder crashed on it.")
                yield [_Outcome(item[0], None, record, is_new=True)]

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module: a process begun meanwhile does not import it, a second for a stage."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@dataclass(frozen=True, slots=True)
class _File:
    number: int
    state: FileState
    data: bytes
    sha256: bytes


class _Reader:
    """What one process needs to read files."""

    def __init__(self, limits: Limits, cache: Path | None, image: ImageParams | None) -> None:
        self.limits, self.image = limits, image
        self.cache = StatisticsCache(cache, recipe(limits.max_pixels))

    def read(self, items: Sequence[_Item]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        held: list[_File] = []
        for number, path in items:
            try:
                held.append(self._load(number, path))
            except RejectedImage as error:
                record = ImageRecord(b"", None, error.code, str(error))
                outcomes.append(_Outcome(number, None, record, is_new=False))
            if sum(len(file.data) for file in held) > _BYTES_HELD:
                outcomes += self._inspect(held)
                held = []
        return outcomes + self._inspect(held)

    def _load(self, number: int, path: str) -> _File:
        try:
            with open(path, "rb") as stream:  # noqa: PTH123 (a string, many times)
                state = _state_of(os.fstat(stream.fileno()))
                if state.size_bytes > self.limits.max_file_mb * _MEGABYTE:
                    raise RejectedImage(
                        "file_too_large",
                        f"It has {state.size_bytes / _MEGABYTE:,.0f} MB; at most "
                        f"{self.limits.max_file_mb:,.0f} are allowed.",
                    )
                data = stream.read()
        except FileNotFoundError:
            raise RejectedImage("missing", "It is listed, but there is no such file.") from None
        except OSError as error:
            raise RejectedImage("unreadable", f"It cannot be read ({error.strerror}).") from None
        return _File(number, state, data, hashlib.sha256(data).digest())

    def _inspect(self, files: Sequence[_File]) -> list[_Outcome]:
        # Asked for together: a question costs the database as much as a small picture.
        records = self.cache.records(file.sha256 for file in files)
        outcomes = []
        decoded: list[tuple[_File, Sample, NDArray[np.uint8] | None]] = []
        for file in files:
            if file.sha256 in records:
                record = records[file.sha256]
                outcomes.append(_Outcome(file.number, file.state, record, is_new=False))
                continue
            try:
                limit, pixels = self.limits.max_pixels, None
                if self.image is None:
                    found = sample(file.data, file.sha256, max_pixels=limit)
                else:
                    found, pixels = sample_and_input(
                        file.data, file.sha256, self.image, max_pixels=limit
                    )
            except RejectedImage as error:
                record = ImageRecord(file.sha256, None, error.code, str(error))
                outcomes.append(_Outcome(file.number, file.state, record, is_new=True))
            else:
                decoded.append((file, found, pixels))
        if decoded:
            statistics = statistics_of([found for _, found, _ in decoded])
            for (file, _, pixels), row in zip(decoded, statistics, strict=True):
                record = ImageRecord(file.sha256, row.tobytes())
                outcomes.append(_Outcome(file.number, file.state, record, True, pixels))
        return outcomes


_reader_of_worker: _Reader | None = None


def _begin_worker(limits: Limits, cache: Path | None, image: ImageParams | None) -> None:
    global _reader_of_worker
    # Decoders in C write to standard error about files that are rejected with a reason anyway.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _reader_of_worker = _Reader(limits, cache, image)


def _end_with_parent() -> None:
    # A parent that was killed cannot tell its workers, which would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read_in_worker(task: list[_Item]) -> list[_Outcome]:
    if _reader_of_worker is None:
        raise RuntimeError("the worker was not begun")
    return _reader_of_worker.read(task)


class StatisticsCache:
    """What earlier runs found, in a database. Safe with several processes; without `path` empty.

    Two tables: what a file's bytes hash to (by path, size, time and inode), and what an image is
    (by recipe and hash).
    """

    def __init__(self, path: Path | None, recipe: str) -> None:
        self.path = path
        self.recipe = recipe
        self._database: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            try:
                self._database = _connect(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                aside = path.with_name(f"{path.name}.damaged")
                path.replace(aside)
                say(
                    f"ingest: the cache {path} is damaged; it is set aside as {aside.name}",
                    error=True,
                )
                self._database = _connect(path)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def hashes(self, files: Sequence[tuple[str, FileState]]) -> dict[str, bytes]:
        """Return the sha256 of those files whose state is as it was when they were last read."""
        states = dict(files)
        rows = self._select(
            "SELECT path, size_bytes, mtime_ns, inode, sha256 FROM files WHERE path IN",
            list(states),
        )
        return {row[0]: row[4] for row in rows if states[row[0]] == FileState(*row[1:4])}

    def records(self, hashes: Iterable[bytes]) -> dict[bytes, ImageRecord]:
        """Return what is kept of images with these hashes."""
        wanted = list(set(hashes))
        rows = self._select(
            "SELECT sha256, facts, reason, sentence FROM images WHERE recipe = ? AND sha256 IN",
            wanted,
            self.recipe,
        )
        return {
            row[0]: ImageRecord(*row)
            for row in rows
            if row[1] is None or len(row[1]) == STATISTICS.itemsize
        }

    def remember(
        self, files: Iterable[tuple[str, FileState, bytes]], records: Iterable[ImageRecord]
    ) -> None:
        """Keep what files hash to and what images are."""
        fresh = time.time_ns() - _FRESH_NS
        states = [
            (path, state.size_bytes, state.mtime_ns, state.inode, sha256)
            for path, state, sha256 in files
            if state.mtime_ns < fresh
        ]
        images = [(self.recipe, r.sha256, r.statistics, r.reason, r.sentence) for r in records]
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

    def _give_up(self, error: sqlite3.Error | OSError) -> None:
        say(f"ingest: continuing without the cache {self.path}: {error}", error=True)
        self.close()


def _state_of(status: os.stat_result) -> FileState:
    """Return the state of a file from its `stat`."""
    return FileState(status.st_size, status.st_mtime_ns, status.st_ino)


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
