"""The compiled part of the head stack: an epoch of training steps, and a prediction.

Heads lie side by side in lanes. A lane is one column-wise weight matrix over one transformed copy
of the batch (normalisation and input dropout are the lane's); each of its `slots` holds at most
one head, which owns some of the lane's columns (its first layer's units). Later layers are kept
apart by masks. So a head costs what its width costs, a head without hidden layers a few columns,
and depth, optimizer and every hyperparameter are data: nothing recompiles when heads come and go.

Every lane exists once per row group (fold or repeat), with the same heads at the same places.

Axes: r row groups, l lanes, m slots, q columns, b batch, d features, c classes, s steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from keras import activations, ops

from headstart.heads.backend import Tensor, Tensors, compiled, gradients
from headstart.heads.fitted import LAYER_NORM_EPSILON
from headstart.heads.randomness import dropout_uniform

BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-7

State = dict[str, Tensors]


@dataclass(frozen=True)
class Shape:
    """Everything the compiled programs depend on besides the size of the data.

    `activations` of hidden columns; the first is `linear`, of columns that pass values on.
    """

    groups: int
    lanes: int
    slots: int
    columns: int
    feature_dim: int
    n_classes: int
    batch_size: int
    activations: tuple[str, ...] = ("linear", "relu")
    deep: bool = False
    dropout: bool = False
    input_dropout: bool = False
    layer_norm: bool = False

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shape of each weight tensor."""
        lead = (self.groups, self.lanes)
        outputs = self.slots * self.n_classes
        shapes: dict[str, tuple[int, ...]] = {
            "kernel_1": (*lead, self.feature_dim, self.columns),
            "bias_1": (*lead, 1, self.columns),
            "kernel_out": (*lead, self.columns, outputs),
            "bias_out": (*lead, 1, outputs),
        }
        if self.deep:
            shapes["kernel_2"] = (*lead, self.columns, self.columns)
            shapes["bias_2"] = (*lead, 1, self.columns)
        return shapes

    def training_bytes(self) -> int:
        """Of all weights in float32, each with its gradient and both of its moments."""
        return 4 * 4 * sum(math.prod(shape) for shape in self.weights().values())


# Of weights, gradients and moments. A step holds them more than twice, and with 25,088 features
# two lanes of 256 units take as much; with 1,280 and five folds, eight lanes do.
MOST_TRAINING_BYTES = 250_000_000


@lru_cache(maxsize=32)
def epoch_program(shape: Shape) -> Callable[..., State]:
    """Compile `train(state, heads, data, plan) -> state`: all steps of one epoch in one call.

    Args of the program, float32 where not said:
        state: `weights`, `momentum`, `second`, each as `Shape.weights`.
        heads: the hyperparameters; see `headstart.heads.table`.
        data: `features` (n, d); `labels` int32 (n,), one a feature row.
        plan: `rows` int32 (s, r, b); `row_weights` (s, r, b); `rate`, `step_size`, `moving`
            (s, r, l, m): the learning rate, the same with Adam's bias correction, and 1 where the
            head takes the step; `dropout_keys` uint32 (s, r, 3).
    """

    def train(state: State, heads: Tensors, data: Tensors, plan: Tensors) -> State:
        n_steps = plan["rows"].shape[0]

        def step(index: Tensor, current: State) -> State:
            now = {name: ops.take(tensor, index, axis=0) for name, tensor in plan.items()}
            return _step(shape, current, heads, data, now)

        final: State = ops.fori_loop(0, n_steps, step, state)
        return final

    return compiled(train)


@lru_cache(maxsize=32)
def predict_program(shape: Shape) -> Callable[..., Tensor]:
    """Compile `predict(weights, heads, features, rows) -> logits`.

    rows: int32 (r, b). The program returns float32 (r, l, b, m, c).
    """

    def predict(weights: Tensors, heads: Tensors, features: Tensor, rows: Tensor) -> Tensor:
        inputs = _inputs(shape, heads, features, rows, None)
        return _logits(shape, weights, heads, inputs, None)

    return compiled(predict)


def _step(shape: Shape, state: State, heads: Tensors, data: Tensors, now: Tensors) -> State:
    inputs = _inputs(shape, heads, data["features"], now["rows"], now)
    labels = ops.take(data["labels"], now["rows"], axis=0)
    one_hot = ops.one_hot(labels, shape.n_classes)[:, None]
    row_weights = _row_weights(heads, one_hot, now)
    smoothing = heads["smoothing"][:, None, :, None]
    targets = one_hot[:, :, :, None] * (1.0 - smoothing) + smoothing / shape.n_classes

    def loss(weights: Tensors) -> Tensor:
        logits = _logits(shape, weights, heads, inputs, now)
        losses = -ops.sum(ops.log_softmax(logits, axis=-1) * targets, axis=-1)
        return ops.sum(losses * row_weights)

    return _updated(shape, state, gradients(loss, state["weights"]), heads, now)


