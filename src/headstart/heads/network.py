"""A network head in training: one epoch of steps is one call of a compiled program.

Depth and width are the program's; every other hyperparameter is data, so heads of one shape share
it. Folds and repeats are networks of their own: batched into one model they take the same time on a
CPU (ARCHITECTURE.md has the figures), and all their weights at once in memory.

Axes: s steps, b batch, d features, u units, c classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, get_args

import numpy as np
from keras import activations, ops
from numpy.typing import NDArray

from headstart.heads.backend import Tensor, Tensors, compiled, gradients
from headstart.heads.config import HeadConfig
from headstart.heads.fitted import DenseWeights, FittedHead, feature_statistics
from headstart.heads.folds import Fold, balanced_weights
from headstart.heads.randomness import dropout_key, dropout_uniform, first_kernel, row_order
from headstart.params.head import Activation

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
_ACTIVATIONS = get_args(Activation)
_PREDICT_ROWS = 256
# Hidden layers are padded with units of weight zero to a multiple of this, so that widths of a
# range share programs. Every activation maps 0 to 0, so the padding stays zero in training.
_UNITS = 64
_STEPS = 8

Array = NDArray[Any]
Float32s = NDArray[np.float32]
State = dict[str, Tensors]


@dataclass(frozen=True)
class NetworkData:
    """Features and labels, held once on the device that trains.

    Attributes:
        features: float32 (n, n_views, d), on the host.
        label_ids: int64 (n,).
    """

    features: Float32s
    label_ids: NDArray[np.int64]
    n_classes: int

    @property
    def n_views(self) -> int:
        return int(self.features.shape[1])

    @cached_property
    def labels(self) -> Tensor:
        """int32 (n * n_views,)."""
        return ops.convert_to_tensor(np.repeat(self.label_ids, self.n_views).astype(np.int32))

    @cached_property
    def plain(self) -> Tensor:
        """float32 (n * n_views, d)."""
        return ops.convert_to_tensor(self.features.reshape(-1, self.features.shape[2]))

    @cached_property
    def layer_normed(self) -> Tensor:
        """The same, each row of mean 0 and variance 1."""
        shell = FittedHead(HeadConfig(normalisation="layer_norm"), self.n_classes, ())
        rows = self.features.reshape(-1, self.features.shape[2])
        return ops.convert_to_tensor(shell.normalised(rows))


class Network:
    """One network on the training rows of one fold.

    Row orders, first weights and dropout are drawn from the fold's seed and the number of the
    epoch: trained again it comes to the same weights.

    Attributes:
        epochs: trained so far.
    """

    def __init__(
        self, config: HeadConfig, data: NetworkData, fold: Fold, *, batch_size: int
    ) -> None:
        self.epochs = 0
        self._config, self._data, self._fold, self._batch = config, data, fold, batch_size
        self._n_steps = -(-len(fold.train) // batch_size)
        dim = data.features.shape[2]
        self._mean = self._variance = None
        shift, scale = np.zeros(dim, np.float32), np.ones(dim, np.float32)
        if config.normalisation == "standardise":
            rows = data.features[fold.train].reshape(-1, dim)
            self._mean, self._variance = feature_statistics(rows)
            shift, scale = self._mean, np.asarray(1 / np.sqrt(self._variance), np.float32)
        is_layer_normed = config.normalisation == "layer_norm"
        self._features = data.layer_normed if is_layer_normed else data.plain
        self._row_weights = np.ones(len(data.label_ids), np.float32)
        if config.class_weights == "balanced":
            of_class = balanced_weights(data.label_ids[fold.train], data.n_classes)
            self._row_weights = of_class[data.label_ids]
        self._head = {
            "shift": ops.convert_to_tensor(shift),
            "scale": ops.convert_to_tensor(scale),
            "activation": ops.convert_to_tensor(np.int32(_ACTIVATIONS.index(config.activation))),
            "is_adam": ops.convert_to_tensor(config.optimizer == "adamw"),
            **{name: ops.convert_to_tensor(np.float32(getattr(config, name))) for name in _SCALARS},
        }
        weights = self._first_weights(dim)
        self._state: State = {
            "weights": {name: ops.convert_to_tensor(value) for name, value in weights.items()},
            "momentum": {name: ops.zeros(value.shape) for name, value in weights.items()},
            "second": {name: ops.zeros(value.shape) for name, value in weights.items()},
        }

    @property
    def weights(self) -> Tensors:
        """The weights as they are now; training makes new tensors and leaves these."""
        return self._state["weights"]

    def run_epoch(self) -> None:
        """Train for one epoch: every training row once, each with a view of chance."""
        n_steps, seed = self._n_steps, self._fold.seed
        size = (-(-n_steps // _STEPS) * _STEPS, self._batch)
        order = row_order(seed, self.epochs, self._fold.train, self._data.n_views)
        rows, weights = np.zeros(size, np.int32), np.zeros(size, np.float32)
        rows.flat[: len(order)] = order
        weights.flat[: len(order)] = self._row_weights[order // self._data.n_views]
        keys = np.zeros((size[0], 3), np.uint32)
        for step in range(n_steps):
            keys[step] = [dropout_key(seed, self.epochs, step, layer) for layer in range(3)]
        rates, step_sizes = np.zeros(size[0], np.float32), np.zeros(size[0], np.float32)
        first = self.epochs * n_steps
        found = learning_rates(self._config, first, n_steps, self._config.epochs * n_steps)
        rates[:n_steps], step_sizes[:n_steps] = found, adam_step_sizes(found, first)
        plan = {
            "rows": rows,
            "row_weights": weights,
            "dropout_keys": keys,
            "rate": rates,
            "step_size": step_sizes,
        }
        self._state = _train_program()(
            self._state,
            self._head,
            {"features": self._features, "labels": self._data.labels},
            {name: ops.convert_to_tensor(value) for name, value in plan.items()},
            ops.convert_to_tensor(np.int32(n_steps)),
        )
        self.epochs += 1

    def logits(self, rows: NDArray[np.int64]) -> Float32s:
        """Logits of flat (row, view) indices, float32 (len(rows), c)."""
        padded = np.zeros(-(-len(rows) // _PREDICT_ROWS) * _PREDICT_ROWS, np.int32)
        padded[: len(rows)] = rows
        predict = _predict_program()
        found = [
            ops.convert_to_numpy(
                predict(self.weights, self._head, self._features, ops.convert_to_tensor(some))
            )
            for some in padded.reshape(-1, _PREDICT_ROWS)
        ]
        return np.concatenate(found)[: len(rows)]

    def fitted(self, weights: Tensors | None = None, epochs: int | None = None) -> FittedHead:
        """The head as it is now, or with weights of before, without the padding."""
        arrays = {
            n: np.array(ops.convert_to_numpy(w)) for n, w in (weights or self.weights).items()
        }
        sizes = self._sizes(arrays["kernel_1"].shape[0])
        layers = tuple(
            DenseWeights(arrays[f"kernel_{layer}"][:n_in, :n_out], arrays[f"bias_{layer}"][:n_out])
            for layer, (n_in, n_out) in enumerate(pairwise(sizes), start=1)
        )
        return FittedHead(
            config=self._config,
            n_classes=self._data.n_classes,
            layers=layers,
            mean=self._mean,
            variance=self._variance,
            epochs=epochs or self.epochs,
        )

    def _sizes(self, dim: int) -> list[int]:
        return [dim, *[self._config.width] * self._config.hidden_layers, self._data.n_classes]

    def _first_weights(self, dim: int) -> dict[str, Float32s]:
        sizes, hidden = self._sizes(dim), self._config.hidden_layers
        weights: dict[str, Float32s] = {}
        for layer, (n_in, n_out) in enumerate(pairwise(sizes), start=1):
            padded = [-(-n // _UNITS) * _UNITS for n in (n_in, n_out)]
            rows = padded[0] if layer > 1 else n_in
            columns = padded[1] if layer <= hidden else n_out
            kernel = np.zeros((rows, columns), np.float32)
            # the last layer of a deep head has the number 3, whatever its depth
            number = 3 if hidden and layer > hidden else layer
            kernel[:n_in, :n_out] = first_kernel(self._fold.seed, number, n_in, n_out)
            weights |= {f"kernel_{layer}": kernel, f"bias_{layer}": np.zeros(columns, np.float32)}
        return weights


# Fields of a config that the program takes as they are.
_SCALARS = ("input_dropout", "dropout", "label_smoothing", "weight_decay", "momentum")


@cache
def _train_program() -> Callable[..., State]:
    """Compile `train(state, head, data, plan, n_steps) -> state`: the steps of one epoch.

    Args of the program, float32 where not said:
        state: `weights`, `momentum`, `second`, by name.
        head: hyperparameters; `shift` and `scale` (d,) of the features.
        data: `features` (n, d), `labels` int32 (n,).
        plan: `rows` int32 (s, b), `row_weights` (s, b), `dropout_keys` uint32 (s, 3), `rate` and
            `step_size` (s,): the learning rate, and the same with Adam's bias correction.
        n_steps: int32, of the s that are taken.
    """

    def train(state: State, head: Tensors, data: Tensors, plan: Tensors, n_steps: Tensor) -> State:
        def step(index: Tensor, current: State) -> State:
            now = {name: ops.take(tensor, index, axis=0) for name, tensor in plan.items()}
            return _step(current, head, data, now)

        final: State = ops.fori_loop(0, n_steps, step, state)
        return final

    return compiled(train)


@cache
def _predict_program() -> Callable[..., Tensor]:
    """Compile `predict(weights, head, features, rows) -> logits`, rows int32 (b,)."""

    def predict(weights: Tensors, head: Tensors, features: Tensor, rows: Tensor) -> Tensor:
        inputs = (ops.take(features, rows, axis=0) - head["shift"]) * head["scale"]
        return _logits(weights, head, inputs, None)

    return compiled(predict)


def _step(state: State, head: Tensors, data: Tensors, now: Tensors) -> State:
    """Take one step of AdamW or SGD, as Keras's optimizers take it."""
    weights = state["weights"]
    inputs = (ops.take(data["features"], now["rows"], axis=0) - head["shift"]) * head["scale"]
    inputs = inputs * _dropout_mask(inputs.shape, head["input_dropout"], now["dropout_keys"][0])
    batch, hidden = inputs.shape[0], len(weights) // 2 - 1
    masks = [
        _dropout_mask(
            (batch, weights[f"bias_{layer}"].shape[0]), head["dropout"], now["dropout_keys"][layer]
        )
        for layer in range(1, hidden + 1)
    ]
    n_classes = weights[f"bias_{hidden + 1}"].shape[0]
    smoothing = head["label_smoothing"]
    labels = ops.take(data["labels"], now["rows"], axis=0)
    targets = ops.one_hot(labels, n_classes) * (1.0 - smoothing) + smoothing / n_classes
    row_weights = now["row_weights"] / ops.maximum(ops.sum(now["row_weights"]), 1e-12)

    def loss(weights: Tensors) -> Tensor:
        log_probabilities = ops.log_softmax(_logits(weights, head, inputs, masks), axis=-1)
        return ops.sum(-ops.sum(log_probabilities * targets, axis=-1) * row_weights)

    fresh: State = {"weights": {}, "momentum": {}, "second": {}}
    for name, gradient in gradients(loss, weights).items():
        decay = head["weight_decay"] * now["rate"] if name.startswith("kernel") else 0.0
        old = tuple(state[part][name] for part in fresh)
        new = _optimizer_step(old, gradient, decay, head, now)
        for part, value in zip(fresh, new, strict=True):
            fresh[part][name] = value
    return fresh


