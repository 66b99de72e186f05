"""One forward pass in Keras, ONNX Runtime or OpenVINO: uint8 pixels in, float32 features out.

Knows nothing of images, files or the cache. A row does not depend on what shares its batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import BackboneError
from headstart.features.frozen import FrozenModel

# uint8 (n, size, size, 3) → float32 (n, feature_dim)
Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def open_forward(frozen: FrozenModel, runtime: str, precision: str, threads: int) -> Forward:
    """The forward pass of a frozen model in `runtime` at `precision`, on `threads` cores.

    Raises:
        BackboneError: the runtime is not installed, or cannot compute at that precision.
    """
    if runtime == "onnxruntime":
        return _onnxruntime(frozen, precision, threads)
    return _keras(frozen, precision)


def _onnxruntime(frozen: FrozenModel, precision: str, threads: int) -> Forward:
    import onnxruntime

    if precision != "float32":
        raise BackboneError(
            f"extract.precision must be float32 with extract.runtime onnxruntime, but got "
            f"{precision}: set extract.runtime to openvino or keras"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        str(frozen.require_onnx()), options, providers=onnxruntime.get_available_providers()
    )
    name = session.get_inputs()[0].name

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run(None, {name: pixels})[0]
        return result

    return forward


def _keras(frozen: FrozenModel, precision: str) -> Forward:
    model = _at_precision(frozen.load(), precision)

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(model.predict_on_batch(_padded(pixels)), np.float32)[: len(pixels)]

    return forward


def _padded(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows added up to the next power of two, at least two.

    TensorFlow computes a batch of one by other kernels, with other last bits; and every new batch
    size costs a compilation.
    """
    wanted = max(2, 1 << (len(pixels) - 1).bit_length())
    return np.concatenate([pixels, np.repeat(pixels[-1:], wanted - len(pixels), axis=0)])


def _at_precision(model: Any, precision: str) -> Any:
    if precision == "float32":
        return model
    import keras

    def recast(layer: Any) -> Any:
        keep = layer.name.startswith("preprocess_") or layer.name in ("image", "features")
        policy = {} if keep else {"dtype": f"mixed_{precision}"}
        return type(layer).from_config(layer.get_config() | policy)

    clone = keras.models.clone_model(model, clone_function=recast)
    clone.set_weights(model.get_weights())
    return clone
