"""A network head in training: one epoch of steps is one call of a compiled program.

Depth and width are the program's; every other hyperparameter is data, so heads of one shape share
it. So is the set of feature blocks: columns that a head does not use are zero. Folds and repeats
are networks of their own: batched into one model they take the same time on a CPU (ARCHITECTURE.md
has the figures), and all their weights at once in memory.

Every random number is reproducible from outside: row orders and first weights are drawn with numpy
from seeds; dropout keeps are a hash of (seed, step, layer, place in the batch, unit).

Axes: s steps, b batch, d features, u units, c classes.
"""

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, get_args

import numpy as np
from keras import activations, ops
from numpy.typing import NDArray

from headstart.heads.backend import Tensor, Tensors, compiled, gradients
from headstart.heads.config import HeadConfig, chosen_layers
from headstart.heads.fitted import DenseWeights, FittedHead, feature_statistics
from headstart.heads.folds import Fold, balanced_weights
from headstart.params.head import Activation

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
_ACTIVATIONS = get_args(Activation)
_JUDGED = 256
# Hidden layers are padded with units of weight zero to a multiple of this, so that widths of a
# range share programs. Every activation maps 0 to 0, so the padding stays zero in training.
_UNITS = 128
_STEPS = 8
_MASK64 = (1 << 64) - 1
_ROW = 0x9E3779B1
_UNIT = 0x85EBCA77

Array = NDArray[Any]
Float32s = NDArray[np.float32]
State = dict[str, Tensors]


class NetworkData:
    """Features and labels, held once on the device that trains.

    Args:
        features: float32 (n, n_views, d).
        label_ids: int64 (n,).
        blocks: layer → its columns of `features`.
    """

    def __init__(
        self,
        features: Float32s,
        label_ids: NDArray[np.int64],
        n_classes: int,
        blocks: Mapping[str, slice],
    ) -> None:
        self.n_views, self.dim = features.shape[1:]
        self.features, self.label_ids, self.n_classes = features, label_ids, n_classes
        self._blocks = dict(blocks)
        self._layer_normed: tuple[str, Tensor] | None = None

    def columns(self, config: HeadConfig) -> NDArray[np.int64]:
        """The columns of the feature blocks that a head uses."""
        every = np.arange(self.dim)
        names = chosen_layers(config.layers, tuple(self._blocks))
        return np.concatenate([every[self._blocks[name]] for name in names])

    def rows(self, config: HeadConfig) -> Tensor:
        """float32 (n * n_views, d); for `layer_norm` each row has mean 0 and variance 1."""
        if config.normalisation != "layer_norm":
            return self._plain
        if self._layer_normed is None or self._layer_normed[0] != config.layers:
            shell, columns = FittedHead(config, self.n_classes, ()), self.columns(config)
            rows = np.zeros((len(self.features) * self.n_views, self.dim), np.float32)
            rows[:, columns] = shell.normalised(self.features.reshape(rows.shape)[:, columns])
            self._layer_normed = config.layers, ops.convert_to_tensor(rows)
        return self._layer_normed[1]

    @cached_property
    def labels(self) -> Tensor:
        """int32 (n * n_views,)."""
        return ops.convert_to_tensor(np.repeat(self.label_ids, self.n_views).astype(np.int32))

    @cached_property
    def _plain(self) -> Tensor:
        return ops.convert_to_tensor(self.features.reshape(-1, self.dim))


