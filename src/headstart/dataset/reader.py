"""One pass over the bytes of many files, on all cores, with bounded memory.

Each file is read, hashed, decoded and measured once, in a worker process, so that a decoder that
crashes on a hostile file takes nothing with it. Files and images that are known are not read.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.common.interrupts import children_ignoring_interrupts
from headstart.common.machine import usable_cores
from headstart.common.progress import progress_bar
from headstart.dataset.image_statistics import STATISTICS, Sample, measure, recipe, sample
from headstart.dataset.known import FileState, Finding, KnownImages, file_state
from headstart.images.decode import RejectedImage
from headstart.images.memory import keep_freed_memory

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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may ask of the reader."""

    max_pixels: int
    max_file_mb: float


@dataclass(frozen=True)
class Reading:
    """What files came to: `statistics[i]` (dtype STATISTICS) of file i, unless `rejected` has i."""

    statistics: NDArray[Any]
    rejected: dict[int, tuple[str, str]] = field(default_factory=dict)
    n_decoded: int = 0


# Tuples, because they cross from process to process: a dataclass takes many times as long.
class _Outcome(NamedTuple):
    number: int
    state: FileState | None
    finding: Finding
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Loaded:
    index: int
    state: FileState
    data: bytes
    sha256: bytes


_Item = tuple[int, str]


def read_images(
    folder: Path,
    paths: Sequence[str],
    limits: Limits,
    *,
    cache: Path | None = None,
    n_workers: int | None = None,
) -> Reading:
    """Read the files at `paths` below `folder`; `cache` holds what is known from earlier runs."""
    statistics = np.zeros(len(paths), STATISTICS)
    rejected: dict[int, tuple[str, str]] = {}
    n_decoded = 0
    known = KnownImages(cache, recipe(limits.max_pixels))
    workers = _Workers(limits, cache, n_workers or usable_cores())
    with progress_bar(total=len(paths), unit="images", title="ingest") as bar:
        for outcomes in _all_outcomes(folder, paths, known, workers):
            for outcome in outcomes:
                finding = outcome.finding
                if finding.statistics is None:
                    rejected[outcome.number] = (finding.reason, finding.sentence)
                else:
                    statistics[outcome.number] = np.frombuffer(finding.statistics, STATISTICS)[0]
            n_decoded += sum(outcome.is_new for outcome in outcomes)
            bar.update(len(outcomes))
    known.close()
    return Reading(statistics, rejected, n_decoded)


def _all_outcomes(
    folder: Path, paths: Sequence[str], known: KnownImages, workers: "_Workers"
) -> Iterator[list[_Outcome]]:
    """Outcomes of all files, known ones from the cache, in the order in which they come in."""

    waiting: list[_Outcome] = []

    def remembered(found: Iterable[list[_Outcome]]) -> Iterator[list[_Outcome]]:
        for outcomes in found:
            waiting.extend(outcomes)
            if len(waiting) >= _FILES_REMEMBERED_AT_ONCE:
                _remember(waiting, paths, folder, known)
                waiting.clear()
            yield outcomes

    with workers:
        for start in range(0, len(paths), _FILES_LOOKED_UP_AT_ONCE):
            names = paths[start : start + _FILES_LOOKED_UP_AT_ONCE]
            items = [(start + i, str(folder / name)) for i, name in enumerate(names)]
            outcomes = _look_up(items, known)
            yield outcomes
            seen = {outcome.number for outcome in outcomes}
            new = [item for item in items if item[0] not in seen]
            yield from remembered(workers.read(new))
        yield from remembered(workers.rest())
    _remember(waiting, paths, folder, known)


def _look_up(items: list[_Item], known: KnownImages) -> list[_Outcome]:
    files = []
    for _, path in items:
        try:
            files.append((path, file_state(os.stat(path))))  # noqa: PTH116 (a string, many times)
        except OSError:
            continue
    hashes = known.hashes(files)
    findings = known.findings(hashes.values())
    return [
        _Outcome(index, None, findings[hashes[path]], is_new=False)
        for index, path in items
        if path in hashes and hashes[path] in findings
    ]


def _remember(
    outcomes: list[_Outcome], paths: Sequence[str], folder: Path, known: KnownImages
) -> None:
    lasting = [o for o in outcomes if o.finding.reason not in _PASSING_REASONS]
    known.remember(
        ((str(folder / paths[o.number]), o.state, o.finding.sha256) for o in lasting if o.state),
        (o.finding for o in lasting if o.is_new),
    )


