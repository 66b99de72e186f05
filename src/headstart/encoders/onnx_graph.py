"""A Keras model as an ONNX graph, layer by layer.

A frozen encoder is a few kinds of layers whose weights are known: each is one or two ONNX operators
(opset 20). So nothing is traced, and no backend of Keras takes part. Maps are (n, channels, height,
width) in ONNX; vectors are as in Keras. What a runtime does when it opens a graph, such as merging
batch normalisation into convolutions, is left to it.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import ParamsError
from headstart.common.files import replacing

if TYPE_CHECKING:
    import keras

_OPSET = 20
_TO_MAP, _FROM_MAP = [0, 3, 1, 2], [0, 2, 3, 1]


def write_onnx(
    model: "keras.Model",
    path: Path,
    *,
    output: str = "features",
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a flat functional model of one input and one output atomically.

    The input is called "image": uint8 (n_images, height, width, 3).

    Args:
        output: the name of the output.
        metadata: texts that the file keeps.

    Raises:
        ParamsError: a layer is of a kind that is not known here.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    # The tensors of a model are objects that know which layer made them.
    bytes_ = graph.add("Transpose", ["image"], perm=_TO_MAP)
    names = {id(model.inputs[0]): graph.add("Cast", [bytes_], to=TensorProto.FLOAT)}
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            continue
        if kind not in _LAYERS:
            raise ParamsError(
                f"a network is written as ONNX from layers of known kinds, but {layer.name} of "
                f"{model.name} is a {kind}: set extract.runtime to keras"
            )
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        names[id(layer.output)] = _LAYERS[kind](graph, layer, [names[id(one)] for one in given])
    graph.nodes.append(helper.make_node("Identity", [names[id(model.outputs[0])]], [output]))
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            model.name,
            [helper.make_tensor_value_info(
                "image", TensorProto.UINT8, ["n_images", *model.input_shape[1:]])],
            [helper.make_tensor_value_info(
                output, TensorProto.FLOAT, ["n_images", *model.output_shape[1:]])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=10,
        producer_name="headstart",
    )  # fmt: skip
    helper.set_model_props(made, dict(metadata))
    onnx.checker.check_model(made)
    with replacing(path) as temporary:
        onnx.save(made, temporary)


class _Graph:
    """Nodes and constants, in the order in which they were added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Add an operator of one output, and return the name of that."""
        from onnx import helper

        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: type[np.generic] = np.float32) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(values, dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name


_Write = Callable[[_Graph, Any, list[str]], str]
"""Adds a Keras layer to a graph; given and returned are names of tensors."""


def _is_map(tensor: Any) -> bool:
    return len(tensor.shape) == 4


def _of_channels(values: Any, layer: Any) -> NDArray[np.float32]:
    """A number, or one for each channel, in a shape that maps of `layer` are computed with."""
    array = np.asarray(values, np.float32).reshape(-1)
    return array.reshape(-1, 1, 1) if _is_map(layer.output) and len(array) > 1 else array


def _rescaling(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    scaled = graph.add("Mul", [*inputs, graph.constant(_of_channels(layer.scale, layer))])
    return graph.add("Add", [scaled, graph.constant(_of_channels(layer.offset, layer))])


def _normalization(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    import keras

    deviation = np.maximum(np.sqrt(np.asarray(layer.variance)), keras.config.epsilon())
    centred = graph.add("Sub", [*inputs, graph.constant(_of_channels(layer.mean, layer))])
    return graph.add("Div", [centred, graph.constant(_of_channels(deviation, layer))])


def _batch_normalization(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    n = layer.moving_mean.shape[0]
    parts = [
        layer.gamma if layer.scale else np.ones(n),
        layer.beta if layer.center else np.zeros(n),
        layer.moving_mean,
        layer.moving_variance,
    ]
    constants = [graph.constant(np.asarray(part)) for part in parts]
    return graph.add("BatchNormalization", [*inputs, *constants], epsilon=layer.epsilon)


def _layer_normalization(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    n = layer.input.shape[-1]
    scale = graph.constant(np.asarray(layer.gamma) if layer.scale else np.ones(n))
    offset = graph.constant(np.asarray(layer.beta) if layer.center else np.zeros(n))
    return graph.add("LayerNormalization", [*inputs, scale, offset], axis=-1, epsilon=layer.epsilon)


def _convolution(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    # (height, width, in, out) → (out, in, height, width)
    kernel = np.asarray(layer.kernel).transpose(3, 2, 0, 1)
    bias = np.asarray(layer.bias) if layer.use_bias else None
    values = _convolve(graph, layer, inputs, kernel, bias, layer.groups)
    return _activate(graph, layer.activation, values)


def _depthwise(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    kernel = _depthwise_kernel(layer.kernel)
    bias = np.asarray(layer.bias) if layer.use_bias else None
    values = _convolve(graph, layer, inputs, kernel, bias, layer.input.shape[-1])
    return _activate(graph, layer.activation, values)


def _separable(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    kernel = _depthwise_kernel(layer.depthwise_kernel)
    values = _convolve(graph, layer, inputs, kernel, None, layer.input.shape[-1])
    pointwise = [graph.constant(np.asarray(layer.pointwise_kernel).transpose(3, 2, 0, 1))]
    if layer.use_bias:
        pointwise.append(graph.constant(np.asarray(layer.bias)))
    return _activate(graph, layer.activation, graph.add("Conv", [values, *pointwise]))


def _depthwise_kernel(kernel: Any) -> NDArray[np.float32]:
    """(height, width, channels, multiplier) → (channels · multiplier, 1, height, width)."""
    height, width, channels, multiplier = kernel.shape
    moved = np.asarray(kernel).transpose(2, 3, 0, 1)
    return moved.reshape(channels * multiplier, 1, height, width)


def _convolve(
    graph: _Graph,
    layer: Any,
    inputs: list[str],
    kernel: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    groups: int,
) -> str:
    constants = [graph.constant(kernel)]
    if bias is not None:
        constants.append(graph.constant(bias))
    rates = _pair(layer.dilation_rate)
    return graph.add(
        "Conv",
        [*inputs, *constants],
        kernel_shape=list(kernel.shape[2:]),
        strides=_pair(layer.strides),
        dilations=rates,
        group=groups,
        pads=_pads(layer, kernel.shape[2:], rates),
    )


def _pooling(operator: str) -> _Write:
    # What is outside of the map counts neither for a maximum nor for a mean, as in Keras.
    def write(graph: _Graph, layer: Any, inputs: list[str]) -> str:
        size, strides = _pair(layer.pool_size), _pair(layer.strides)
        pads = _pads(layer, size, [1, 1])
        return graph.add(operator, inputs, kernel_shape=size, strides=strides, pads=pads)

    return write


def _global_pooling(operator: str) -> _Write:
    def write(graph: _Graph, layer: Any, inputs: list[str]) -> str:
        values = graph.add(operator, inputs)
        return values if layer.keepdims else graph.add("Flatten", [values])

    return write


def _pads(layer: Any, kernel: Any, rates: list[int]) -> list[int]:
    """TensorFlow's padding: what "same" needs, the odd one at the end."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    before, after = [], []
    sides = zip(layer.input.shape[1:3], kernel, _pair(layer.strides), rates, strict=True)
    for side, size, stride, rate in sides:
        reach = (-(-side // stride) - 1) * stride + (size - 1) * rate + 1
        total = max(reach - side, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before + after


def _zero_padding(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    (top, bottom), (left, right) = layer.padding
    pads = graph.constant([0, 0, top, left, 0, 0, bottom, right], np.int64)
    return graph.add("Pad", [*inputs, pads])


def _flatten(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    if _is_map(layer.input):
        inputs = [graph.add("Transpose", inputs, perm=_FROM_MAP)]
    return graph.add("Flatten", inputs)


def _reshape(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    if _is_map(layer.input):
        inputs = [graph.add("Transpose", inputs, perm=_FROM_MAP)]
    shape = graph.constant([-1, *layer.output.shape[1:]], np.int64)
    values = graph.add("Reshape", [*inputs, shape])
    return graph.add("Transpose", [values], perm=_TO_MAP) if _is_map(layer.output) else values


def _dense(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    constants = [graph.constant(np.asarray(layer.kernel))]
    if layer.use_bias:
        constants.append(graph.constant(np.asarray(layer.bias)))
    return _activate(graph, layer.activation, graph.add("Gemm", [*inputs, *constants]))


def _add(graph: _Graph, _: Any, inputs: list[str]) -> str:
    return reduce(lambda one, other: graph.add("Add", [one, other]), inputs)


def _plain(operator: str, **attributes: Any) -> _Write:
    """A layer that is one operator."""
    return lambda graph, _, inputs: graph.add(operator, inputs, **attributes)


def _nothing(_: _Graph, __: Any, inputs: list[str]) -> str:
    return inputs[0]


def _relu(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    (values,) = inputs
    if layer.negative_slope or layer.threshold:
        raise ParamsError(
            f"a network is written as ONNX with plain ReLU layers, but {layer.name} has a slope or "
            "a threshold: set extract.runtime to keras"
        )
    if layer.max_value is None:
        return graph.add("Relu", [values])
    return graph.add("Clip", [values, graph.constant(0.0), graph.constant(layer.max_value)])


def _activation(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    (values,) = inputs
    return _activate(graph, layer.activation, values)


def _activate(graph: _Graph, function: Callable[..., Any] | None, values: str) -> str:
    """Apply one of Keras's activation functions."""
    name = getattr(function, "__name__", "linear")
    if name == "linear":
        return values
    if name in ("silu", "swish"):
        return graph.add("Mul", [values, graph.add("Sigmoid", [values])])
    if name == "relu6":
        return graph.add("Clip", [values, graph.constant(0.0), graph.constant(6.0)])
    known = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "gelu": "Gelu", "elu": "Elu",
             "selu": "Selu"}  # fmt: skip
    if name not in known:
        raise ParamsError(
            f"a network is written as ONNX with activations of known kinds, but got {name}: "
            "set extract.runtime to keras"
        )
    return graph.add(known[name], [values])


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(one) for one in value]


_LAYERS: dict[str, _Write] = {
    "Activation": _activation,
    "Add": _add,
    "Average": _plain("Mean"),
    "AveragePooling2D": _pooling("AveragePool"),
    "BatchNormalization": _batch_normalization,
    "Concatenate": _plain("Concat", axis=1),  # channels, of maps as of vectors
    "Conv2D": _convolution,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Dropout": _nothing,
    "Flatten": _flatten,
    "GlobalAveragePooling2D": _global_pooling("GlobalAveragePool"),
    "GlobalMaxPooling2D": _global_pooling("GlobalMaxPool"),
    "LayerNormalization": _layer_normalization,
    "MaxPooling2D": _pooling("MaxPool"),
    "Multiply": _plain("Mul"),
    "Normalization": _normalization,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": _separable,
    "Softmax": _plain("Softmax", axis=-1),
    "ZeroPadding2D": _zero_padding,
}
