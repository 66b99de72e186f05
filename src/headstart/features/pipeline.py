"""Reading, decoding and forward pass, overlapped, in bounded memory.

Knows a forward pass, not where it comes from, and nothing of the cache.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.common.prefetch import prefetched
from headstart.encoders.runtimes import Run
from headstart.features.views import ViewPlan
from headstart.params.image import ImageParams

_EARLY_BYTES = 32 << 20


@dataclass(frozen=True)
class Task:
    """One image of which views are missing."""

    path: str
    sha256: str
    views: tuple[int, ...]


class PixelSource(Protocol):
    """Where the pixels of images come from: `InputPixels`, or whoever holds them in memory."""

    image: ImageParams

    def in_use(self, sha256: Sequence[str]) -> AbstractContextManager[None]:
        """Hold what the pixels of these images are read from."""

    def read(self, path: str, sha256: str) -> NDArray[np.uint8]:
        """Input pixels, shape (size, size, 3)."""

    def decode_whole(self, path: str, sha256: str) -> NDArray[np.uint8]:
        """All pixels, shape (height, width, 3)."""


@dataclass(frozen=True)
class Decoder:
    """Turns a task into pixels; those of the plain view may have been kept."""

    pixels: PixelSource
    plan: ViewPlan

    def __call__(self, task: Task) -> NDArray[np.uint8]:
        """uint8, shape (len(task.views), size, size, 3), ascending by view.

        Raises:
            DataError: the file is gone, or no longer what the manifest says.
        """
        found = [self.pixels.read(task.path, task.sha256)] if 0 in task.views else []
        if augmented := [view for view in task.views if view != 0]:
            whole, image = self.pixels.decode_whole(task.path, task.sha256), self.pixels.image
            found += [self.plan.augmented(whole, task.sha256, view, image) for view in augmented]
        return np.stack(found)


Rows = list[tuple[Task, int]]
# Rows, and their pixels, uint8, shape (n_rows, size, size, 3).
Decoded = tuple[Rows, NDArray[np.uint8]]
A = TypeVar("A")


def extract_rows(
    tasks: Iterable[Task],
    *,
    decoder: Decoder,
    forward: Run,
    is_open: Callable[[], bool],
    batch_size: int,
    workers: int,
    cores: int,
) -> Iterator[tuple[Rows, NDArray[np.float32]]]:
    """Extract every row of every task, in order.

    With several `workers`, each thread decodes batches of its own and runs them forward; until the
    forward pass `is_open`, they decode alone. With one worker, `cores` threads decode ahead of the
    only forward pass, by two batches at most.

    Raises:
        DataError: an image cannot be read; what came before it was yielded.
    """
    if workers > 1:
        extract = partial(_extracted, decoder, forward, batch_size)
        batches = _batches(tasks, batch_size)
        with ThreadPoolExecutor(workers, thread_name_prefix="extract") as pool:
            most = max(1, _EARLY_BYTES // (batch_size * decoder.pixels.image.size**2 * 3))
            some = _until(is_open, batches, most)
            early = _decoded_early(partial(_decoded_batch, decoder), some, pool, 2 * workers)
            left = itertools.chain(early, batches)
            yield from prefetched(extract, left, pool, 2 * workers)
        return
    with ThreadPoolExecutor(cores, thread_name_prefix="decode") as pool:
        decoded = prefetched(partial(_decoded, decoder), tasks, pool, 2 * batch_size + cores)
        for rows, pixels in _batches_of_rows(decoded, batch_size):
            yield rows, forward(pixels)


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
