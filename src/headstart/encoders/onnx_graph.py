"""A model file of Keras as an ONNX graph, layer by layer; neither Keras nor TensorFlow takes part.

A frozen encoder is a few kinds of layers whose weights are known: each is a few ONNX operators
(opset 20). The `.h5` says all of it: kinds, settings and the shapes between layers in the attribute
`model_config`, the weights in `model_weights`. Maps are (n, channels, height, width) in ONNX;
vectors and sequences of tokens are as in Keras. What a runtime does when it opens a graph, such as
merging batch normalisation into convolutions, is left to it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import FormatError, ParamsError, WeightsError, one_line
from headstart.common.files import replacing
from headstart.common.hdf5 import stored_array

OPSET = 20
# Of a file: an encoder that is ONNX itself, from the bytes of pixels to its joined features.
ENCODER_DATASET = "encoder.onnx"
# What image encoders are made of. Not there: loops and branches, operators of other domains, what
# draws random numbers, what quantises by the range of a whole batch.
_OPERATORS = frozenset(
    # ruff would write a line for each
    """
    Abs Add And Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant
    ConstantOfShape Conv ConvInteger Cos DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal
    Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
    InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LpNormalization MatMul
    MatMulInteger Max MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pad Pow QLinearConv
    QLinearMatMul QuantizeLinear RMSNormalization Range Reciprocal ReduceL2 ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum Relu Reshape Resize RotaryEmbedding Round ScatterND Selu Shape
    Sigmoid Sign Sin Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile
    Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905
)
_MOST_BYTES = 2**31 - 2**20  # of a file of protocol buffers, with room for shapes
_TO_MAP, _FROM_MAP = [0, 3, 1, 2], [0, 2, 3, 1]
# keras.config.epsilon(), which Normalization computes with.
_EPSILON = 1e-7


def write_onnx(
    h5: Path,
    path: Path,
    *,
    outputs: Mapping[str, str] = MappingProxyType({}),
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the model of an `.h5` file as ONNX atomically; `onnx_model` has the arguments."""
    made = onnx_model(h5, outputs=outputs, metadata=metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(made)


def onnx_model(
    h5: Path,
    *,
    start: str | None = None,
    outputs: Mapping[str, str] = MappingProxyType({}),
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Return a flat functional model of one input as the bytes of an ONNX file.

    The input is called "image": uint8 (n_images, height, width, 3). Where the file holds an encoder
    in ONNX, what Keras saved is its head, and both make one graph.

    Args:
        h5: as `keras.Model.save` of Keras 3 writes it.
        start: a layer that gives vectors: the input is what it gives, float32, under its name, and
            what comes before it is left out.
        outputs: name of an output → the layer that gives it; by default "features" → the model's
            own output. Maps are (n_images, channels, height, width).
        metadata: texts that the file keeps.

    Raises:
        ParamsError: a layer is of a kind that is not known here.
        FormatError: it is no such file.
    """
    import onnx
    from onnx import TensorProto, helper

    name, layers, last = read_layers(h5)
    graph = GraphWriter()
    names: dict[str, str] = {}
    opset = OPSET
    given_as, dtype, shape = "image", TensorProto.UINT8, layers[0].config["batch_shape"][1:]
    with h5py.File(h5, "r") as file:
        holds_encoder = start is None and ENCODER_DATASET in file
        stored = stored_array(file, ENCODER_DATASET).tobytes() if holds_encoder else b""
    if holds_encoder:
        encoder = onnx.compose.add_prefix(
            read_stored(stored, ENCODER_DATASET), "encoder/", rename_inputs=False
        )
        graph.nodes += encoder.graph.node
        graph.constants += encoder.graph.initializer
        names[layers[0].name], layers = encoder.graph.output[0].name, layers[1:]
        shape = [axis.dim_value for axis in encoder.graph.input[0].type.tensor_type.shape.dim[1:]]
        opset = max(opset, encoder.opset_import[0].version)
    elif start is None:
        bytes_ = graph.add("Transpose", ["image"], perm=_TO_MAP)
        names[layers[0].name] = graph.add("Cast", [bytes_], to=TensorProto.FLOAT)
        layers = layers[1:]
    else:
        place = [layer.name for layer in layers].index(start)
        after = layers[place + 1]
        given_as, dtype, shape = start, TensorProto.FLOAT, after.shapes[after.sources.index(start)]
        names[start], layers = start, layers[place + 1 :]
    for layer in layers:
        if layer.kind not in _LAYERS:
            raise ParamsError(
                f"a network is written as ONNX from layers of known kinds, but {layer.name} of "
                f"{name} is a {layer.kind}"
            )
        given = [names[source] for source in layer.sources]
        names[layer.name] = _LAYERS[layer.kind](graph, layer, given)
    ends = dict(outputs) or {"features": last}
    graph.nodes += [helper.make_node("Identity", [names[ends[one]]], [one]) for one in ends]
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info(given_as, dtype, ["n_images", *shape])],
            [helper.make_tensor_value_info(one, TensorProto.FLOAT, None) for one in ends],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
        producer_name="headstart",
    )
    if made.ByteSize() > _MOST_BYTES:
        raise ParamsError(
            f"a network is written as ONNX of at most 2 GiB, but {name} has "
            f"{made.ByteSize() / 2**30:.1f}: use smaller encoders, or one"
        )
    helper.set_model_props(made, dict(metadata))
    made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def read_stored(stored: bytes, place: str) -> Any:
    """Return a graph that lies in a file of ours, as an `onnx.ModelProto`.

    Raises:
        FormatError: it is none that this project writes: it could read other files, or never end.
    """
    import onnx

    try:
        model = onnx.load_from_string(stored)
        check_graph(model, place)
        if model.functions:
            raise WeightsError(f"{place} must have no functions, but has some")
    except Exception as error:
        # protobuf has errors of its own.
        raise FormatError(one_line(error, 300) or f"{place} must be an ONNX graph") from None
    return model