def _logits(weights: Tensors, head: Tensors, inputs: Tensor, masks: Any) -> Tensor:
    """(b, c); `masks` of the hidden layers in training."""
    values, n_layers = inputs, len(weights) // 2
    for layer in range(1, n_layers + 1):
        values = ops.matmul(values, weights[f"kernel_{layer}"]) + weights[f"bias_{layer}"]
        if layer < n_layers:
            values = _activated(values, head["activation"])
            if masks is not None:
                values = values * masks[layer - 1]
    return values


def _activated(values: Tensor, which: Tensor) -> Tensor:
    # All are computed and one is chosen: gradients of a branch take XLA half a minute to compile.
    result = values
    for index, name in enumerate(_ACTIVATIONS):
        result = ops.where(which == index, activations.get(name)(values), result)
    return result


def _dropout_mask(shape: tuple[int, int], rate: Tensor, key: Tensor) -> Tensor:
    """What to multiply with: 0 where a unit is dropped, else 1 / (1 - rate)."""
    rows = ops.convert_to_tensor(np.arange(shape[0], dtype=np.uint32))[:, None]
    units = ops.convert_to_tensor(np.arange(shape[1], dtype=np.uint32))

    def drawn() -> Tensor:
        return ops.where(dropout_uniform(key, rows, units, ops) >= rate, 1.0 / (1.0 - rate), 0.0)

    return ops.cond(rate > 0, drawn, lambda: ops.ones(shape))


