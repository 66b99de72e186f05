"""Reading, decoding, forward pass and writing, overlapped, in bounded memory.

Finished rows go to the cache in a thread of their own. Knows the cache and a forward pass, not
where either comes from.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.cache.row_cache import FeatureCache
from headstart.cache.shards import Keys, row_keys
from headstart.common.prefetch import prefetched
from headstart.encoders.runtimes import Run
from headstart.features.views import ViewPlan
from headstart.images.image_files import read_verified
from headstart.params.image import ImageParams

_SHARD_BYTES = 32 << 20
SHARD_ROWS = 2048
_SHARD_SECONDS = 10.0
_EARLY_BYTES = 32 << 20


@dataclass(frozen=True)
class Task:
    """One image of which views are missing."""

    path: Path
    sha256: str
    views: tuple[int, ...]


@dataclass(frozen=True)
class Decoder:
    """Turns a task into pixels."""

    image: ImageParams
    plan: ViewPlan
    max_pixels: int

    def __call__(self, task: Task) -> NDArray[np.uint8]:
        """uint8, shape (len(task.views), size, size, 3).

        Raises:
            DataError: the file is gone, or no longer what the manifest says.
        """
        data = read_verified(task.path, task.sha256)
        return self.plan.input_pixels(data, task.sha256, task.views, self.image, self.max_pixels)


Rows = list[tuple[Task, int]]
# Rows, and their pixels, uint8, shape (n_rows, size, size, 3).
Decoded = tuple[Rows, NDArray[np.uint8]]
A = TypeVar("A")


def run_pipeline(
    tasks: Iterable[Task],
    *,
    decoder: Decoder,
    forward: Run,
    is_open: Callable[[], bool],
    sink: "ShardWriter",
    batch_size: int,
    workers: int,
    cores: int,
) -> None:
    """Extract every row of every task into the sink.

    With several `workers`, each thread decodes batches of its own and runs them forward; until the
    forward pass `is_open`, they decode alone. With one worker, `cores` threads decode ahead of the
    only forward pass, by two batches at most.

    Raises:
        DataError: an image cannot be read; rows finished before that are kept.
    """
    if workers > 1:
        extract = partial(_extracted, decoder, forward, batch_size)
        batches = _batches(tasks, batch_size)
        with ThreadPoolExecutor(workers, thread_name_prefix="extract") as pool:
            most = max(1, _EARLY_BYTES // (batch_size * decoder.image.size**2 * 3))
            some = _until(is_open, batches, most)
            early = _decoded_early(partial(_decoded_batch, decoder), some, pool, 2 * workers)
            left = itertools.chain(early, batches)
            for rows, features in prefetched(extract, left, pool, 2 * workers):
                sink.put(rows, features)
        return
    with ThreadPoolExecutor(cores, thread_name_prefix="decode") as pool:
        decoded = prefetched(partial(_decoded, decoder), tasks, pool, 2 * batch_size + cores)
        for rows, pixels in _batches_of_rows(decoded, batch_size):
            sink.put(rows, forward(pixels))


def _batches(tasks: Iterable[Task], n_rows: int) -> Iterator[list[Task]]:
    """Tasks together that have about so many rows."""
    batch: list[Task] = []
    for task in tasks:
        batch.append(task)
        if sum(len(task.views) for task in batch) >= n_rows:
            yield batch
            batch = []
    if batch:
        yield batch


def _until(stop: Callable[[], bool], items: Iterator[A], most: int) -> Iterator[A]:
    """At most so many items, until `stop` says so; the others stay in `items`."""
    while most > 0 and not stop():
        yield from itertools.islice(items, 1)
        most -= 1


def _decoded_early(
    decode: Callable[[list[Task]], Decoded],
    batches: Iterable[list[Task]],
    pool: ThreadPoolExecutor,
    most: int,
) -> Iterator[list[Task] | Future[Decoded]]:
    """All batches, decoded in the pool before this returns but for the last `most`."""
    early: deque[Future[Decoded]] = deque()
    for batch in batches:
        early.append(pool.submit(decode, batch))
        if len(early) > most:
            wait([early[-1 - most]])
    # Each is let go of when it is taken.
    return (early.popleft() for _ in range(len(early)))


def _decoded_batch(decoder: Decoder, tasks: list[Task]) -> Decoded:
    rows = [(task, view) for task in tasks for view in task.views]
    return rows, np.concatenate([decoder(task) for task in tasks])


def _extracted(
    decoder: Decoder, forward: Run, batch_size: int, batch: list[Task] | Future[Decoded]
) -> tuple[Rows, NDArray[np.float32]]:
    # In order, also where decoding failed: what came before an error is kept.
    rows, pixels = batch.result() if isinstance(batch, Future) else _decoded_batch(decoder, batch)
    # A task may have more views than a batch has rows.
    starts = range(0, len(rows), batch_size)
    return rows, np.concatenate([forward(pixels[i : i + batch_size]) for i in starts])


def _decoded(decoder: Decoder, task: Task) -> tuple[Task, NDArray[np.uint8]]:
    return task, decoder(task)


def _batches_of_rows(
    decoded: Iterable[tuple[Task, NDArray[np.uint8]]], n_rows: int
) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    rows: Rows = []
    views_of_batch: list[NDArray[np.uint8]] = []
    for task, views in decoded:
        for view, pixels in zip(task.views, views, strict=True):
            rows.append((task, view))
            views_of_batch.append(pixels)
            if len(rows) == n_rows:
                yield rows, np.stack(views_of_batch)
                rows, views_of_batch = [], []
    if rows:
        yield rows, np.stack(views_of_batch)


class ShardWriter:
    """Collects rows and writes them as shards in a thread of its own. Use as a context manager."""

    def __init__(
        self,
        cache: FeatureCache,
        plan: ViewPlan,
        provenance: Callable[[], Mapping[str, Any]],
        shard_rows: int,
        *,
        on_images: Callable[[int], object],
        on_written: Callable[[list[str]], object],
    ) -> None:
        self.n_rows = 0
        self._cache, self._plan, self._provenance = cache, plan, provenance
        self._shard_rows = shard_rows
        self._on_images, self._on_written = on_images, on_written
        self._finished: list[str] = []
        self._keys: list[np.ndarray[Any, np.dtype[np.bytes_]]] = []
        self._features: list[NDArray[np.float32]] = []
        self._since = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: Future[None] | None = None
        self._in_writing: list[str] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        # Also after an error: what was computed is kept.
        try:
            self.flush()
        finally:
            self._pool.shutdown()

    def put(self, rows: Rows, features: NDArray[np.float32]) -> None:
        """Take rows as (task, view); writes a shard when enough have come, or after a while."""
        self._keys.extend(row_keys([task.sha256], self._plan.key(view)) for task, view in rows)
        finished = [task.sha256 for task, view in rows if view == task.views[-1]]
        self._finished.extend(finished)
        self._features.append(features)
        self.n_rows += len(rows)
        self._on_images(len(finished))
        n_bytes = len(self._keys) * features[0].nbytes
        is_full = len(self._keys) >= self._shard_rows or n_bytes >= _SHARD_BYTES
        if is_full or time.monotonic() - self._since > _SHARD_SECONDS:
            self._start_writing()

    def flush(self) -> None:
        """Write what is left, and wait until everything is in the cache."""
        self._start_writing()
        self._wait()

    def _start_writing(self) -> None:
        self._wait()
        if self._keys:
            keys, features = np.concatenate(self._keys), np.concatenate(self._features)
            self._writing = self._pool.submit(self._add, keys, features)
            self._in_writing, self._finished = self._finished, []
        self._keys, self._features = [], []
        self._since = time.monotonic()

    def _add(self, keys: Keys, features: NDArray[np.float32]) -> None:
        self._cache.add(keys, features, self._provenance())

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
            self._on_written(self._in_writing)