def check_graph(model: Any, place: str) -> None:
    """Refuse what an encoder has no need of, and weights that lie in other files.

    Raises:
        WeightsError: naming the operators, or saying where the weights belong.
    """
    import onnx

    nodes = [*model.graph.node, *(node for one in model.functions for node in one.node)]
    own = {(one.domain, one.name) for one in model.functions}
    others = {
        f"{node.domain}.{node.op_type}".removeprefix(".")
        for node in nodes
        if (node.domain, node.op_type) not in own
        and (node.domain != "" or node.op_type not in _OPERATORS)
    }
    attributes = [one for node in nodes for one in node.attribute]
    kinds = onnx.AttributeProto
    if others or any(one.type in (kinds.GRAPH, kinds.GRAPHS) for one in attributes):
        raise WeightsError(
            f"{place} must be made of ONNX's own operators, as encoders are, without loops and "
            f"branches, but it has {', '.join(sorted(others)) or 'branches'}: export it for "
            "inference, unoptimised"
        )
    tensors = [*model.graph.initializer]
    for one in attributes:
        tensors += [*([one.t] if one.HasField("t") else []), *one.tensors]
    is_sparse = model.graph.sparse_initializer or any(
        one.HasField("sparse_tensor") or one.sparse_tensors for one in attributes
    )
    if is_sparse or any(one.data_location == onnx.TensorProto.EXTERNAL for one in tensors):
        raise WeightsError(
            f"{place} must hold its weights itself, dense, but some are in other files or sparse: "
            "save it with onnx.save(model, path, save_as_external_data=False)"
        )


