"""What an encoder costs up to each of its feature blocks, counted from its graph."""

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

from headstart.common.cost import Cost
from headstart.encoders.catalogue import BLOCK_PREFIX

if TYPE_CHECKING:
    import keras


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
