"""Every random number of a head's training, reproducible from outside it.

Row orders and first weights are drawn with numpy from seeds; dropout keeps are a hash of (seed,
step, layer, place in the batch, unit), so that they do not depend on what else is in the stack.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MASK64 = (1 << 64) - 1
_ROW = 0x9E3779B1
_UNIT = 0x85EBCA77


def row_order(seed: int, epoch: int, rows: NDArray[np.int64], n_views: int) -> NDArray[np.int64]:
    """The flat (row, view) indices of one epoch: `rows` shuffled, each with a view of chance.

    Returns:
        int64, shape (len(rows),), values row * n_views + view.
    """
    chance = np.random.default_rng([seed, epoch, 1])
    shuffled = chance.permutation(rows)
    if n_views == 1:
        return shuffled
    return np.asarray(shuffled * n_views + chance.integers(n_views, size=len(rows)))


def first_kernel(seed: int, layer: int, n_in: int, n_out: int) -> NDArray[np.float32]:
    """Glorot-uniform kernel, float32 (n_in, n_out), as Keras's `Dense` begins with."""
    limit = np.float32(np.sqrt(6.0 / (n_in + n_out)))
    chance = np.random.default_rng([seed, layer, 2])
    return (chance.random((n_in, n_out), np.float32) * 2 - 1) * limit


def dropout_key(seed: int, epoch: int, step: int, layer: int) -> int:
    """The 32-bit key of one dropout layer's mask in one step of one epoch.

    Layer 0 drops inputs, 1 and 2 drop units of the hidden layers.
    """
    mixed = 0
    for part in (seed, epoch, step, layer):
        # the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & _MASK64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
        mixed ^= mixed >> 31
    return mixed >> 32


def dropout_uniform(key: Any, rows: Any, units: Any, ops: Any) -> Any:
    """Uniform numbers in [0, 1) for a batch: a unit is dropped where they are below the rate.

    Args:
        key, rows, units: uint32, broadcastable: `dropout_key`, place in the batch, unit's index.
        ops: `numpy` or `keras.ops`: both give the same numbers.

    Returns:
        float32 of the broadcast shape. The mixing is MurmurHash3's 32-bit finaliser.
    """
    value = key + rows * _constant(ops, _ROW) + units * _constant(ops, _UNIT)
    value = ops.bitwise_xor(value, ops.right_shift(value, _constant(ops, 16)))
    value = value * _constant(ops, 0x85EBCA6B)
    value = ops.bitwise_xor(value, ops.right_shift(value, _constant(ops, 13)))
    value = value * _constant(ops, 0xC2B2AE35)
    value = ops.bitwise_xor(value, ops.right_shift(value, _constant(ops, 16)))
    top = ops.right_shift(value, _constant(ops, 8))
    if ops is np:
        return top.astype(np.float32) * np.float32(2**-24)
    return ops.cast(top, "float32") * 2**-24


def _constant(ops: Any, value: int) -> Any:
    return np.uint32(value) if ops is np else ops.convert_to_tensor(np.uint32(value))
