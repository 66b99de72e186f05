"""Reads legacy PyTorch `.pth` files with numpy alone, by an unpickler that allows next to nothing.

The format: five pickles (magic number, protocol, system facts, the state with references to
storages, the storages' keys), then every storage as a 64-bit count and raw little-endian values.
"""

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from headstart.errors import WeightsError

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


@dataclass(frozen=True)
class _Tensor:
    """Where in which storage a tensor's values lie."""

    storage: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> _Tensor:
    _, dtype, key, *_rest = storage
    return _Tensor(str(key), dtype, int(offset), tuple(shape), tuple(stride))


class _Unpickler(pickle.Unpickler):
    """Allows ordered dicts, tensors and storages: nothing that runs foreign code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_pth(path: Path) -> dict[str, NDArray[np.float32]]:
    """All floating-point tensors of a legacy `.pth` file by name, as float32.

    Raises:
        WeightsError: the file is not of that format, or holds more than tensors.
    """
    try:
        with path.open("rb") as stream:
            return _read(stream)
    except (pickle.UnpicklingError, ValueError, EOFError, TypeError, LookupError) as error:
        raise WeightsError(
            f"a .pth weights file must hold a plain state of tensors in PyTorch's legacy format, "
            f"but {path} does not ({error}): give another file in extract.weights"
        ) from None


def _read(stream: BinaryIO) -> dict[str, NDArray[np.float32]]:
    magic, _, _, state, keys = (_Unpickler(stream).load() for _ in range(5))
    if magic != _MAGIC:
        raise ValueError("its magic number is another")
    tensors = {name: value for name, value in state.items() if isinstance(value, _Tensor)}
    dtypes = {tensor.storage: tensor.dtype for tensor in tensors.values()}
    storages = {}
    for key in keys:
        (count,) = np.frombuffer(stream.read(8), "<i8").tolist() or [0]
        dtype = dtypes[str(key)]
        storages[str(key)] = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
    return {
        name: _values(tensor, storages[tensor.storage])
        for name, tensor in tensors.items()
        if tensor.dtype.kind == "f"
    }


def _values(tensor: _Tensor, storage: NDArray[Any]) -> NDArray[np.float32]:
    strides = tuple(step * storage.itemsize for step in tensor.stride)
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    if tensor.offset + reach >= storage.size:
        raise ValueError("a tensor reaches beyond its storage")
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides)
    return np.ascontiguousarray(view, dtype=np.float32)
