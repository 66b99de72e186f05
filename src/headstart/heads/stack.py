"""The head stack: many heads trained as one model.

A head is a `HeadConfig`; it is trained once in every row group (a fold, a repeat). Heads come and
go between epochs. Every group has its own row orders, drawn from its seed and the number of the
epoch, shared by all heads: a head that begins in epoch 7 of the stack sees the orders 7, 8, ...

Knows nothing of metrics and of when to stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from headstart.heads import blocks
from headstart.heads.config import HeadConfig
from headstart.heads.fitted import FittedHead, feature_statistics
from headstart.heads.folds import RowGroup, balanced_weights
from headstart.heads.lanes import Lanes, Place
from headstart.heads.metrics import one_of_views
from headstart.heads.program import Shape, State, epoch_program, predict_program
from headstart.heads.randomness import dropout_key, row_order
from headstart.heads.table import HeadTable, adam_step_sizes, learning_rates
from headstart.params.head import JudgedOn

_PREDICT_ROWS = 256
PARTS = ("weights", "momentum", "second")


@dataclass(frozen=True)
class StackData:
    """Features and labels, held once on the device that trains.

    Attributes:
        features: float32 (n, n_views, feature_dim), on the host.
        label_ids: int64 (n,).
        judged_on: which view of a validation row its logits are of.
    """

    features: NDArray[np.float32]
    label_ids: NDArray[np.int64]
    n_classes: int
    judged_on: JudgedOn = "plain"
    tensors: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flat = self.features.reshape(-1, self.features.shape[-1])
        labels = np.repeat(self.label_ids, self.n_views).astype(np.int32)
        tensors = {"features": ops.convert_to_tensor(flat), "labels": ops.convert_to_tensor(labels)}
        object.__setattr__(self, "tensors", tensors)

    @property
    def n_views(self) -> int:
        return int(self.features.shape[1])

    def judged(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat (row, view) indices of what these rows are judged on, a row's views together."""
        views = np.arange(self._n_judged_views)
        return np.asarray((rows[:, None] * self.n_views + views).ravel())

    def one_a_row(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (..., n, c) of n rows from those of what they are judged on, in that order."""
        return one_of_views(logits, self._n_judged_views)

    @property
    def _n_judged_views(self) -> int:
        return self.n_views if self.judged_on == "mean_of_views" else 1


@dataclass
class _Head:
    config: HeadConfig
    place: Place
    epochs: int = 0


class HeadStack:
    """Heads in training. Add some, run epochs, look at their logits, remove them."""

    def __init__(
        self,
        data: StackData,
        groups: Sequence[RowGroup],
        shape: Shape,
        *,
        first_epoch: int = 0,
    ) -> None:
        self.shape = shape
        self.epoch = first_epoch
        self._data = data
        self._groups = tuple(groups)
        self._rows = [group.rows for group in groups]
        self._steps = [-(-len(rows) // shape.batch_size) for rows in self._rows]
        self._lanes = Lanes(shape)
        self._table = HeadTable(shape)
        self._heads: dict[int, _Head] = {}
        self._new: list[int] = []
        self._vacated: list[Place] = []
        self._state: State = {part: _tensors(_zeros(shape)) for part in PARTS}
        self._table_tensors: dict[str, Any] | None = None
        self._statistics: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self._heads)

    def add(self, number: int, config: HeadConfig) -> bool:
        """Add a head under a number of its own, or return False where it finds no place now."""
        place = self._lanes.take(config)
        if place is None:
            return False
        self._heads[number] = _Head(config, place)
        self._enter(config, place)
        self._new.append(number)
        return True

    def remove(self, numbers: Sequence[int]) -> None:
        """Drop heads and free their places."""
        for number in numbers:
            place = self._heads.pop(number).place
            self._vacated.append(place)
            self._table.clear(place)
            self._lanes.release(place)
            self._table_tensors = None

    @property
    def flop_per_epoch(self) -> float:
        """Floating-point operations of the first layer's products in one epoch, roughly all."""
        shape = self.shape
        rows = max(self._steps) * shape.batch_size * shape.groups
        return 4.0 * rows * shape.feature_dim * shape.lanes * shape.columns

    def compact(self) -> bool:
        """Move the heads to a stack of half the lanes or less; False where they need more.

        Worth its compilation when no more heads are to come and many epochs are.
        """
        ordered = sorted(self._heads.values(), key=lambda head: -len(head.place.columns))
        lanes = self.shape.lanes // 2
        if not ordered or not lanes:
            return False
        smaller = replace(self.shape, lanes=lanes)
        places = Lanes(smaller)
        found = [places.take(head.config) for head in ordered]
        if None in found:
            return False
        self._fill()
        self.shape, self._lanes, self._table = smaller, places, HeadTable(smaller)
        moves = [(h.place, place) for h, place in zip(ordered, found, strict=True) if place]
        for part in PARTS:
            old, new = self._on_host(part), _zeros(smaller)
            for source, target in moves:
                block = blocks.read(old, source, smaller.n_classes)
                blocks.write(new, target, smaller.n_classes, block)
            self._state[part] = _tensors(new)
        for head, (_, place) in zip(ordered, moves, strict=True):
            head.place = place
            self._enter(head.config, place)
        self._vacated.clear()
        return True

    def run_epoch(self) -> None:
        """Train every head for one epoch."""
        self._fill()
        plan = ops.convert_to_tensor
        tensors = {name: plan(value) for name, value in self._plan().items()}
        train = epoch_program(self.shape)
        self._state = train(self._state, self._heads_tensors(), self._data.tensors, tensors)
        self.epoch += 1
        for head in self._heads.values():
            head.epochs += 1

    def epochs(self) -> dict[int, int]:
        """Epochs that each head has been trained for, by number, in order of arrival."""
        return {number: head.epochs for number, head in self._heads.items()}

    def config(self, number: int) -> HeadConfig:
        """A head's config."""
        return self._heads[number].config

    def validation_logits(self) -> tuple[list[int], list[NDArray[np.float32]]]:
        """The heads' numbers, and a group their logits on its validation rows, (k, n, c)."""
        per_group = self._predict([self._data.judged(group.validation) for group in self._groups])
        lanes = [head.place.lane for head in self._heads.values()]
        slots = [head.place.slot for head in self._heads.values()]
        return list(self._heads), [
            self._data.one_a_row(logits[lanes, :, slots]) for logits in per_group
        ]

    def fitted(self, number: int, group: int = 0) -> FittedHead:
        """A head as it is now, as trained in one group."""
        head = self._heads[number]
        weights = {
            name: np.asarray(ops.convert_to_numpy(tensor))
            for name, tensor in self._state["weights"].items()
        }
        block = blocks.read(weights, head.place, self.shape.n_classes)
        mean, variance = None, None
        if head.config.normalisation == "standardise":
            mean, variance = (values[group] for values in self._feature_statistics())
        return FittedHead(
            config=head.config,
            n_classes=self.shape.n_classes,
            layers=blocks.as_layers(block, head.config, group),
            mean=mean,
            variance=variance,
            epochs=head.epochs,
        )

    def _enter(self, config: HeadConfig, place: Place) -> None:
        self._table.put(place, config, self._class_weights(config))
        mean = np.zeros((self.shape.groups, self.shape.feature_dim), np.float32)
        scale = np.ones_like(mean)
        if config.normalisation == "standardise":
            mean, variance = self._feature_statistics()
            scale = np.asarray(1 / np.sqrt(variance), np.float32)
        self._table.standardise(place.lane, mean, scale)
        self._table_tensors = None

    def _class_weights(self, config: HeadConfig) -> NDArray[np.float32]:
        n_classes = self.shape.n_classes
        weights = np.ones((len(self._groups), n_classes), np.float32)
        if config.class_weights == "balanced":
            for index, rows in enumerate(self._rows):
                weights[index] = balanced_weights(self._data.label_ids[rows], n_classes)
        return weights

    def _fill(self) -> None:
        """Give new heads their first weights, and optimizers without a past."""
        new = [self._heads[number] for number in self._new if number in self._heads]
        self._new.clear()
        if not new:
            return
        # One part after the other: all of them at once would be in memory three times.
        for part in PARTS:
            host = self._on_host(part)
            for place in self._vacated:
                blocks.clear(host, place, self.shape.n_classes)
            if part == "weights":
                self._begin(new, host)
            self._state[part] = _tensors(host)
        self._vacated.clear()

    def _begin(self, heads: Sequence[_Head], weights: dict[str, NDArray[np.float32]]) -> None:
        names, classes = list(weights), self.shape.n_classes
        seeds = [group.seed for group in self._groups]
        for head in heads:
            first = blocks.first_weights(head.config, seeds, names, self.shape.feature_dim, classes)
            blocks.write(weights, head.place, classes, first)

    def _on_host(self, part: str) -> dict[str, NDArray[np.float32]]:
        return {name: np.array(ops.convert_to_numpy(t)) for name, t in self._state[part].items()}

    def _feature_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._statistics is None:
            dim = self.shape.feature_dim
            found = [
                feature_statistics(self._data.features[rows].reshape(-1, dim))
                for rows in self._rows
            ]
            self._statistics = np.stack([f[0] for f in found]), np.stack([f[1] for f in found])
        return self._statistics

    def _heads_tensors(self) -> dict[str, Any]:
        if self._table_tensors is None:
            arrays = self._table.arrays
            self._table_tensors = {n: ops.convert_to_tensor(v) for n, v in arrays.items()}
        return self._table_tensors

    def _predict(self, rows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Logits of each group's flat (row, view) indices: (l, n, m, c) a group."""
        longest = max(len(numbers) for numbers in rows)
        batch = min(_PREDICT_ROWS, longest)
        padded = np.zeros((len(rows), -(-longest // batch) * batch), np.int32)
        for index, numbers in enumerate(rows):
            padded[index, : len(numbers)] = numbers
        predict = predict_program(replace(self.shape, batch_size=batch))
        arguments = self._state["weights"], self._heads_tensors(), self._data.tensors["features"]
        chunks = [
            ops.convert_to_numpy(predict(*arguments, ops.convert_to_tensor(chunk)))
            for chunk in np.split(padded, padded.shape[1] // batch, axis=1)
        ]
        logits = np.concatenate(chunks, axis=2)
        return [logits[index, :, : len(numbers)] for index, numbers in enumerate(rows)]

    def _plan(self) -> dict[str, NDArray[Any]]:
        """The steps of this epoch, as `epoch_program` takes them."""
        shape, n_steps, views = self.shape, max(self._steps), self._data.n_views
        rows = np.zeros((n_steps, shape.groups, shape.batch_size), np.int32)
        row_weights = np.zeros(rows.shape, np.float32)
        keys = np.zeros((n_steps, shape.groups, 3), np.uint32)
        for index, group in enumerate(self._groups):
            order = row_order(group.seed, self.epoch, self._rows[index], views)
            padded = np.zeros(n_steps * shape.batch_size, np.int64)
            weights = np.zeros(padded.shape, np.float32)
            padded[: len(order)] = order
            weights[: len(order)] = group.row_weights[order // views]
            rows[:, index] = padded.reshape(n_steps, -1)
            row_weights[:, index] = weights.reshape(n_steps, -1)
            keys[:, index] = _dropout_keys(group.seed, self.epoch, n_steps)
        return {
            "rows": rows,
            "row_weights": row_weights,
            "dropout_keys": keys,
            **self._step_tables(n_steps),
        }

    def _step_tables(self, n_steps: int) -> dict[str, NDArray[np.float32]]:
        full = (n_steps, self.shape.groups, self.shape.lanes, self.shape.slots)
        rate, size, moving = (np.zeros(full, np.float32) for _ in range(3))
        for head in self._heads.values():
            for group, steps in enumerate(self._steps):
                at = (slice(0, steps), group, head.place.lane, head.place.slot)
                first = head.epochs * steps
                rates = learning_rates(head.config, first, steps, head.config.epochs * steps)
                rate[at], moving[at] = rates, 1
                size[at] = adam_step_sizes(rates, first)
        return {"rate": rate, "step_size": size, "moving": moving}


def _dropout_keys(seed: int, epoch: int, n_steps: int) -> NDArray[np.uint32]:
    keys = [
        [dropout_key(seed, epoch, step, layer) for layer in range(3)] for step in range(n_steps)
    ]
    return np.array(keys, np.uint32)


def _tensors(arrays: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    return {name: ops.convert_to_tensor(value) for name, value in arrays.items()}


def _zeros(shape: Shape) -> dict[str, NDArray[np.float32]]:
    return {name: np.zeros(size, np.float32) for name, size in shape.weights().items()}
