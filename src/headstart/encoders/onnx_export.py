"""A frozen Keras model as an ONNX file, without the gigabytes that the usual way takes.

Keras's own export freezes the weights into TensorFlow's graph first, and copies that graph dozens
of times: 3.6 GB for VGG16's 59 MB. Here the weights are arguments of the traced function, so that
the graph that is converted holds none, and they join the ONNX file as its initializers.
"""

from pathlib import Path
from typing import Any

from headstart.common.errors import ParamsError
from headstart.common.files import replacing


def export_onnx(model: Any, path: Path) -> None:
    """Write `model` (a `keras.Model`) as ONNX atomically; its input is named "image".

    Raises:
        ParamsError: Keras does not compute in TensorFlow, which the conversion goes through.
    """
    import keras
    import numpy as np
    import onnx

    if keras.backend.backend() != "tensorflow":
        raise ParamsError(
            "an encoder is exported for this extract.runtime through TensorFlow, but KERAS_BACKEND "
            f"is {keras.backend.backend()}: unset it, or set extract.runtime to keras"
        )
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    proto = _convert(model, variables)
    needed = {name for node in proto.graph.node for name in node.input}
    for number, variable in enumerate(variables):
        if _name(number) in needed:
            values = onnx.numpy_helper.from_array(np.asarray(variable), _name(number))
            proto.graph.initializer.append(values)
    pixels = [value for value in proto.graph.input if value.name == "image"]
    del proto.graph.input[:]
    proto.graph.input.extend(pixels)
    with replacing(path) as temporary:
        onnx.save(proto, temporary)


def fold_onnx(path: Path, target: Path) -> None:
    """Write the ONNX model at `path` atomically, with its constants folded.

    Its weights were arguments when it was traced, so nothing could be computed from them: batch
    normalisation is not merged into the convolutions, and weights are transposed at every call.
    ONNX Runtime does so whenever it opens a model; OpenVINO does not. The optimisations are
    those that do not depend on the machine.
    """
    import onnxruntime

    with replacing(target) as temporary:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(temporary)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _name(number: int) -> str:
    return f"weight_{number}"


def _convert(model: Any, variables: list[Any]) -> Any:
    import tensorflow as tf
    import tf2onnx

    n_trainable = len(model.trainable_variables)

    def forward(image: Any, *weights: Any) -> Any:
        trainable, frozen = list(weights[:n_trainable]), list(weights[n_trainable:])
        return model.stateless_call(trainable, frozen, image, training=False)[0]

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")]
    signature += [
        tf.TensorSpec(variable.shape, variable.dtype, name=_name(number))
        for number, variable in enumerate(variables)
    ]
    function = tf.function(forward, input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, signature)
    return proto
