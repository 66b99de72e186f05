"""Progress bars with rate and time left; quiet when nobody is looking."""

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], *, total: int, unit: str, title: str) -> "tqdm[T]":
    """Iterate over `items` behind a bar that shows itself after two seconds on a terminal."""
    return tqdm(items, total=total, **_style(unit, title))


def progress_bar(*, total: int, unit: str, title: str) -> "tqdm[Any]":
    """A bar to be moved by hand with `update(n)`; use as a context manager."""
    return tqdm(total=total, **_style(unit, title))


def _style(unit: str, title: str) -> dict[str, Any]:
    return {
        "unit": f" {unit}",
        "desc": title,
        "delay": 2.0,
        "disable": not sys.stderr.isatty(),
        "dynamic_ncols": True,
        "smoothing": 0.1,
    }
