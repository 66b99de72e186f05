"""Weights files of every format, by Keras, PyTorch or ONNX, as numpy arrays by layer name.

Knows not where files come from. PyTorch's legacy `.pth` is read with numpy alone, by an unpickler
that allows next to nothing. Such a file is five pickles (magic number, protocol, system facts, the
state with references to storages, the storages' keys), then every storage as a 64-bit count and raw
little-endian values. What it says is believed only as far as its own bytes go: nothing makes this
allocate more than a few times its size.
"""

import math
import mmap
import pickle
import pickletools
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import WeightsError, one_line

Tensors = dict[str, list[NDArray[np.float32]]]
FromPytorch = Callable[[Mapping[str, NDArray[np.float32]]], Tensors]

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}
# PyTorch writes about 30 opcodes and 3 tuples a tensor. An opcode can take 200 bytes of memory, and
# a tuple in a tuple a level of the processor's stack when it is hashed.
_MOST_OPCODES, _MOST_TUPLES = 1_000_000, 30_000


def read_tensors(
    path: Path, *, bare: Callable[[], Any], from_pytorch: FromPytorch | None = None
) -> Tensors:
    """Return weights by layer name from a file of Keras, PyTorch or ONNX, by its suffix.

    `bare` builds the network without preprocessing, whose structure the Keras files must match.

    Raises:
        WeightsError: the format is unknown, or the file holds weights of another network.
    """
    if path.suffix == ".pth" and from_pytorch is not None:
        return from_pytorch(read_pth(path))
    if path.suffix == ".safetensors" and from_pytorch is not None:
        return from_pytorch(read_safetensors(path))
    if path.suffix == ".onnx":
        import onnx

        # Kernels and biases of the convolutions of an exported VGG, named after Keras's layers.
        tensors: Tensors = {}
        for initializer in onnx.load(path).graph.initializer:
            layer = re.search(r"block\d_conv\d", initializer.name)
            if layer is None:
                continue
            values = onnx.numpy_helper.to_array(initializer)
            # OIHW → HWIO; the kernel comes before the bias.
            if values.ndim == 4:
                kernel = np.ascontiguousarray(values.transpose(2, 3, 1, 0))
                tensors.setdefault(layer.group(), []).insert(0, kernel)
            else:
                tensors.setdefault(layer.group(), []).append(values)
        return tensors
    if path.suffix not in (".h5", ".hdf5", ".keras"):
        raise WeightsError(
            "a weights file must be a legacy .h5, .weights.h5 or .keras file of Keras, or of some "
            f"encoders a .safetensors or .pth file, but got {path}: save it in one of these formats"
        )
    import keras

    network = bare()
    try:
        # Keras only warns when it leaves layers with the random weights they began with.
        with warnings.catch_warnings(action="error", category=UserWarning):
            if path.suffix == ".keras":
                # A whole model holds its layers' weights by name, whatever comes after them.
                source = keras.models.load_model(path, compile=False)
            else:
                network.load_weights(path)
                source = network
    except (ValueError, OSError, KeyError, UserWarning) as error:
        raise WeightsError(
            f"the weights file must fit {network.name} without its classifier, but {path} does "
            f"not: {one_line(error, 200)}"
        ) from None
    return {layer.name: layer.get_weights() for layer in source.layers if layer.weights}


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return all floating-point tensors of a `.safetensors` file by name, as float32.

    Raises:
        WeightsError: the file is not of that format, or its numbers are of a kind numpy lacks.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        odd = [name for name, values in found.items() if values.dtype.kind not in "fiub"]
        if odd:
            raise TypeError(f"{odd[0]} is {found[odd[0]].dtype}")
    except (SafetensorError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"a .safetensors weights file must hold tensors of float16 to float64, but {path} does "
            f"not ({one_line(error, 120)}): give another file in extract.weights"
        ) from None
    return {
        name: np.asarray(values, np.float32)
        for name, values in found.items()
        if values.dtype.kind == "f"
    }