@dataclass(frozen=True)
class SavedLayer:
    """A layer as the file says it.

    Attributes:
        sources, shapes: the layers that it is called with, and their outputs' shapes without n.
        weights: its weights by their names in Keras, float32.
    """

    name: str
    kind: str
    config: dict[str, Any]
    sources: list[str]
    shapes: list[list[int]]
    weights: dict[str, NDArray[np.float32]]

    @property
    def of_map(self) -> bool:
        """Whether it is called with a map (height, width, channels)."""
        return len(self.shapes[0]) == 3


def read_layers(h5: Path) -> tuple[str, list[SavedLayer], str]:
    """Return the name of a model, its layers in order, and the name of the one that ends it.

    Raises:
        FormatError: it is no functional model of Keras 3.
    """
    try:
        with h5py.File(h5, "r") as file:
            config = json.loads(file.attrs["model_config"])["config"]
            layers = [_read_layer(file["model_weights"], each) for each in config["layers"]]
            # One output is kept bare, or as a list of one.
            last = config["output_layers"]
            return config["name"], layers, last[0] if isinstance(last[0], str) else last[0][0]
    except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise FormatError(
            f"{h5} must be a functional model that Keras 3 saved as .h5, but it cannot be read as "
            f"one ({type(error).__name__}: {one_line(error, 120)}): make it again"
        ) from None


def _read_layer(weights: h5py.Group, saved: dict[str, Any]) -> SavedLayer:
    sources, shapes = [], []
    # One argument is kept bare, or as a list of one.
    for argument in saved["inbound_nodes"][0]["args"] if saved["inbound_nodes"] else []:
        for tensor in argument if isinstance(argument, list) else [argument]:
            sources.append(tensor["config"]["keras_history"][0])
            shapes.append(tensor["config"]["shape"][1:])
    own = weights.get(saved["name"], {})
    paths = list(map(str, own.attrs.get("weight_names", []))) if own else []
    return SavedLayer(
        name=saved["name"],
        kind=saved["class_name"],
        config=saved["config"],
        sources=sources,
        shapes=shapes,
        weights={
            path.removeprefix(f"{saved['name']}/"): stored_array(weights, f"{saved['name']}/{path}")
            for path in paths
        },
    )


class GraphWriter:
    """Nodes and constants, in the order in which they were added; all names begin with `prefix`."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Add an operator of one output, and return the name of that."""
        from onnx import helper

        name = f"{self.prefix}{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: type[np.generic] = np.float32) -> str:
        from onnx import numpy_helper

        name = f"{self.prefix}constant_{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(values, dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name


_Write = Callable[[GraphWriter, SavedLayer, list[str]], str]
"""Adds a layer to a graph; given and returned are names of tensors."""


def _of_channels(values: Any, layer: SavedLayer) -> NDArray[np.float32]:
    """A number, or one for each channel, in a shape that maps of `layer` are computed with."""
    array = np.asarray(values, np.float32).reshape(-1)
    return array.reshape(-1, 1, 1) if layer.of_map and len(array) > 1 else array


