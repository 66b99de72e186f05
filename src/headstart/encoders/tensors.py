"""An encoder's weights as numpy arrays by layer name: read from files, made up, put into a model.

Knows which file formats there are, not where files come from.
"""

import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import WeightsError, one_line
from headstart.encoders.pth import read_pth

Tensors = dict[str, list[NDArray[np.float32]]]
FromPytorch = Callable[[Mapping[str, NDArray[np.float32]]], Tensors]


def read_tensors(
    path: Path, *, bare: Callable[[], Any], from_pytorch: FromPytorch | None = None
) -> Tensors:
    """Weights by layer name from a legacy `.h5`, `.weights.h5`, `.keras`, `.pth` or `.onnx` file.

    `bare` builds the network without preprocessing, whose structure the Keras files must match.

    Raises:
        WeightsError: the format is unknown, or the file holds weights of another network.
    """
    if path.suffix == ".pth" and from_pytorch is not None:
        return from_pytorch(read_pth(path))
    if path.suffix == ".onnx":
        return _read_onnx(path)
    if path.suffix in (".h5", ".hdf5", ".keras"):
        return _read_keras(path, bare())
    raise WeightsError(
        "a weights file must be a legacy .h5, .weights.h5 or .keras file of Keras, but got "
        f"{path}: save it in one of these formats"
    )


def _read_onnx(path: Path) -> Tensors:
    """Kernels and biases of the convolutions of an exported VGG, named after Keras's layers."""
    import onnx

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


def _read_keras(path: Path, network: Any) -> Tensors:
    import keras

    try:
        # Keras only warns when it leaves layers with the random weights they began with.
        with warnings.catch_warnings(action="error", category=UserWarning):
            if path.suffix == ".keras":
                # A whole model holds its layers' weights by name, whatever comes after them.
                return _tensors_of(keras.models.load_model(path, compile=False))
            network.load_weights(path)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        raise WeightsError(
            f"the weights file must fit {network.name} without its classifier, but {path} does "
            f"not: {one_line(error, 200)}"
        ) from None
    return _tensors_of(network)


def _tensors_of(model: Any) -> Tensors:
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def assign(model: Any, tensors: Tensors) -> None:
    """Put `tensors` into the layers of `model`; preprocessing layers keep theirs.

    Raises:
        WeightsError: a layer's weights are missing or have other shapes.
    """
    for layer in model.layers:
        if not layer.weights or layer.name.startswith("preprocess_"):
            continue
        given = [np.shape(tensor) for tensor in tensors.get(layer.name, [])]
        wanted = [tuple(weight.shape) for weight in layer.weights]
        if given != wanted:
            raise WeightsError(
                f"weights of {model.name} must have the shapes {wanted} in layer {layer.name}, "
                f"but got {given or 'none'}: these are weights of another network"
            )
        layer.set_weights(tensors[layer.name])
        if hasattr(layer, "finalize_state"):
            # Normalization computes with a copy of its weights, made when they are loaded.
            layer.finalize_state()


def random_tensors(model: Any) -> Tensors:
    """He-uniform kernels and neutral statistics, the same on every machine and in every process."""
    return {
        layer.name: [_random(layer.name, weight) for weight in layer.weights]
        for layer in model.layers
        if layer.weights and not layer.name.startswith("preprocess_")
    }


def _random(layer: str, weight: Any) -> NDArray[np.float32]:
    shape = tuple(weight.shape)
    kind = weight.name.split("/")[-1]
    if len(shape) < 2:
        fill = 1.0 if kind in ("gamma", "moving_variance", "variance") else 0.0
        return np.full(shape, fill, np.asarray(weight).dtype)
    is_depthwise = "depthwise" in kind or (len(shape) == 4 and shape[-1] == 1)
    fan_in = int(np.prod(shape[:-2])) * (1 if is_depthwise else shape[-2])
    generator = np.random.default_rng(zlib.crc32(f"{layer}/{kind}".encode()))
    limit = np.sqrt(6 / fan_in)
    return (generator.random(shape, np.float32) * 2 - 1).astype(np.float32) * np.float32(limit)