class Network:
    """One network on the training rows of one fold.

    Row orders, first weights and dropout are drawn from the fold's seed and the number of the
    epoch: trained again it comes to the same weights.

    Args:
        judged: flat (row, view) indices whose logits are wanted after each epoch.

    Attributes:
        epochs: trained so far.
    """

    def __init__(
        self,
        config: HeadConfig,
        data: NetworkData,
        fold: Fold,
        *,
        batch_size: int,
        judged: NDArray[np.int64] | None = None,
    ) -> None:
        self.epochs = 0
        self._config, self._data, self._fold, self._batch = config, data, fold, batch_size
        self._n_steps = -(-len(fold.train) // batch_size)
        self._n_judged = 0 if judged is None else len(judged)
        self._judged = np.zeros((max(1, -(-self._n_judged // _JUDGED)), _JUDGED), np.int32)
        self._judged.flat[: self._n_judged] = [] if judged is None else judged
        self._columns = columns = data.columns(config)
        self._mean = self._variance = None
        shift, scale = np.zeros(data.dim, np.float32), np.zeros(data.dim, np.float32)
        scale[columns] = 1
        if config.normalisation == "standardise":
            rows = data.features[fold.train][:, :, columns].reshape(-1, len(columns))
            self._mean, self._variance = feature_statistics(rows)
            shift[columns], scale[columns] = self._mean, 1 / np.sqrt(self._variance)
        places = np.zeros(data.dim, np.uint32)
        places[columns] = np.arange(len(columns))
        self._row_weights = np.ones(len(data.label_ids), np.float32)
        if config.class_weights == "balanced":
            of_class = balanced_weights(data.label_ids[fold.train], data.n_classes)
            self._row_weights = of_class[data.label_ids]
        self._head = {
            "shift": ops.convert_to_tensor(shift),
            "scale": ops.convert_to_tensor(scale),
            "places": ops.convert_to_tensor(places),
            "activation": ops.convert_to_tensor(np.int32(_ACTIVATIONS.index(config.activation))),
            **{name: ops.convert_to_tensor(np.float32(getattr(config, name))) for name in _SCALARS},
        }
        weights = self._first_weights()
        moments = ("momentum", "second") if config.optimizer == "adamw" else ("momentum",)
        self._state: State = {
            "weights": {name: ops.convert_to_tensor(value) for name, value in weights.items()},
            **{m: {name: ops.zeros(w.shape) for name, w in weights.items()} for m in moments},
        }

    @property
    def weights(self) -> Tensors:
        """The weights as they are now; training makes new tensors and leaves these."""
        return self._state["weights"]

    def run_epoch(self) -> Float32s:
        """Train for one epoch: every training row once, each with a view of chance.

        Returns:
            Logits of the judged rows after it, float32 (len(judged), c).
        """
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
        self._state, logits = _epoch_program()(
            self._state,
            self._head,
            {"features": self._data.rows(self._config), "labels": self._data.labels},
            {name: ops.convert_to_tensor(value) for name, value in plan.items()},
            ops.convert_to_tensor(np.int32(n_steps)),
            ops.convert_to_tensor(self._judged),
        )
        self.epochs += 1
        found = np.asarray(ops.convert_to_numpy(logits))
        return found.reshape(-1, found.shape[-1])[: self._n_judged]

    def fitted(self, weights: Tensors | None = None, epochs: int | None = None) -> FittedHead:
        """The head as it is now, or with weights of before, without the padding."""
        arrays = {
            n: np.array(ops.convert_to_numpy(w)) for n, w in (weights or self.weights).items()
        }
        arrays["kernel_1"] = arrays["kernel_1"][self._columns]
        sizes = self._sizes()
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

    def _sizes(self) -> list[int]:
        hidden = [self._config.width] * self._config.hidden_layers
        return [len(self._columns), *hidden, self._data.n_classes]

    def _first_weights(self) -> dict[str, Float32s]:
        sizes, hidden = self._sizes(), self._config.hidden_layers
        weights: dict[str, Float32s] = {}
        for layer, (n_in, n_out) in enumerate(pairwise(sizes), start=1):
            rows, units = (-(-n // _UNITS) * _UNITS for n in (n_in, n_out))
            if layer == 1:
                rows = self._data.dim
            if layer > hidden:
                units = n_out
            kernel = np.zeros((rows, units), np.float32)
            used = self._columns if layer == 1 else np.arange(n_in)
            # the last layer of a deep head has the number 3, whatever its depth
            number = 3 if hidden and layer > hidden else layer
            kernel[used, :n_out] = first_kernel(self._fold.seed, number, n_in, n_out)
            weights |= {f"kernel_{layer}": kernel, f"bias_{layer}": np.zeros(units, np.float32)}
        return weights


# Fields of a config that the program takes as they are.
_SCALARS = ("input_dropout", "dropout", "label_smoothing", "weight_decay", "momentum")


@cache
def _epoch_program() -> Callable[..., tuple[State, Tensor]]:
    """Compile `epoch(state, head, data, plan, n_steps, judged) -> (state, logits)`.

    Args of the program, float32 where not said:
        state: `weights`, `momentum`, `second`, by name.
        head: hyperparameters; `shift` and `scale` (d,) of the features, `scale` 0 where a feature
            is not used; `places` uint32 (d,) of the features among those that are.
        data: `features` (n, d), `labels` int32 (n,).
        plan: `rows` int32 (s, b), `row_weights` (s, b), `dropout_keys` uint32 (s, 3), `rate` and
            `step_size` (s,): the learning rate, and the same with Adam's bias correction.
        n_steps: int32, of the s that are taken.
        judged: int32 (m, j), rows whose `logits`, (m, j, c), are wanted afterwards.
    """

    def epoch(
        state: State, head: Tensors, data: Tensors, plan: Tensors, n_steps: Tensor, judged: Tensor
    ) -> tuple[State, Tensor]:
        def step(index: Tensor, current: State) -> State:
            now = {name: ops.take(tensor, index, axis=0) for name, tensor in plan.items()}
            return _step(current, head, data, now)

        def answer(rows: Tensor) -> Tensor:
            return _logits(final["weights"], head, _inputs(head, data, rows), None)

        final: State = ops.fori_loop(0, n_steps, step, state)
        return final, ops.map(answer, judged)

    return compiled(epoch)


def _inputs(head: Tensors, data: Tensors, rows: Tensor) -> Tensor:
    return (ops.take(data["features"], rows, axis=0) - head["shift"]) * head["scale"]


def _step(state: State, head: Tensors, data: Tensors, now: Tensors) -> State:
    """Take one step of AdamW or SGD, as Keras's optimizers take it."""
    weights = state["weights"]
    batch, hidden = now["rows"].shape[0], len(weights) // 2 - 1
    mask = _dropout_mask(batch, head["places"], head["input_dropout"], now["dropout_keys"][0])
    inputs = _inputs(head, data, now["rows"]) * mask
    masks = []
    for layer in range(1, hidden + 1):
        units = np.arange(weights[f"bias_{layer}"].shape[0], dtype=np.uint32)
        units = ops.convert_to_tensor(units)
        masks.append(_dropout_mask(batch, units, head["dropout"], now["dropout_keys"][layer]))
    n_classes = weights[f"bias_{hidden + 1}"].shape[0]
    smoothing = head["label_smoothing"]
    labels = ops.take(data["labels"], now["rows"], axis=0)
    targets = ops.one_hot(labels, n_classes) * (1.0 - smoothing) + smoothing / n_classes
    row_weights = now["row_weights"] / ops.maximum(ops.sum(now["row_weights"]), 1e-12)

    def loss(weights: Tensors) -> Tensor:
        log_probabilities = ops.log_softmax(_logits(weights, head, inputs, masks), axis=-1)
        return ops.sum(-ops.sum(log_probabilities * targets, axis=-1) * row_weights)

    fresh: State = {part: {} for part in state}
    for name, gradient in gradients(loss, weights).items():
        old = {part: state[part][name] for part in state}
        decay = head["weight_decay"] * now["rate"] if name.startswith("kernel") else 0.0
        decayed = old["weights"] - old["weights"] * decay
        new = (_adamw if "second" in state else _sgd)(old, decayed, gradient, head, now)
        for part, value in new.items():
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


def _dropout_mask(batch: int, units: Tensor, rate: Tensor, key: Tensor) -> Tensor:
    """What to multiply with, (batch, u): 0 where a unit is dropped, else 1 / (1 - rate)."""
    rows = ops.convert_to_tensor(np.arange(batch, dtype=np.uint32))[:, None]

    keep = dropout_uniform(key, rows, units, ops) >= rate
    return ops.where(keep, 1.0 / (1.0 - rate), 0.0)


def _adamw(old: Tensors, decayed: Tensor, gradient: Tensor, head: Tensors, now: Tensors) -> Tensors:
    """Loshchilov and Hutter (2019), as Keras's `AdamW`."""
    del head
    first = old["momentum"] + (gradient - old["momentum"]) * (1.0 - BETA_1)
    second = old["second"] + (ops.square(gradient) - old["second"]) * (1.0 - BETA_2)
    weights = decayed - first * now["step_size"] / (ops.sqrt(second) + EPSILON)
    return {"weights": weights, "momentum": first, "second": second}


def _sgd(old: Tensors, decayed: Tensor, gradient: Tensor, head: Tensors, now: Tensors) -> Tensors:
    """Keras's `SGD` with momentum and decoupled weight decay."""
    momentum = old["momentum"] * head["momentum"] - gradient * now["rate"]
    return {"weights": decayed + momentum, "momentum": momentum}


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


def row_order(seed: int, epoch: int, rows: NDArray[np.int64], n_views: int) -> NDArray[np.int64]:
    """The flat (row, view) indices of one epoch: `rows` shuffled, each with a view of chance.

    Returns:
        int64, shape (len(rows),), values row * n_views + view.
    """
    chance = np.random.default_rng([seed, epoch, 1])
    shuffled = chance.permutation(rows)
    if n_views == 1:
        return shuffled
    return np.asarray(shuffled * n_views + chance.integers(n_views, size=len(rows)))


def first_kernel(seed: int, layer: int, n_in: int, n_out: int) -> NDArray[np.float32]:
    """Glorot-uniform kernel, float32 (n_in, n_out), as Keras's `Dense` begins with."""
    limit = np.float32(np.sqrt(6.0 / (n_in + n_out)))
    chance = np.random.default_rng([seed, layer, 2])
    return (chance.random((n_in, n_out), np.float32) * 2 - 1) * limit


def dropout_key(seed: int, epoch: int, step: int, layer: int) -> int:
    """The 32-bit key of one dropout layer's mask in one step of one epoch.

    Layer 0 drops inputs, 1 and 2 drop units of the hidden layers.
    """
    mixed = 0
    for part in (seed, epoch, step, layer):
        # the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & _MASK64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
        mixed ^= mixed >> 31
    return mixed >> 32


def dropout_uniform(key: Any, rows: Any, units: Any, ops: Any) -> Any:
    """Uniform numbers in [0, 1) for a batch: a unit is dropped where they are below the rate.

    Args:
        key, rows, units: uint32, broadcastable: `dropout_key`, place in the batch, unit's index.
        ops: `numpy` or `keras.ops`: both give the same numbers.

    Returns:
        float32 of the broadcast shape. The mixing is MurmurHash3's 32-bit finaliser.
    """
    value = key + rows * _constant(ops, _ROW) + units * _constant(ops, _UNIT)
    value = ops.bitwise_xor(value, ops.right_shift(value, _constant(ops, 16)))
    value = value * _constant(ops, 0x85EBCA6B)
    value = ops.bitwise_xor(value, ops.right_shift(value, _constant(ops, 13)))
    value = value * _constant(ops, 0xC2B2AE35)
    value = ops.bitwise_xor(value, ops.right_shift(value, _constant(ops, 16)))
    top = ops.right_shift(value, _constant(ops, 8))
    if ops is np:
        return top.astype(np.float32) * np.float32(2**-24)
    return ops.cast(top, "float32") * 2**-24


def _constant(ops: Any, value: int) -> Any:
    return np.uint32(value) if ops is np else ops.convert_to_tensor(np.uint32(value))