def _rescaling(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    scale, offset = (_of_channels(layer.config[name], layer) for name in ("scale", "offset"))
    return graph.add("Add", [graph.add("Mul", [*inputs, graph.constant(scale)]),
                             graph.constant(offset)])  # fmt: skip


def _normalization(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    # Given to its constructor, or learnt and then among its weights.
    mean, variance = (
        np.asarray(given if given is not None else layer.weights[name], np.float32)
        for name in ("mean", "variance")
        for given in [layer.config.get(name)]
    )
    deviation = np.maximum(np.sqrt(variance), np.float32(_EPSILON))
    centred = graph.add("Sub", [*inputs, graph.constant(_of_channels(mean, layer))])
    return graph.add("Div", [centred, graph.constant(_of_channels(deviation, layer))])


def _batch_normalization(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    weights = layer.weights
    n = len(weights["moving_mean"])
    parts = [
        weights.get("gamma", np.ones(n)),
        weights.get("beta", np.zeros(n)),
        weights["moving_mean"],
        weights["moving_variance"],
    ]
    constants = [graph.constant(part) for part in parts]
    return graph.add("BatchNormalization", [*inputs, *constants], epsilon=layer.config["epsilon"])


def _layer_normalization(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    n = layer.shapes[0][-1]
    if layer.of_map:
        inputs = [graph.add("Transpose", inputs, perm=_FROM_MAP)]
    scale = graph.constant(layer.weights.get("gamma", np.ones(n)))
    offset = graph.constant(layer.weights.get("beta", np.zeros(n)))
    epsilon = layer.config["epsilon"]
    values = graph.add("LayerNormalization", [*inputs, scale, offset], axis=-1, epsilon=epsilon)
    return graph.add("Transpose", [values], perm=_TO_MAP) if layer.of_map else values


def _convolution(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    # (height, width, in, out) → (out, in, height, width)
    kernel = layer.weights["kernel"].transpose(3, 2, 0, 1)
    values = _convolve(graph, layer, inputs, kernel, layer.config["groups"])
    return _activate(graph, layer.config["activation"], values)


def _depthwise(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    kernel = _depthwise_kernel(layer.weights["kernel"])
    values = _convolve(graph, layer, inputs, kernel, layer.shapes[0][-1])
    return _activate(graph, layer.config["activation"], values)


def _separable(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    kernel = _depthwise_kernel(layer.weights["depthwise_kernel"])
    values = _convolve(graph, layer, inputs, kernel, layer.shapes[0][-1], bias=False)
    pointwise = [graph.constant(layer.weights["pointwise_kernel"].transpose(3, 2, 0, 1))]
    pointwise += [graph.constant(bias) for bias in _bias(layer)]
    values = graph.add("Conv", [values, *pointwise])
    return _activate(graph, layer.config["activation"], values)


def _bias(layer: SavedLayer) -> list[NDArray[np.float32]]:
    """Its bias, where it has one."""
    return [layer.weights["bias"]] if "bias" in layer.weights else []


def _depthwise_kernel(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """(height, width, channels, multiplier) → (channels · multiplier, 1, height, width)."""
    height, width, channels, multiplier = kernel.shape
    moved = kernel.transpose(2, 3, 0, 1)
    return moved.reshape(channels * multiplier, 1, height, width)


def _convolve(
    graph: GraphWriter,
    layer: SavedLayer,
    inputs: list[str],
    kernel: NDArray[np.float32],
    groups: int,
    *,
    bias: bool = True,
) -> str:
    constants = [graph.constant(kernel)]
    constants += [graph.constant(one) for one in _bias(layer) if bias]
    rates = _pair(layer.config["dilation_rate"])
    return graph.add(
        "Conv",
        [*inputs, *constants],
        kernel_shape=list(kernel.shape[2:]),
        strides=_pair(layer.config["strides"]),
        dilations=rates,
        group=groups,
        pads=_pads(layer, kernel.shape[2:], rates),
    )


def _pooling(operator: str) -> _Write:
    # What is outside of the map counts neither for a maximum nor for a mean, as in Keras.
    def write(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
        size, strides = _pair(layer.config["pool_size"]), _pair(layer.config["strides"])
        pads = _pads(layer, size, [1, 1])
        return graph.add(operator, inputs, kernel_shape=size, strides=strides, pads=pads)

    return write


def _global_pooling(operator: str) -> _Write:
    def write(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
        values = graph.add(operator, inputs)
        return values if layer.config["keepdims"] else graph.add("Flatten", [values])

    return write


def _pads(layer: SavedLayer, kernel: Any, rates: list[int]) -> list[int]:
    """TensorFlow's padding: what "same" needs, the odd one at the end."""
    if layer.config["padding"] == "valid":
        return [0, 0, 0, 0]
    before, after = [], []
    sides = zip(layer.shapes[0][:2], kernel, _pair(layer.config["strides"]), rates, strict=True)
    for side, size, stride, rate in sides:
        reach = (-(-side // stride) - 1) * stride + (size - 1) * rate + 1
        total = max(reach - side, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before + after


def _token_padding(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    before, after = layer.config["padding"]
    return graph.add("Pad", [*inputs, graph.constant([0, before, 0, 0, after, 0], np.int64)])


def _token_cropping(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    before, after = layer.config["cropping"]
    ends = [before], [layer.shapes[0][0] - after], [1]
    return graph.add("Slice", [*inputs, *(graph.constant(one, np.int64) for one in ends)])


def _cropping(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    (top, bottom), (left, right) = layer.config["cropping"]
    height, width, _ = layer.shapes[0]
    ends = [top, left], [height - bottom, width - right], [2, 3]
    return graph.add("Slice", [*inputs, *(graph.constant(one, np.int64) for one in ends)])


def _zero_padding(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    (top, bottom), (left, right) = layer.config["padding"]
    pads = graph.constant([0, 0, top, left, 0, 0, bottom, right], np.int64)
    return graph.add("Pad", [*inputs, pads])


def _flatten(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    if layer.of_map:
        inputs = [graph.add("Transpose", inputs, perm=_FROM_MAP)]
    return graph.add("Flatten", inputs)


def _reshape(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    if layer.of_map:
        inputs = [graph.add("Transpose", inputs, perm=_FROM_MAP)]
    target = list(layer.config["target_shape"])
    shape = graph.constant([0, *target], np.int64)  # 0: as many images as there are
    values = graph.add("Reshape", [*inputs, shape])
    return graph.add("Transpose", [values], perm=_TO_MAP) if len(target) == 3 else values


def _dense(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    if layer.of_map:
        # The same at each place: (in, out) → (out, in, 1, 1).
        kernel = layer.weights["kernel"].T[:, :, None, None]
        constants = [graph.constant(one) for one in (kernel, *_bias(layer))]
        values = graph.add("Conv", [*inputs, *constants])
    elif len(layer.shapes[0]) > 1:
        values = _product(graph, inputs[0], layer.weights["kernel"], *_bias(layer))
    else:
        constants = [graph.constant(one) for one in (layer.weights["kernel"], *_bias(layer))]
        values = graph.add("Gemm", [*inputs, *constants])
    return _activate(graph, layer.config["activation"], values)


def _product(graph: GraphWriter, values: str, kernel: Any, bias: Any = None) -> str:
    """Multiply tokens (n, tokens, in) by a kernel (in, out)."""
    product = graph.add("MatMul", [values, graph.constant(kernel)])
    return product if bias is None else graph.add("Add", [product, graph.constant(bias)])


def _rows_added(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    """EinsumDense as the vision transformers use it: channels times factors, plus a row a token."""
    if (layer.config["equation"], layer.config["bias_axes"]) != ("abc,c->abc", "bc"):
        raise ParamsError(
            f"a network is written as ONNX with EinsumDense of abc,c->abc, but {layer.name} is of "
            f"{layer.config['equation']}"
        )
    scaled = graph.add("Mul", [*inputs, graph.constant(layer.weights["kernel"])])
    return graph.add("Add", [scaled, graph.constant(layer.weights["bias"])])


def _attention(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    n_heads, head_dim = layer.config["num_heads"], layer.config["key_dim"]
    width = layer.shapes[0][-1]
    if len(set(inputs)) > 1 or layer.config["value_dim"] not in (None, head_dim):
        raise ParamsError(
            "a network is written as ONNX with attention of tokens to themselves, but "
            f"{layer.name} is another"
        )

    def heads(name: str, order: list[int], factor: float = 1.0) -> str:
        """(n, tokens, width) → (n, heads, …)"""
        kernel = layer.weights[f"{name}/kernel"].reshape(width, -1) * np.float32(factor)
        bias = layer.weights[f"{name}/bias"].reshape(-1) * np.float32(factor)
        shape = graph.constant([0, 0, n_heads, head_dim], np.int64)
        values = graph.add("Reshape", [_product(graph, inputs[0], kernel, bias), shape])
        return graph.add("Transpose", [values], perm=order)

    scores = graph.add("MatMul", [heads("query", [0, 2, 1, 3], head_dim**-0.5),
                                  heads("key", [0, 2, 3, 1])])  # fmt: skip
    shares = graph.add("Softmax", [scores], axis=-1)
    mixed = graph.add("MatMul", [shares, heads("value", [0, 2, 1, 3])])
    joined = graph.add("Transpose", [mixed], perm=[0, 2, 1, 3])
    shape = graph.constant([0, 0, n_heads * head_dim], np.int64)
    kernel, bias = (layer.weights[f"attention_output/{kind}"] for kind in ("kernel", "bias"))
    tokens = graph.add("Reshape", [joined, shape])
    return _product(graph, tokens, kernel.reshape(-1, kernel.shape[-1]), bias)


def _concatenate(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    axis = layer.config["axis"] % (len(layer.shapes[0]) + 1)
    return graph.add("Concat", inputs, axis=_TO_MAP.index(axis) if layer.of_map else axis)


def _add(graph: GraphWriter, _: SavedLayer, inputs: list[str]) -> str:
    return reduce(lambda one, other: graph.add("Add", [one, other]), inputs)


def _plain(operator: str, **attributes: Any) -> _Write:
    """A layer that is one operator."""
    return lambda graph, _, inputs: graph.add(operator, inputs, **attributes)


def _nothing(_: GraphWriter, __: SavedLayer, inputs: list[str]) -> str:
    return inputs[0]


def _relu(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    (values,) = inputs
    most = layer.config["max_value"]
    if layer.config["negative_slope"] or layer.config["threshold"]:
        raise ParamsError(
            f"a network is written as ONNX with plain ReLU layers, but {layer.name} has a slope or "
            "a threshold"
        )
    if most is None:
        return graph.add("Relu", [values])
    return graph.add("Clip", [values, graph.constant(0.0), graph.constant(most)])


def _activation(graph: GraphWriter, layer: SavedLayer, inputs: list[str]) -> str:
    (values,) = inputs
    return _activate(graph, layer.config["activation"], values)


def _activate(graph: GraphWriter, saved: Any, values: str) -> str:
    """Apply one of Keras's activation functions, as a layer's settings name it."""
    name = saved["config"] if isinstance(saved, dict) else saved
    if name in (None, "linear"):
        return values
    if name in ("silu", "swish"):
        return graph.add("Mul", [values, graph.add("Sigmoid", [values])])
    if name == "relu6":
        return graph.add("Clip", [values, graph.constant(0.0), graph.constant(6.0)])
    if name == "hard_sigmoid":
        return graph.add("HardSigmoid", [values], alpha=1 / 6, beta=0.5)
    if name in ("hard_silu", "hard_swish"):
        return graph.add("HardSwish", [values])
    known = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "gelu": "Gelu", "elu": "Elu",
             "selu": "Selu"}  # fmt: skip
    if name not in known:
        raise ParamsError(
            f"a network is written as ONNX with activations of known kinds, but got {name}"
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
    "Concatenate": _concatenate,
    "Conv2D": _convolution,
    "Cropping1D": _token_cropping,
    "Cropping2D": _cropping,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Dropout": _nothing,
    "EinsumDense": _rows_added,
    "Flatten": _flatten,
    "GlobalAveragePooling2D": _global_pooling("GlobalAveragePool"),
    "GlobalMaxPooling2D": _global_pooling("GlobalMaxPool"),
    "LayerNormalization": _layer_normalization,
    "MaxPooling2D": _pooling("MaxPool"),
    "MultiHeadAttention": _attention,
    "Multiply": _plain("Mul"),
    "Normalization": _normalization,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": _separable,
    "Softmax": _plain("Softmax", axis=-1),
    "ZeroPadding1D": _token_padding,
    "ZeroPadding2D": _zero_padding,
}
