"""What one image costs a model: floating-point operations and weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Cost:
    """Of one image.

    Attributes:
        mflops: millions of floating-point operations of convolutions and dense layers, two a
            multiply-add, as TensorFlow's profiler counts them.
        megabytes: of its weights in float32, millions of bytes.
    """

    mflops: float
    megabytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.mflops + other.mflops, self.megabytes + other.megabytes)

    @classmethod
    def of_kernels(cls, multiply_adds: int, n_weights: int) -> "Cost":
        """The cost of so many multiply-adds, with so many weights."""
        return cls(2 * multiply_adds / 1e6, 4 * n_weights / 1e6)


def graph_cost(layers: Iterable["keras.layers.Layer"]) -> Cost:
    """Count what the layers of a model cost, each once."""
    import keras

    multiply_adds = n_weights = 0
    for layer in layers:
        n_weights += sum(prod(weight.shape) for weight in layer.weights)
        # A kernel is applied at every place of the output but along its channels.
        kernels = sum(prod(w.shape) for w in layer.weights if w.name.endswith("kernel"))
        if kernels:
            multiply_adds += kernels * prod(layer.output.shape[1:-1])
        if isinstance(layer, keras.layers.MultiHeadAttention):
            # Each token with each, for the shares and for the mean by them.
            n_tokens, width = layer.output.shape[1:]
            multiply_adds += 2 * n_tokens**2 * width
    return Cost.of_kernels(multiply_adds, n_weights)
