"""What an encoder costs up to each of its feature blocks, counted from its graph."""

from typing import TYPE_CHECKING

from headstart.common.cost import Cost, graph_cost
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
        name.removeprefix(BLOCK_PREFIX): graph_cost(
            keras.Model(model.input, model.get_layer(name).output).layers
        )
        for name in ends or [model.layers[-1].name]
    }
