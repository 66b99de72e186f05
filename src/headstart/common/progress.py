"""Progress: bars with rate and time left on a terminal, a line every ten seconds elsewhere.

Whoever runs something long wraps it in `telling`; what is long and has no bar says `begin_step`.
"""

import contextlib
import io
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from headstart.common.terminal import say

T = TypeVar("T")
EVERY_S, DELAY_S = 10.0, 2.0
_bars: list["Bar"] = []
_step = ("working", 0.0)


class _Nowhere(io.TextIOBase):
    """Takes text and drops it."""

    def write(self, text: str) -> int:
        return len(text)


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that shows itself after two seconds on a terminal; elsewhere `telling` reads it."""

    def __init__(self, items: Iterable[Any] | None, *, total: int, unit: str, title: str) -> None:
        is_seen = sys.stderr.isatty()
        line = "{n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left"
        line = line if total else "{n_fmt}{unit}, {rate_fmt}"
        super().__init__(
            items,
            total=total,
            unit=f" {unit}",
            desc=title,
            delay=DELAY_S if is_seen else 0.0,
            file=sys.stderr if is_seen else _Nowhere(),
            bar_format=None if is_seen else line,
            dynamic_ncols=is_seen,
            smoothing=0.1,
        )
        _bars.append(self)

    def close(self) -> None:
        """Take the bar away, or leave it as it ended."""
        if self in _bars:
            _bars.remove(self)
        super().close()


def progress(items: Iterable[T], *, total: int, unit: str, title: str) -> "tqdm[T]":
    """Iterate over `items` behind a bar."""
    return Bar(items, total=total, unit=unit, title=title)


def progress_bar(*, total: int, unit: str, title: str) -> "tqdm[Any]":
    """A bar to be moved by hand with `update(n)`; use as a context manager."""
    return Bar(None, total=total, unit=unit, title=title)


def begin_step(what: str) -> None:
    """Say what is done from now on, such as "training heads": shown if it takes long."""
    global _step
    if what != _step[0]:
        _step = (what, time.monotonic())


@contextlib.contextmanager
def telling(name: str) -> Iterator[None]:
    """Tell on standard error what is under way, every ten seconds while it lasts."""
    global _step
    _step = ("working", time.monotonic())
    is_over = threading.Event()

    def tell() -> None:
        while not is_over.wait(EVERY_S):
            what, since = _step
            bar = next(reversed(_bars), None)
            if bar is None:
                text = f"{what}, {time.monotonic() - since:.0f} s"
            elif sys.stderr.isatty():
                bar.refresh()
                continue
            else:
                text = " ".join(str(bar).split())
            say(f"{name}: {text}", error=True)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
