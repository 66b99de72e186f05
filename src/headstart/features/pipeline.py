"""Reading, decoding, forward pass and writing, overlapped, in bounded memory.

Threads decode ahead of the forward pass by two batches at most; finished rows go to the cache in
a thread of their own. Knows the cache and a forward pass, not where either comes from.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError
from headstart.features.cache import FeatureCache
from headstart.features.runtimes import Forward
from headstart.features.shards import row_keys
from headstart.features.views import ViewPlan
from headstart.params import ImageParams

_SHARD_BYTES = 32 << 20
SHARD_ROWS = 2048
_SHARD_SECONDS = 10.0


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
        try:
            data = task.path.read_bytes()
        except OSError as error:
            raise DataError(
                f"every image of the manifest must be readable, but {task.path} is not "
                f"({error.strerror}): run dvc repro, which fetches and lists the images again"
            ) from None
        if hashlib.sha256(data).hexdigest() != task.sha256:
            raise DataError(
                f"every image must be as the manifest lists it, but {task.path} was changed since: "
                "run dvc repro, which lists the images again"
            )
        return self.plan.squares(data, task.sha256, task.views, self.image, self.max_pixels)


Row = tuple[Task, int, NDArray[np.uint8]]


def run_pipeline(
    tasks: Iterable[Task],
    *,
    decoder: Decoder,
    forward: Forward,
    sink: "ShardWriter",
    batch_size: int,
    threads: int,
) -> None:
    """Extract every row of every task into the sink.

    Raises:
        DataError: an image cannot be read; rows finished before that are kept.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        rows = _rows(_decoded(tasks, decoder, pool, ahead=2 * batch_size + threads))
        batch: list[Row] = []
        for row in rows:
            batch.append(row)
            if len(batch) == batch_size:
                _extract(batch, forward, sink)
                batch = []
        if batch:
            _extract(batch, forward, sink)


def _decoded(
    tasks: Iterable[Task], decoder: Decoder, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[Task, NDArray[np.uint8]]]:
    waiting: deque[tuple[Task, Future[NDArray[np.uint8]]]] = deque()
    try:
        for task in tasks:
            waiting.append((task, pool.submit(decoder, task)))
            if len(waiting) >= ahead:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _rows(decoded: Iterable[tuple[Task, NDArray[np.uint8]]]) -> Iterator[Row]:
    for task, squares in decoded:
        for view, square in zip(task.views, squares, strict=True):
            yield task, view, square


def _extract(batch: list[Row], forward: Forward, sink: "ShardWriter") -> None:
    features = forward(np.stack([square for _, _, square in batch]))
    sink.put([(task, view) for task, view, _ in batch], features)


class ShardWriter:
    """Collects rows and writes them as shards in a thread of its own. Use as a context manager."""

    def __init__(
        self,
        cache: FeatureCache,
        plan: ViewPlan,
        provenance: Mapping[str, Any],
        shard_rows: int,
        *,
        on_rows: Callable[[int], object],
        on_written: Callable[[list[str]], object],
    ) -> None:
        self.n_rows = 0
        self._cache, self._plan, self._provenance = cache, plan, provenance
        self._shard_rows = shard_rows
        self._on_rows, self._on_written = on_rows, on_written
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

    def put(self, rows: list[tuple[Task, int]], features: NDArray[np.float32]) -> None:
        """Take rows as (task, view); writes a shard when enough have come, or after a while."""
        self._keys.extend(row_keys([task.sha256], self._plan.key(view)) for task, view in rows)
        self._finished.extend(task.sha256 for task, view in rows if view == task.views[-1])
        self._features.append(features)
        self.n_rows += len(rows)
        self._on_rows(len(rows))
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
            self._writing = self._pool.submit(self._cache.add, keys, features, self._provenance)
            self._in_writing, self._finished = self._finished, []
        self._keys, self._features = [], []
        self._since = time.monotonic()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
            self._on_written(self._in_writing)
