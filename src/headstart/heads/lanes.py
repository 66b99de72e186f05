"""Which head lies where in the stack: lanes, slots and columns. Pure bookkeeping.

A lane transforms its inputs in one way, so heads share a lane only if they agree on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.heads.config import HeadConfig
from headstart.heads.program import MOST_TRAINING_BYTES, Shape

LaneKey = tuple[str, float]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Place:
    """Where one head lies: its lane, its slot, and the columns that are its first layer's units."""

    lane: int
    slot: int
    columns: NDArray[np.intp]


def columns_needed(config: HeadConfig, n_classes: int) -> int:
    """Columns that a head takes: its width, or without hidden layers its outputs."""
    return config.width if config.hidden_layers else n_classes


def lane_key(config: HeadConfig) -> LaneKey:
    """What heads that share a lane must agree on."""
    return (config.normalisation, config.input_dropout)


class Lanes:
    """The free and taken places of a stack."""

    def __init__(self, shape: Shape) -> None:
        self._n_classes = shape.n_classes
        self._keys: list[LaneKey | None] = [None] * shape.lanes
        self._column_free = np.ones((shape.lanes, shape.columns), bool)
        self._slot_free = np.ones((shape.lanes, shape.slots), bool)

    def take(self, config: HeadConfig) -> Place | None:
        """Take the tightest place that fits, or None where there is none now."""
        needed = columns_needed(config, self._n_classes)
        key = lane_key(config)
        free = self._column_free.sum(axis=1)
        fitting = [
            lane
            for lane in range(len(self._keys))
            if self._keys[lane] in (None, key)
            and free[lane] >= needed
            and self._slot_free[lane].any()
        ]
        if not fitting:
            return None
        lane = min(fitting, key=lambda lane: (self._keys[lane] is None, free[lane], lane))
        place = Place(
            lane,
            int(np.argmax(self._slot_free[lane])),
            np.flatnonzero(self._column_free[lane])[:needed],
        )
        self._keys[lane] = key
        self._column_free[lane, place.columns] = False
        self._slot_free[lane, place.slot] = False
        return place

    def release(self, place: Place) -> None:
        """Give a place back."""
        self._column_free[place.lane, place.columns] = True
        self._slot_free[place.lane, place.slot] = True
        if self._slot_free[place.lane].all():
            self._keys[place.lane] = None


def shape_for(
    configs: Sequence[HeadConfig],
    *,
    groups: int,
    feature_dim: int,
    n_classes: int,
    batch_size: int,
) -> Shape:
    """The smallest stack in which all of `configs` find a place at once.

    The lane is as wide as the widest head; `configs` are placed widest first.
    """
    columns = max(columns_needed(config, n_classes) for config in configs)
    shape = Shape(
        groups=groups,
        lanes=len(configs),
        slots=slots_for(columns, n_classes, len(configs)),
        columns=columns,
        feature_dim=feature_dim,
        n_classes=n_classes,
        batch_size=batch_size,
        **features_used(configs),
    )
    lanes = Lanes(shape)
    places = [lanes.take(config) for config in by_size(configs, n_classes)]
    used = 1 + max(place.lane for place in places if place is not None)
    return replace(shape, lanes=used)


def groups_that_fit(shape: Shape, groups: Sequence[_T]) -> Iterator[tuple[Shape, Sequence[_T]]]:
    """Groups of rows in parts that may train at once, each with the stack for it.

    Groups do not depend on one another. They take half of what a population may: the best weights
    so far are held beside those in training.
    """
    one = replace(shape, groups=1).training_bytes()
    n_parts = -(-len(groups) // max(1, MOST_TRAINING_BYTES // 2 // one))
    size = -(-len(groups) // n_parts)
    for start in range(0, len(groups), size):
        some = groups[start : start + size]
        yield replace(shape, groups=len(some)), some


def by_size(configs: Sequence[HeadConfig], n_classes: int) -> list[HeadConfig]:
    """Widest first: so placed, they need the fewest lanes."""
    return sorted(configs, key=lambda config: -columns_needed(config, n_classes))


def slots_for(columns: int, n_classes: int, most: int) -> int:
    """Heads a lane may hold: their outputs shall not cost more than the lane itself."""
    return int(np.clip(columns // max(n_classes, 16), 1, min(8, most)))


def features_used(configs: Sequence[HeadConfig]) -> dict[str, Any]:
    """The parts of the program that these heads need; the others are left out of it."""
    hidden = [config for config in configs if config.hidden_layers]
    return {
        "activations": ("linear", *sorted({config.activation for config in hidden})),
        "deep": any(config.hidden_layers > 1 for config in configs),
        "dropout": any(config.dropout > 0 for config in hidden),
        "input_dropout": any(config.input_dropout > 0 for config in configs),
        "layer_norm": any(config.normalisation == "layer_norm" for config in configs),
    }