def read_pth(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return all floating-point tensors of a legacy `.pth` file by name, as float32.

    Raises:
        WeightsError: the file is not of that format, or holds more than tensors.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _state_of(data)
    except OSError:
        raise
    except Exception as error:  # a hostile pickle can make anything go wrong
        is_plain = isinstance(error, pickle.UnpicklingError | ValueError)
        reason = one_line(error, 200) if is_plain else type(error).__name__
        raise WeightsError(
            f"a .pth weights file must hold a plain state of tensors in PyTorch's legacy format, "
            f"but {path} does not ({reason}): give another file in extract.weights"
        ) from None


class _Tensor(NamedTuple):
    """Where in which storage a tensor's values lie, as the file says it."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any


class _Unpickler(pickle.Unpickler):
    """Allows ordered dicts, tensors and storages: nothing that runs foreign code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: _Tensor(
                storage, offset, shape, stride
            )
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _state_of(data: mmap.mmap) -> dict[str, NDArray[np.float32]]:
    # A read from mapped memory, unlike one from a file, allocates what is there, not what is asked.
    pickles = []
    for _ in range(5):
        # Nothing of a pickle is built before its opcodes are looked at.
        start, n_tuples = data.tell(), 0
        opcodes = pickletools.genops(data)  # type: ignore[arg-type]  # it reads like a file
        for number, (opcode, argument, _place) in enumerate(opcodes):
            n_tuples += opcode.name.startswith("TUPLE")
            # The unpickler makes its memo as long as the largest number in it.
            is_memo_too_long = opcode.name.endswith("PUT") and int(argument or 0) > number
            if is_memo_too_long or number > _MOST_OPCODES or n_tuples > _MOST_TUPLES:
                raise ValueError("its pickles are not as PyTorch writes them")
        end = data.tell()
        data.seek(start)
        pickles.append(_Unpickler(data).load())
        data.seek(end)
    magic, _, _, state, keys = pickles
    if type(magic) is not int or magic != _MAGIC:
        raise ValueError("its magic number is another")
    if not isinstance(state, Mapping):
        raise ValueError("its state is no mapping of names to tensors")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, _Tensor)}

    # Each storage is as long as its tensors' dtype says, and no longer than the file.
    dtypes = dict(map(_storage_of, tensors.values()))
    storages: dict[str, NDArray[Any]] = {}
    for key in map(str, keys):
        if key not in dtypes or key in storages:
            raise ValueError("its list of storages is not that of its tensors")
        (count,) = np.frombuffer(data.read(8), "<i8").tolist()
        n_bytes = count * dtypes[key].itemsize
        if not 0 <= n_bytes <= len(data) - data.tell():
            raise ValueError("a storage is longer than the file")
        storages[key] = np.frombuffer(data.read(n_bytes), dtypes[key])

    # Tensors that are the same part of one storage share their values, as they do in PyTorch.
    found: dict[_Tensor, NDArray[np.float32]] = {}
    n_bytes = 0
    for tensor in tensors.values():
        key, dtype = _storage_of(tensor)
        if dtype.kind == "f" and tensor not in found:
            view = _view(tensor, storages[key])
            n_bytes += view.nbytes
            if n_bytes > len(data):
                raise ValueError("its tensors have more values than the file")
            found[tensor] = np.array(view, np.float32, order="C")
    return {name: found[tensor] for name, tensor in tensors.items() if tensor in found}


def _storage_of(tensor: _Tensor) -> tuple[str, np.dtype[Any]]:
    """Key and dtype of the storage that a tensor lies in."""
    _, name, key, *_rest = tensor.storage
    return str(key), _STORAGES[name]


def _view(tensor: _Tensor, storage: NDArray[Any]) -> NDArray[Any]:
    """The tensor's values in its storage, checked to lie there.

    Raises:
        ValueError: they do not.
    """
    offset, shape, stride = tensor.offset, tensor.shape, tensor.stride
    numbers = (offset, *shape, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("sizes, strides and offsets of a tensor must be whole numbers from 0")
    n_values = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if n_values > storage.size or (n_values > 0 and last >= storage.size):
        raise ValueError("a tensor reaches beyond its storage")
    if n_values == 0:
        return np.empty(shape, storage.dtype)
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)