class _Workers:
    """Processes that read files. A few files are read in this process instead."""

    def __init__(self, limits: Limits, cache: Path | None, n_workers: int) -> None:
        self._begin = (limits, cache)
        self._n_workers = n_workers
        self._pool: ProcessPoolExecutor | None = None
        self._pending: dict[Future[list[_Outcome]], list[_Item]] = {}
        self._task: list[_Item] = []

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, items: Iterable[_Item]) -> Iterator[list[_Outcome]]:
        """Take items to read; outcomes of these and earlier ones, in lists, as they come."""
        for item in items:
            self._task.append(item)
            if len(self._task) >= (_FILES_A_TASK if self._pool else _FEW_FILES):
                self._submit_task()
            if len(self._pending) >= _TASKS_AHEAD_A_WORKER * self._n_workers:
                yield from self._collect(self._pending)

    def rest(self) -> Iterator[list[_Outcome]]:
        """Outcomes of all items that were taken and not answered yet."""
        if self._task and self._pool is None:
            limits, cache = self._begin
            task, self._task = self._task, []
            yield _Reader(limits, cache).read(task)
        elif self._task:
            self._submit_task()
        while self._pending:
            yield from self._collect(self._pending)

    def _submit_task(self) -> None:
        self._pending[self._submit(self._task)] = self._task
        self._task = []

    def _submit(self, task: list[_Item]) -> "Future[list[_Outcome]]":
        try:
            if self._pool is None:
                self._pool = _make_pool(self._n_workers, self._begin)
            # It begins processes, and would not know of one in whose beginning it is interrupted.
            with children_ignoring_interrupts():
                return self._pool.submit(_read_in_worker, task)
        except BrokenProcessPool as error:
            broken: Future[list[_Outcome]] = Future()
            broken.set_exception(error)
            return broken

    def _collect(
        self, pending: dict["Future[list[_Outcome]]", list[_Item]]
    ) -> Iterator[list[_Outcome]]:
        """Outcomes of what is ready; after a crash, of everything that was under way."""
        ready, _ = wait(pending, return_when=FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in ready):
            ready, _ = wait(pending)
        suspects: list[_Item] = []
        for future in ready:
            task = pending.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                suspects += task
            else:
                yield future.result()
        if suspects:
            self._stop()
            yield from (self._read_alone(item) for item in suspects)

    def _read_alone(self, item: _Item) -> list[_Outcome]:
        try:
            return self._submit([item]).result()
        except BrokenProcessPool:
            self._stop()
            finding = Finding(b"", None, "crashed", "The decoder crashed on it.")
            return [_Outcome(item[0], None, finding, is_new=True)]

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _make_pool(n_workers: int, begin: tuple[Limits, Path | None]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        n_workers, mp_context=_context(), initializer=_begin_worker, initargs=begin
    )


def _context() -> BaseContext:
    """Processes that start clean: a fork would copy the locks of this process's threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # Now rather than with the first worker, so that all of them leave Ctrl-C to this process.
    with children_ignoring_interrupts():
        forkserver.ensure_running()
    return context


class _Reader:
    """What one process needs to read files."""

    def __init__(self, limits: Limits, cache: Path | None) -> None:
        self.limits = limits
        self.known = KnownImages(cache, recipe(limits.max_pixels))

    def read(self, items: Sequence[_Item]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        held: list[_Loaded] = []
        for item in items:
            loaded = self._load(item)
            if isinstance(loaded, _Outcome):
                outcomes.append(loaded)
                continue
            held.append(loaded)
            if sum(len(one.data) for one in held) > _BYTES_HELD:
                outcomes += self._look_at(held)
                held = []
        return outcomes + self._look_at(held)

    def _load(self, item: _Item) -> "_Loaded | _Outcome":
        """The bytes of a file and their hash, or why there are none."""
        index, path = item
        try:
            with open(path, "rb") as stream:  # noqa: PTH123 (a string, many times)
                state = file_state(os.fstat(stream.fileno()))
                if state.size_bytes > self.limits.max_file_mb * _MEGABYTE:
                    raise RejectedImage(
                        "file_too_large",
                        f"It has {state.size_bytes / _MEGABYTE:,.0f} MB; at most "
                        f"{self.limits.max_file_mb:,.0f} are allowed.",
                    )
                data = stream.read()
        except FileNotFoundError:
            finding = Finding(b"", None, "missing", "It is listed, but there is no such file.")
            return _Outcome(index, None, finding, is_new=False)
        except OSError as error:
            finding = Finding(b"", None, "unreadable", f"It cannot be read ({error.strerror}).")
            return _Outcome(index, None, finding, is_new=False)
        except RejectedImage as error:
            return _Outcome(index, None, Finding(b"", None, error.code, str(error)), is_new=False)
        return _Loaded(index, state, data, hashlib.sha256(data).digest())

    def _look_at(self, held: Sequence["_Loaded"]) -> list[_Outcome]:
        # Asked for together: a question costs the database as much as a small picture.
        known = self.known.findings(one.sha256 for one in held)
        outcomes = []
        taken: list[tuple[_Loaded, Sample]] = []
        for one in held:
            if one.sha256 in known:
                outcomes.append(_Outcome(one.index, one.state, known[one.sha256], is_new=False))
                continue
            try:
                found = sample(one.data, one.sha256, max_pixels=self.limits.max_pixels)
            except RejectedImage as error:
                finding = Finding(one.sha256, None, error.code, str(error))
                outcomes.append(_Outcome(one.index, one.state, finding, is_new=True))
            else:
                taken.append((one, found))
        if taken:
            statistics = measure([found for _, found in taken])
            outcomes += [
                _Outcome(one.index, one.state, Finding(one.sha256, row.tobytes()), is_new=True)
                for (one, _), row in zip(taken, statistics, strict=True)
            ]
        return outcomes


_reader_of_worker: _Reader | None = None


def _begin_worker(limits: Limits, cache: Path | None) -> None:
    global _reader_of_worker
    # Decoders in C write to standard error about files that are rejected with a reason anyway.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _reader_of_worker = _Reader(limits, cache)


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
