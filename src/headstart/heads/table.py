"""The hyperparameters of a stack's heads as arrays: what the compiled programs take as `heads`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.heads.config import HeadConfig
from headstart.heads.lanes import Place
from headstart.heads.program import BETA_1, BETA_2, Shape

Array = NDArray[Any]


class HeadTable:
    """One entry a head at its place; places without a head are frozen zeros.

    Attributes:
        arrays: by name, as `program` reads them. With lanes l, slots m, columns q, classes c:
            owner (l, m, q): 1 where the slot's head owns the column; units (l, 1, q) uint32: the
            column's index within its head; activation_1, activation_2, dropout_1, dropout_2
            (l, 1, q); layer_norm, input_dropout (l, 1, 1); mean, scale (r, l, 1, d); adam, decay,
            momentum, smoothing (l, m); class_weights (r, l, m, c); and 1 where a weight beyond
            the first layer is trained: trained_kernel_out (l, q, m * c), trained_bias_out,
            trained_kernel_2 (l, q, q), trained_bias_2.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        lanes, slots, columns = shape.lanes, shape.slots, shape.columns
        outputs = slots * shape.n_classes
        of_column = ("activation_1", "activation_2", "dropout_1", "dropout_2", "trained_bias_2")
        of_head = ("adam", "decay", "momentum", "smoothing")
        self.arrays: dict[str, Array] = {
            "owner": _zeros(lanes, slots, columns),
            "units": np.zeros((lanes, 1, columns), np.uint32),
            "layer_norm": _zeros(lanes, 1, 1),
            "input_dropout": _zeros(lanes, 1, 1),
            "mean": _zeros(shape.groups, lanes, 1, shape.feature_dim),
            "scale": np.ones((shape.groups, lanes, 1, shape.feature_dim), np.float32),
            "class_weights": _zeros(shape.groups, lanes, slots, shape.n_classes),
            "trained_kernel_out": _zeros(lanes, columns, outputs),
            "trained_bias_out": _zeros(lanes, 1, outputs),
            "trained_kernel_2": _zeros(lanes, columns, columns),
            **{name: _zeros(lanes, 1, columns) for name in of_column},
            **{name: _zeros(lanes, slots) for name in of_head},
        }

    def put(self, place: Place, config: HeadConfig, class_weights: Array) -> None:
        """Enter a head; class_weights: float32 (r, c)."""
        self.clear(place)
        table, lane, slot, columns = self.arrays, place.lane, place.slot, place.columns
        table["owner"][lane, slot, columns] = 1
        table["units"][lane, 0, columns] = np.arange(len(columns))
        table["layer_norm"][lane] = config.normalisation == "layer_norm"
        table["input_dropout"][lane] = config.input_dropout
        table["class_weights"][:, lane, slot] = class_weights
        table["adam"][lane, slot] = config.optimizer == "adamw"
        table["decay"][lane, slot] = config.weight_decay
        table["momentum"][lane, slot] = config.momentum
        table["smoothing"][lane, slot] = config.label_smoothing
        for layer in range(1, config.hidden_layers + 1):
            which = self.shape.activations.index(config.activation)
            table[f"activation_{layer}"][lane, 0, columns] = which
            table[f"dropout_{layer}"][lane, 0, columns] = config.dropout
        if config.hidden_layers >= 1:
            outputs = self.outputs(slot)
            table["trained_kernel_out"][lane, columns, outputs] = 1
            table["trained_bias_out"][lane, 0, outputs] = 1
        if config.hidden_layers >= 2:
            table["trained_kernel_2"][lane][np.ix_(columns, columns)] = 1
            table["trained_bias_2"][lane, 0, columns] = 1

    def clear(self, place: Place) -> None:
        """Freeze what is at a place."""
        table, lane, slot, columns = self.arrays, place.lane, place.slot, place.columns
        for name in ("units", "activation_1", "activation_2", "dropout_1", "dropout_2"):
            table[name][lane, 0, columns] = 0
        table["owner"][lane, slot] = 0
        table["trained_kernel_out"][lane, columns] = 0
        table["trained_bias_out"][lane, 0, self.outputs(slot)] = 0
        table["trained_kernel_2"][lane, :, columns] = 0
        table["trained_kernel_2"][lane, columns] = 0
        table["trained_bias_2"][lane, 0, columns] = 0

    def standardise(self, lane: int, mean: Array, scale: Array) -> None:
        """Set how a lane shifts and scales features; both float32 (r, d)."""
        self.arrays["mean"][:, lane, 0] = mean
        self.arrays["scale"][:, lane, 0] = scale

    def outputs(self, slot: int) -> slice:
        """The output columns of a slot."""
        return slice(slot * self.shape.n_classes, (slot + 1) * self.shape.n_classes)


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


def _zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)
