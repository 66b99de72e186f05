"""Progress: bars with rate and time left on a terminal, a line every ten seconds elsewhere.

Whoever runs something long wraps it in `telling`; what is long and has no bar says `begin_step`.
What will take more than ten minutes says so once, by its first seconds, and what would be faster.
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
PROBE_S, LONG_S = 5.0, 600.0
_bars: list["Bar"] = []
# What was said to be faster: once in a process.
_told: set[str] = set()
_step = ("working", 0.0)


class _Nowhere(io.TextIOBase):
    """Takes text and drops it."""

    def write(self, text: str) -> int:
        return len(text)


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that shows itself after two seconds on a terminal; elsewhere `telling` reads it.

    Args:
        done: of `total`, before this bar.
        faster: what would be faster, for work that proves to take long.
    """

    def __init__(
        self,
        items: Iterable[Any] | None,
        *,
        total: int,
        unit: str,
        title: str,
        done: int = 0,
        faster: str = "",
    ) -> None:
        self._faster, self._total = faster, total
        self._began: tuple[float, int] | None = None
        is_seen = sys.stderr.isatty()
        line = "{n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left"
        line = line if total else "{n_fmt}{unit}, {rate_fmt}"
        super().__init__(
            items,
            total=total,
            initial=done,
            unit=f" {unit}",
            desc=title,
            delay=DELAY_S if is_seen else 0.0,
            file=sys.stderr if is_seen else _Nowhere(),
            bar_format=None if is_seen else line,
            dynamic_ncols=is_seen,
            smoothing=0.1,
        )
        _bars.append(self)

    def update(self, n: float | None = 1) -> bool | None:
        """Move on by so many; tell once that it will take long, if it will."""
        is_shown: bool | None = super().update(n)
        if self._faster and self._faster not in _told:
            now, n_done = time.monotonic(), int(self.n)
            # What came before the first of them was preparation.
            self._began = self._began or (now, n_done)
            since, before = self._began
            if now - since >= PROBE_S and n_done > before:
                rate = (n_done - before) / (now - since)
                text = estimate(self.desc, self.unit.strip(), self._total - n_done, rate)
                if text:
                    _told.add(self._faster)
                    with tqdm.external_write_mode(file=self.fp):
                        say(f"{text}\n  faster: {self._faster}", error=True)
        return is_shown

    def close(self) -> None:
        """Take the bar away, or leave it as it ended."""
        if self in _bars:
            _bars.remove(self)
        super().close()


def progress(items: Iterable[T], *, total: int, unit: str, title: str) -> "tqdm[T]":
    """Iterate over `items` behind a bar."""
    return Bar(items, total=total, unit=unit, title=title)


def progress_bar(
    *, total: int, unit: str, title: str, done: int = 0, faster: str = ""
) -> "tqdm[Any]":
    """A bar to be moved by hand with `update(n)`; use as a context manager. See `Bar`."""
    return Bar(None, total=total, unit=unit, title=title, done=done, faster=faster)


def estimate(title: str, unit: str, left: int, rate: float) -> str:
    """Say how long the rest will take where that is more than ten minutes, else nothing.

    Args:
        left: how many of `unit` are left.
        rate: how many a second.
    """
    seconds = left / rate
    if seconds <= LONG_S:
        return ""
    minutes = seconds / 60
    time_left = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    speed = f"{rate:.3g} a second" if rate >= 1 else f"{60 * rate:.2g} a minute"
    return f"{title}: {left:,} {unit} left, about {time_left} at {speed}"


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
