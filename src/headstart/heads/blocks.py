"""One head's part of the stack's weight tensors: read, written, begun, and taken out as layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.heads.config import HeadConfig
from headstart.heads.fitted import DenseWeights
from headstart.heads.lanes import Place
from headstart.heads.randomness import first_kernel

Float32s = NDArray[np.float32]
Arrays = Mapping[str, Float32s]
Block = dict[str, Float32s]
"""A head's own weights by tensor name; the first axis is the row group."""


def read(arrays: Arrays, place: Place, n_classes: int) -> Block:
    """What lies at a place."""
    return {
        name: array[:, place.lane][_index(name, place, n_classes)] for name, array in arrays.items()
    }


def write(arrays: Arrays, place: Place, n_classes: int, block: Block) -> None:
    """Put a block at a place."""
    for name, array in arrays.items():
        array[:, place.lane][_index(name, place, n_classes)] = block[name]


def clear(arrays: Arrays, place: Place, n_classes: int) -> None:
    """Put zeros at a place: weights between heads must be zero, for the later layers are shared."""
    for name, array in arrays.items():
        array[:, place.lane][_index(name, place, n_classes)] = 0


def first_weights(
    config: HeadConfig, seeds: Sequence[int], names: Sequence[str], feature_dim: int, n_classes: int
) -> Block:
    """A head's first weights, one row group a seed; layers it does not have pass values on."""
    width = config.width if config.hidden_layers else n_classes
    parts: dict[str, list[Float32s]] = {
        "kernel_1": [first_kernel(seed, 1, feature_dim, width) for seed in seeds],
        "kernel_2": [_square(config, seed, width) for seed in seeds],
        "kernel_out": [_last(config, seed, width, n_classes) for seed in seeds],
        "bias_1": [np.zeros(width, np.float32)] * len(seeds),
        "bias_2": [np.zeros(width, np.float32)] * len(seeds),
        "bias_out": [np.zeros(n_classes, np.float32)] * len(seeds),
    }
    return {name: np.stack(parts[name]) for name in names}


def as_layers(block: Block, config: HeadConfig, group: int) -> tuple[DenseWeights, ...]:
    """The dense layers of a head as trained in one row group."""
    names = ["1", "2", "out"]
    if config.hidden_layers == 0:
        names = ["1"]
    elif config.hidden_layers == 1:
        names = ["1", "out"]
    return tuple(
        DenseWeights(block[f"kernel_{name}"][group], block[f"bias_{name}"][group]) for name in names
    )


def _index(name: str, place: Place, n_classes: int) -> tuple[Any, ...]:
    every, columns = slice(None), place.columns
    outputs = slice(place.slot * n_classes, (place.slot + 1) * n_classes)
    return {
        "kernel_1": (every, every, columns),
        "bias_1": (every, 0, columns),
        "kernel_2": (every, columns[:, None], columns),
        "bias_2": (every, 0, columns),
        "kernel_out": (every, columns, outputs),
        "bias_out": (every, 0, outputs),
    }[name]


def _square(config: HeadConfig, seed: int, width: int) -> Float32s:
    if config.hidden_layers > 1:
        return first_kernel(seed, 2, width, width)
    return np.eye(width, dtype=np.float32)


def _last(config: HeadConfig, seed: int, width: int, n_classes: int) -> Float32s:
    if config.hidden_layers:
        return first_kernel(seed, 3, width, n_classes)
    return np.eye(n_classes, dtype=np.float32)
