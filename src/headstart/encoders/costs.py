"""What a forward pass costs: floating-point operations and weights, counted from the graph."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from headstart.encoders.catalogue import BLOCK_PREFIX

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


def block_costs(model: "keras.Model") -> dict[str, Cost]:
    """What an encoder costs up to each of its feature blocks, by layer.

    Of an encoder with one block its name is that of the last layer, `features`.
    """
    import keras

    ends = [layer.name for layer in model.layers if layer.name.startswith(BLOCK_PREFIX)]
    return {
        name.removeprefix(BLOCK_PREFIX): _cost(
            keras.Model(model.input, model.get_layer(name).output).layers
        )
        for name in ends or [model.layers[-1].name]
    }


def _cost(layers: Iterable["keras.layers.Layer"]) -> Cost:
    multiply_adds = n_weights = 0
    for layer in layers:
        n_weights += sum(prod(weight.shape) for weight in layer.weights)
        # A kernel is applied at every place of the output but along its channels.
        kernels = sum(prod(w.shape) for w in layer.weights if w.name.endswith("kernel"))
        if kernels:
            multiply_adds += kernels * prod(layer.output.shape[1:-1])
    return Cost.of_kernels(multiply_adds, n_weights)