def _row_weights(heads: Tensors, one_hot: Tensor, now: Tensors) -> Tensor:
    """(r, l, b, m), each head's summing to 1 over the batch, or all 0 where no row counts."""
    of_class = ops.matmul(one_hot, ops.swapaxes(heads["class_weights"], -1, -2))
    weights = of_class * now["row_weights"][:, None, :, None]
    return weights / ops.maximum(ops.sum(weights, axis=2, keepdims=True), 1e-12)


def _inputs(
    shape: Shape, heads: Tensors, features: Tensor, rows: Tensor, now: Tensors | None
) -> Tensor:
    """The batch as each lane sees it, (r, l, b, d); with dropout where `now` is a training step."""
    batch = ops.take(features, rows, axis=0)[:, None]
    values = (batch - heads["mean"]) * heads["scale"]
    if shape.layer_norm:
        centred = batch - ops.mean(batch, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
        normed = centred * ops.rsqrt(variance + LAYER_NORM_EPSILON)
        values = ops.where(heads["layer_norm"] > 0, normed, values)
    if shape.input_dropout and now is not None:
        units = ops.convert_to_tensor(np.arange(shape.feature_dim, dtype=np.uint32))
        values = _dropped(shape, values, heads["input_dropout"], units, now["dropout_keys"][:, 0])
    return values


def _logits(
    shape: Shape, weights: Tensors, heads: Tensors, inputs: Tensor, now: Tensors | None
) -> Tensor:
    """(r, l, b, m, c)."""
    values = ops.matmul(inputs, weights["kernel_1"]) + weights["bias_1"]
    values = _activated(shape, values, heads["activation_1"])
    values = _hidden_dropout(shape, values, heads, "dropout_1", 1, now)
    if shape.deep:
        values = ops.matmul(values, weights["kernel_2"]) + weights["bias_2"]
        values = _activated(shape, values, heads["activation_2"])
        values = _hidden_dropout(shape, values, heads, "dropout_2", 2, now)
    outputs = ops.matmul(values, weights["kernel_out"]) + weights["bias_out"]
    lead = (shape.groups, shape.lanes, shape.batch_size)
    return ops.reshape(outputs, (*lead, shape.slots, shape.n_classes))


def _hidden_dropout(
    shape: Shape, values: Tensor, heads: Tensors, rate: str, layer: int, now: Tensors | None
) -> Tensor:
    if not shape.dropout or now is None:
        return values
    return _dropped(shape, values, heads[rate], heads["units"], now["dropout_keys"][:, layer])


def _dropped(shape: Shape, values: Tensor, rate: Tensor, units: Tensor, key: Tensor) -> Tensor:
    rows = ops.convert_to_tensor(np.arange(shape.batch_size, dtype=np.uint32))[:, None]
    uniform = dropout_uniform(key[:, None, None, None], rows, units, ops)
    return ops.where(uniform >= rate, values / (1.0 - rate), 0.0)


def _activated(shape: Shape, values: Tensor, which: Tensor) -> Tensor:
    result = values
    for index, name in enumerate(shape.activations):
        if index > 0:
            result = ops.where(which == index, activations.get(name)(values), result)
    return result


def _updated(shape: Shape, state: State, found: Tensors, heads: Tensors, now: Tensors) -> State:
    """One AdamW or SGD step of every weight, as Keras's optimizers take it."""
    settings = {
        "rate": now["rate"],
        "step_size": now["step_size"],
        "moving": now["moving"],
        **{name: heads[name] for name in ("adam", "decay", "momentum")},
    }
    of_column = {
        name: ops.matmul(value[..., None, :], heads["owner"]) for name, value in settings.items()
    }
    of_output = {
        name: ops.repeat(value, shape.n_classes, axis=-1)[..., None, :]
        for name, value in settings.items()
    }
    fresh: State = {"weights": {}, "momentum": {}, "second": {}}
    for name, gradient in found.items():
        own = of_output if name.endswith("out") else of_column
        if not name.startswith("kernel"):
            own = own | {"decay": 0.0}
        trained = (
            own["moving"] * heads[f"trained_{name}"]
            if f"trained_{name}" in heads
            else own["moving"]
        )
        old = tuple(state[part][name] for part in fresh)
        new = _optimizer_step(old, gradient, own)
        for part, before, after in zip(fresh, old, new, strict=True):
            fresh[part][name] = ops.where(trained > 0, after, before)
    return fresh


def _optimizer_step(
    old: tuple[Tensor, ...], gradient: Tensor, own: Tensors
) -> tuple[Tensor, Tensor, Tensor]:
    """Both optimizers' results, each head's own chosen: (weights, momentum, second moment)."""
    weight, momentum, second = old
    is_adam = own["adam"] > 0
    decayed = weight - weight * own["decay"] * own["rate"]
    first = ops.where(
        is_adam,
        momentum + (gradient - momentum) * (1.0 - BETA_1),
        momentum * own["momentum"] - gradient * own["rate"],
    )
    square = second + (ops.square(gradient) - second) * (1.0 - BETA_2)
    adam = decayed - first * own["step_size"] / (ops.sqrt(square) + EPSILON)
    return ops.where(is_adam, adam, decayed + first), first, square
