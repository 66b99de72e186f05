"""Percentile bootstrap intervals: how far a figure could move had other images been drawn.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16. Knows
arrays, not what they measure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95

Statistics = Callable[[NDArray[np.int64]], dict[str, float]]


@dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float


def of_all_or_none(interval: Interval, groups: Sequence[str]) -> Interval:
    """Return an interval of accuracy; the exact one where every image, or none, is right.

    So is every resample of them then: the bound of Clopper and Pearson (1934), of as many draws as
    there are groups.
    """
    bound = ((1 - CONFIDENCE) / 2) ** (1 / len(set(groups)))
    if interval == Interval(1.0, 1.0):
        return Interval(bound, 1.0)
    return Interval(0.0, 1 - bound) if interval == Interval(0.0, 0.0) else interval


def intervals(
    statistics: Statistics,
    groups: Sequence[str],
    *,
    n_resamples: int,
    seed: int,
    confidence: float = CONFIDENCE,
    estimates: Mapping[str, float] | None = None,
) -> dict[str, Interval]:
    """Return an interval for each figure that `statistics` returns for an array of row indices.

    Args:
        statistics: from row indices, int64, shape (n_drawn,), to named figures.
        groups: group key of each row. Whole groups are drawn, with replacement, because the
            images of a group (near-duplicates, a burst, a patient) say less than as many others.
        confidence: the fraction that lies inside.
        estimates: of figures that are larger the more noise there is, such as squared gaps. Drawing
            rows again adds noise, so their draws are moved to have the estimate as their mean.
    """
    keys = np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(keys)
    rows_by_group = np.argsort(keys, kind="stable")
    starts = np.cumsum(sizes) - sizes
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(n_resamples):
        drawn = generator.integers(0, len(sizes), len(sizes))
        lengths = sizes[drawn]
        offsets = starts[drawn] - (np.cumsum(lengths) - lengths)
        rows = rows_by_group[np.repeat(offsets, lengths) + np.arange(lengths.sum())]
        draws.append(statistics(rows))
    tail = (1 - confidence) / 2
    found = {}
    for name in draws[0]:
        values = np.array([draw[name] for draw in draws])
        low, high = (float(bound) for bound in np.quantile(values, (tail, 1 - tail)))
        if estimates is not None and name in estimates:
            estimate, moved = estimates[name], estimates[name] - float(values.mean())
            low, high = min(low + moved, estimate), max(high + moved, estimate)
        found[name] = Interval(low, high)
    return found
