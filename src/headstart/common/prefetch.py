"""Work that threads do ahead of who takes its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def prefetched(
    work: Callable[[A], B], items: Iterable[A], pool: ThreadPoolExecutor, most: int
) -> Iterator[B]:
    """Yield `work(item)` in order; the pool's threads are at most `most` items ahead.

    An error is raised where its item would have come, and what was not begun then is cancelled.
    """
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
