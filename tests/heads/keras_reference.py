"""A head as a plain Keras model, trained step by step: what `Network` must equal."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from headstart.heads.backend import gradients
from headstart.heads.config import HeadConfig
from headstart.heads.fitted import LAYER_NORM_EPSILON, feature_statistics
from headstart.heads.folds import Fold, balanced_weights
from headstart.heads.network import (
    dropout_key,
    dropout_uniform,
    first_kernel,
    row_order,
    warmup_steps,
)

Array = NDArray[Any]


class SeededDropout(keras.layers.Layer):  # type: ignore[misc]
    """`keras.layers.Dropout` with the mask that `Network` draws for that step."""

    def __init__(self, rate: float, layer: int) -> None:
        super().__init__()
        self.rate, self.layer, self.step = rate, layer, (0, 0, 0)

    def call(self, values: Any, training: bool = False) -> Any:
        if not training or self.rate == 0:
            return values
        seed, epoch, step = self.step
        key = np.uint32(dropout_key(seed, epoch, step, self.layer))
        rows = np.arange(values.shape[0], dtype=np.uint32)[:, None]
        uniform = dropout_uniform(key, rows, np.arange(values.shape[1], dtype=np.uint32), np)
        return values * (uniform >= self.rate).astype(np.float32) / (1 - self.rate)


def build(config: HeadConfig, rows: Array, n_classes: int, seed: int) -> keras.Sequential:
    layers: list[Any] = [keras.layers.Input((rows.shape[1],))]
    if config.normalisation == "standardise":
        mean, variance = feature_statistics(rows)
        layers.append(keras.layers.Normalization(mean=mean, variance=variance))
    if config.normalisation == "layer_norm":
        layers.append(
            keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, center=False, scale=False)
        )
    layers.append(SeededDropout(config.input_dropout, 0))
    for layer in range(1, config.hidden_layers + 1):
        layers.append(keras.layers.Dense(config.width, activation=config.activation))
        layers.append(SeededDropout(config.dropout, layer))
    layers.append(keras.layers.Dense(n_classes))
    model = keras.Sequential(layers)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    numbers = [1, 2, 3] if len(dense) == 3 else [1, 3][: len(dense)]
    for number, layer in zip(numbers, dense, strict=True):
        n_in, n_out = layer.kernel.shape
        layer.set_weights([first_kernel(seed, number, n_in, n_out), np.zeros(n_out, np.float32)])
    return model


def optimizer(config: HeadConfig, total_steps: int) -> keras.optimizers.Optimizer:
    rate: Any = config.learning_rate
    if config.schedule == "cosine":
        warmup = warmup_steps(config, total_steps)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else config.learning_rate,
            total_steps - warmup,
            warmup_target=config.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    if config.optimizer == "adamw":
        found = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    else:
        found = keras.optimizers.SGD(
            rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    found.exclude_from_weight_decay(var_names=["bias"])
    return found


def train(
    config: HeadConfig,
    features: Array,
    label_ids: Array,
    fold: Fold,
    *,
    n_classes: int,
    batch_size: int,
    epochs: int,
) -> tuple[keras.Sequential, list[Array]]:
    """Train for `epochs`; also the logits on the validation rows after each."""
    rows, seed = fold.train, fold.seed
    model = build(config, features[rows], n_classes, seed)
    steps = -(-len(rows) // batch_size)
    update = optimizer(config, config.epochs * steps)
    update.build(model.trainable_variables)
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True,
        label_smoothing=config.label_smoothing,
        reduction="mean_with_sample_weight",
    )
    of_class = np.ones(n_classes, np.float32)
    if config.class_weights == "balanced":
        of_class = balanced_weights(label_ids[rows], n_classes)
    curve = []
    for epoch in range(epochs):
        order = row_order(seed, epoch, rows, 1)
        for step in range(steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            _set_step(model.layers, (seed, epoch, step))
            weights = of_class[label_ids[batch]]
            targets = np.eye(n_classes, dtype=np.float32)[label_ids[batch]]
            _step(model, update, loss, features[batch], targets, weights)
        curve.append(np.asarray(ops.convert_to_numpy(model(features[fold.validation]))))
    return model, curve


def _set_step(layers: Sequence[Any], step: tuple[int, int, int]) -> None:
    for layer in layers:
        if isinstance(layer, SeededDropout):
            layer.step = step


def _step(model: Any, update: Any, loss: Any, rows: Array, targets: Array, weights: Array) -> None:
    variables = model.trainable_variables
    state = model.non_trainable_variables

    def value(values: dict[str, Any]) -> Any:
        logits, _ = model.stateless_call(
            [values[str(i)] for i in range(len(variables))], state, rows, training=True
        )
        return loss(targets, logits, sample_weight=weights)

    found = gradients(
        value, {str(i): ops.convert_to_tensor(v.value) for i, v in enumerate(variables)}
    )
    update.apply([found[str(i)] for i in range(len(variables))], variables)
