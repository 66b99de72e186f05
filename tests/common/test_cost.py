"""What an image costs a model."""

import keras
import pytest

from headstart.common.cost import Cost, graph_cost


def test_a_kernel_is_applied_at_every_place() -> None:
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    outputs = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(maps))
    found = graph_cost(keras.Model(inputs, outputs).layers)
    assert found.mflops == pytest.approx(2 * (8 * 8 * 3 * 3 * 3 * 4 + 4 * 5) / 1e6)
    assert found.megabytes == pytest.approx(4 * (3 * 3 * 3 * 4 + 4 + 4 * 5 + 5) / 1e6)


def test_costs_add_up() -> None:
    assert Cost(1.0, 2.0) + Cost(0.5, 0.25) == Cost(1.5, 2.25)
