"""A trained head as plain arrays: enough to predict, and to rebuild it from Keras layers."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from headstart.heads.config import HeadConfig
from headstart.heads.metrics import softmax

Float32s = NDArray[np.float32]

LAYER_NORM_EPSILON = 1e-6
"""Of the parameter-free layer normalisation of features (no gamma, no beta)."""


@dataclass(frozen=True)
class DenseWeights:
    """One dense layer: kernel float32 (n_in, n_out), bias float32 (n_out,)."""

    kernel: Float32s
    bias: Float32s


@dataclass(frozen=True)
class FittedHead:
    """A trained head.

    As Keras layers it is: `Normalization(mean, variance)` when `mean` is not None, or
    `LayerNormalization(epsilon=LAYER_NORM_EPSILON, center=False, scale=False)` when
    `config.normalisation` is `layer_norm`; then one `Dense` per entry of `layers`, all but the
    last followed by `config.activation`; the last gives logits. Dropout acts in training only.
    """

    config: HeadConfig
    n_classes: int
    layers: tuple[DenseWeights, ...]
    mean: Float32s | None = None
    variance: Float32s | None = None
    epochs: int = 0
    curve: dict[str, list[float]] = field(default_factory=dict)

    def logits(self, features: Float32s) -> Float32s:
        """Logits, float32 (n, n_classes), of features, float32 (n, feature_dim)."""
        values = self.normalised(np.asarray(features, np.float32))
        for position, layer in enumerate(self.layers):
            values = values @ layer.kernel + layer.bias
            if position < len(self.layers) - 1:
                values = activate(self.config.activation, values)
        return values

    def probabilities(self, features: Float32s) -> NDArray[np.float64]:
        """Class probabilities, float64 (n, n_classes)."""
        return softmax(self.logits(features))

    def normalised(self, features: Float32s) -> Float32s:
        """Features as the first dense layer sees them, float32 (n, feature_dim)."""
        if self.mean is not None and self.variance is not None:
            return np.asarray((features - self.mean) / np.sqrt(self.variance), np.float32)
        if self.config.normalisation == "layer_norm":
            centred = features - features.mean(axis=-1, keepdims=True)
            variance = np.square(centred).mean(axis=-1, keepdims=True)
            return np.asarray(centred / np.sqrt(variance + LAYER_NORM_EPSILON), np.float32)
        return features


def activate(name: str, values: Float32s) -> Float32s:
    """Keras's activation of that name, in numpy float32."""
    if name == "relu":
        return np.maximum(values, np.float32(0))
    if name == "tanh":
        return np.tanh(values)
    if name == "silu":
        return np.asarray(values * _sigmoid(values), np.float32)
    if name == "gelu":
        return np.asarray(0.5 * values * (1 + erf(values / np.float32(np.sqrt(2)))), np.float32)
    raise ValueError(f"activation must be relu, gelu, silu or tanh, but got {name}")


def feature_statistics(rows: Float32s, shrunk: Iterable[slice] = ()) -> tuple[Float32s, Float32s]:
    """Mean and variance of each feature, float32 (feature_dim,), for standardising.

    A feature that is constant gets variance 1, so that it stays as small on unseen rows as on
    these rather than being blown up by a division by nearly nothing.

    Args:
        shrunk: blocks of columns to whose variances the block's mean variance is added: features
            that hardly vary stay smaller than others, and few rows do not decide by how much.
            The constant of Tibshirani, Hastie, Narasimhan and Chu, "Diagnosis of multiple cancer
            types by shrunken centroids", 2002, in place of whose median deviation it stands.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    variance = rows.var(axis=0, dtype=np.float64)
    constant = variance <= 1e-10 * max(float(variance.max(initial=0.0)), 1e-30)
    for block in shrunk:
        if not constant[block].all():
            variance[block] += variance[block][~constant[block]].mean()
    variance[constant] = 1.0
    return mean.astype(np.float32), variance.astype(np.float32)


def _sigmoid(values: Float32s) -> Float32s:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float32)