def _optimizer_step(
    old: tuple[Tensor, ...], gradient: Tensor, decay: Tensor, head: Tensors, now: Tensors
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, momentum, second moment) after a step; `decay` of the weights, times the rate."""
    weights, momentum, second = old
    decayed = weights - weights * decay

    def adam() -> tuple[Tensor, Tensor, Tensor]:
        first = momentum + (gradient - momentum) * (1.0 - BETA_1)
        squares = second + (ops.square(gradient) - second) * (1.0 - BETA_2)
        return decayed - first * now["step_size"] / (ops.sqrt(squares) + EPSILON), first, squares

    def sgd() -> tuple[Tensor, Tensor, Tensor]:
        first = momentum * head["momentum"] - gradient * now["rate"]
        return decayed + first, first, second

    found: tuple[Tensor, Tensor, Tensor] = ops.cond(head["is_adam"], adam, sgd)
    return found


def learning_rates(config: HeadConfig, first_step: int, n_steps: int, total_steps: int) -> Array:
    """The learning rate of steps first_step ..., float64 (n_steps,).

    `cosine` is Keras's `CosineDecay` from 0 up to the rate over the warm-up, and down to 0 at
    `total_steps`.
    """
    steps = np.arange(first_step, first_step + n_steps, dtype=np.float64)
    if config.schedule == "constant":
        return np.full(n_steps, config.learning_rate)
    warmup = warmup_steps(config, total_steps)
    done = np.minimum(steps - warmup, total_steps - warmup) / max(total_steps - warmup, 1)
    falling = 0.5 * (1 + np.cos(np.pi * done))
    return np.asarray(
        config.learning_rate * np.where(steps < warmup, steps / max(warmup, 1), falling)
    )


def warmup_steps(config: HeadConfig, total_steps: int) -> int:
    """Steps over which the learning rate rises."""
    return min(round(config.warmup * total_steps), total_steps - 1)


def adam_step_sizes(rates: Array, first_step: int) -> Array:
    """Learning rates with Adam's bias correction (Kingma and Ba, 2015, section 2)."""
    step = np.arange(first_step + 1, first_step + 1 + len(rates), dtype=np.float64)
    return np.asarray(rates * np.sqrt(1 - BETA_2**step) / (1 - BETA_1**step))
