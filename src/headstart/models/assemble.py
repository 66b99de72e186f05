"""One flat Keras graph out of a frozen encoder, trained heads and a temperature.

Plain Keras layers alone, every one named, so that any Keras loads the file. Knows nothing of files
and of training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.encoders.onnx_encoder import OnnxEncoder
from headstart.heads.config import chosen_layers
from headstart.heads.fitted import LAYER_NORM_EPSILON, DenseWeights, FittedHead
from headstart.models.inference import FEATURES, LOGITS, PROBABILITIES

if TYPE_CHECKING:
    import keras

TEMPERATURE = "temperature"
# No layer of an encoder begins so.
HEAD_PREFIX = "classifier"


def assemble(
    encoder: "keras.Model | OnnxEncoder",
    heads: Sequence[FittedHead],
    temperature: float,
    layers: Sequence[str] | None = None,
) -> "keras.Model":
    """Return the whole model: uint8 (n, size, size, 3) to probabilities float32 (n, n_classes).

    The layers of `encoder` are wired anew, not nested. The logits of several heads are averaged.
    Of an encoder in ONNX it is the head alone: features (n, n_features) to probabilities.

    Args:
        layers: whose blocks the heads take; by default all. What only others need is left out.

    Raises:
        TrainingError: the encoder's output is not named `features`, or does not fit the heads.
    """
    import keras

    if isinstance(encoder, OnnxEncoder):
        features = start = keras.Input((encoder.width(layers),), name=FEATURES)
    else:
        start, features, last = encoder.input, encoder.output, encoder.layers[-1]
        if last.name != FEATURES:
            raise TrainingError(
                f"an encoder must end in a layer named {FEATURES}, but got {last.name}: "
                "make models/backbone.h5 again with `dvc repro --force extract`"
            )
        if layers is not None and isinstance(last, keras.layers.Concatenate):
            # In the encoder's own order; `features_<layer>` pools a layer's block.
            blocks = [t for t in last.input if _origin(t).removeprefix(f"{FEATURES}_") in layers]
            if len(blocks) < len(last.input):
                features = keras.layers.Concatenate(name=FEATURES, dtype="float32")(blocks)

    feature_dim = features.shape[-1]
    for head in heads:
        expected = head.layers[0].kernel.shape[0]
        if expected != feature_dim:
            raise TrainingError(
                f"the head must be trained on the encoder's {feature_dim} features, but was "
                f"trained on {expected}: run `dvc repro extract search train`"
            )
    if len(heads) == 1:
        logits = _one_head(features, heads[0], HEAD_PREFIX, LOGITS)
    else:
        branches = [
            _one_head(features, head, f"{HEAD_PREFIX}_{i}", f"{LOGITS}_{i}")
            for i, head in enumerate(heads, start=1)
        ]
        logits = keras.layers.Average(name=LOGITS, dtype="float32")(branches)
    return _calibrated(start, logits, temperature)


def _origin(tensor: Any) -> str:
    """The name of the layer that gives a Keras tensor."""
    return str(tensor._keras_history.operation.name)


def with_temperature(model: "keras.Model", temperature: float) -> "keras.Model":
    """Return the same assembled model with another temperature, sharing its other weights."""
    return _calibrated(model.input, logits_of(model), temperature)


def logits_of(model: "keras.Model") -> Any:
    """Return the logits inside an assembled model, a Keras tensor: what the temperature divides."""
    return model.get_layer(TEMPERATURE).input


def features_model(model: "keras.Model") -> "keras.Model":
    """Return an assembled model up to what its head takes; it shares weights."""
    import keras

    return keras.Model(model.input, model.get_layer(FEATURES).output, name="features_model")


def logits_model(model: "keras.Model") -> "keras.Model":
    """Return an assembled model up to its logits; it shares weights."""
    import keras

    return keras.Model(model.input, logits_of(model), name="logits_model")


def average_linear(heads: Sequence[FittedHead]) -> FittedHead | None:
    """Return the one head whose logits are the mean of these heads' logits, where there is one.

    That is so for linear heads that normalise features alike. Weights are averaged in float64.
    """
    first = heads[0]
    alike = all(
        len(head.layers) == 1
        and head.config.normalisation == first.config.normalisation
        and _same(head.mean, first.mean)
        and _same(head.variance, first.variance)
        for head in heads
    )
    if not alike:
        return None
    mean = DenseWeights(
        kernel=_mean([head.layers[0].kernel for head in heads]),
        bias=_mean([head.layers[0].bias for head in heads]),
    )
    return FittedHead(
        config=first.config,
        n_classes=first.n_classes,
        layers=(mean,),
        mean=first.mean,
        variance=first.variance,
        epochs=max(head.epochs for head in heads),
        curve=first.curve,
    )


def weighted_mean(
    heads: Sequence[FittedHead], weights: Sequence[float], blocks: Mapping[str, slice]
) -> list[FittedHead]:
    """Return heads on all blocks that some head uses, whose mean logits are the weighted mean.

    One, where all are linear and none normalises rows. Columns that a head does not use get weights
    of zero.

    Args:
        weights: their sum is 1.
        blocks: layer → its columns of a row of all blocks.
    """
    used = [chosen_layers(head.config.layers, tuple(blocks)) for head in heads]
    layers = [name for name in blocks if any(name in own for own in used)]
    ends = np.cumsum([blocks[name].stop - blocks[name].start for name in layers])
    places = {name: np.arange(end - (blocks[name].stop - blocks[name].start), end)
              for name, end in zip(layers, ends, strict=True)}  # fmt: skip
    columns = [np.concatenate([places[name] for name in own]) for own in used]
    dim, joined = int(ends[-1]), "+".join(layers)
    if all(len(h.layers) == 1 and (h.mean is not None or not _norms_rows(h)) for h in heads):
        # Standardised as its members are, so that fine-tuning starts from features of one scale.
        shift, scale = np.zeros(dim), np.ones(dim)
        for head, own in zip(heads, columns, strict=True):
            if head.mean is not None and head.variance is not None:
                shift[own], scale[own] = head.mean, np.sqrt(head.variance.astype(np.float64))
        kernel, bias = np.zeros((dim, heads[0].n_classes)), np.zeros(heads[0].n_classes)
        for head, weight, own in zip(heads, weights, columns, strict=True):
            raw, offset = head.layers[0].kernel.astype(np.float64), shift[own]
            if head.mean is not None and head.variance is not None:
                raw /= np.sqrt(head.variance.astype(np.float64))[:, None]
                offset = offset - head.mean
            kernel[own] += weight * raw * scale[own][:, None]
            bias += weight * (head.layers[0].bias + offset @ raw)
        plain = all(head.mean is None for head in heads)
        config = heads[0].config.model_copy(
            update={"layers": joined, "normalisation": "none" if plain else "standardise"}
        )
        return [
            FittedHead(
                config,
                heads[0].n_classes,
                (DenseWeights(kernel.astype(np.float32), bias.astype(np.float32)),),
                mean=None if plain else shift.astype(np.float32),
                variance=None if plain else np.square(scale).astype(np.float32),
                epochs=heads[0].epochs,
            )
        ]
    found = []
    for head, weight, own in zip(heads, weights, columns, strict=True):
        first = np.zeros((dim, head.layers[0].kernel.shape[1]), np.float32)
        first[own] = head.layers[0].kernel
        dense = [DenseWeights(first, head.layers[0].bias), *head.layers[1:]]
        share = np.float32(weight * len(heads))
        dense[-1] = DenseWeights(dense[-1].kernel * share, dense[-1].bias * share)
        mean_of, variance_of = None, None
        if head.mean is not None and head.variance is not None:
            mean_of, variance_of = np.zeros(dim, np.float32), np.ones(dim, np.float32)
            mean_of[own], variance_of[own] = head.mean, head.variance
        config = head.config.model_copy(update={"layers": joined})
        found.append(replace(head, config=config, layers=tuple(dense), mean=mean_of,
                             variance=variance_of))  # fmt: skip
    return found


def _norms_rows(head: FittedHead) -> bool:
    return head.mean is None and head.config.normalisation == "layer_norm"


def _calibrated(pixels: Any, logits: Any, temperature: float) -> "keras.Model":
    import keras

    cooled = keras.layers.Rescaling(1 / temperature, name=TEMPERATURE, dtype="float32")(logits)
    probabilities = keras.layers.Softmax(name=PROBABILITIES, dtype="float32")(cooled)
    return keras.Model(pixels, probabilities, name="headstart")


def _one_head(features: Any, head: FittedHead, prefix: str, logits_name: str) -> Any:
    import keras

    values = features
    if head.mean is not None and head.variance is not None:
        # Not keras.layers.Normalization: it holds its mean outside of variables, and exports to
        # ONNX then ask for it as an input.
        normalise = keras.layers.BatchNormalization(
            epsilon=0.0,
            center=False,
            scale=False,
            trainable=False,
            name=f"{prefix}_normalisation",
        )
        values = normalise(features)
        normalise.set_weights([head.mean, head.variance])
    elif head.config.normalisation == "layer_norm":
        normalise = keras.layers.LayerNormalization(
            epsilon=LAYER_NORM_EPSILON, center=False, scale=False, name=f"{prefix}_normalisation"
        )
        values = normalise(features)
    for number, weights in enumerate(head.layers, start=1):
        is_last = number == len(head.layers)
        layer = keras.layers.Dense(
            weights.kernel.shape[1],
            activation="linear" if is_last else head.config.activation,
            name=logits_name if is_last else f"{prefix}_dense_{number}",
        )
        values = layer(values)
        layer.set_weights([weights.kernel, weights.bias])
    return values


def _mean(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.asarray(np.mean(arrays, axis=0, dtype=np.float64), np.float32)


def _same(first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    return bool(np.array_equal(first, second))
