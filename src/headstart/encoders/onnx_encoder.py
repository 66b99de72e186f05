"""An encoder that is an ONNX graph from the bytes of pixels to feature blocks.

What an `.onnx` file becomes, and what encoders of Keras become where one stands beside them. Knows
nothing of descriptions, weights and params.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from headstart.common.cost import Cost
from headstart.common.hdf5 import stored_array
from headstart.encoders.onnx_graph import ENCODER_DATASET, read_stored

FORMAT, FORMAT_VERSION = "headstart-onnx-encoder", 1


@dataclass(frozen=True)
class OnnxEncoder:
    """An encoder as ONNX: uint8 pixels (n, size, size, 3) to a float32 output for each block.

    Attributes:
        blocks: its feature blocks, name → width, in the order of the graph's outputs.
        model: the bytes of the graph.
    """

    blocks: Mapping[str, int]
    model: bytes

    def save(self, path: Path) -> None:
        """Write it as an HDF5 file, models/backbone.h5; the same encoder gives the same bytes."""
        with h5py.File(path, "w") as file:
            file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
            file.attrs["blocks"] = json.dumps(self.blocks)
            file.create_dataset(ENCODER_DATASET, data=np.frombuffer(self.model, np.uint8))

    def joined(self, blocks: Sequence[str] | None = None) -> bytes:
        """Return the graph whose only output joins `blocks`, by default all, in its own order."""
        from onnx import helper

        model = _parsed(self.model)
        chosen = [tensor_of(name) for name in self.blocks if blocks is None or name in blocks]
        model.graph.node.append(helper.make_node("Concat", chosen, ["features"], axis=1))
        return finished_graph(model, {"features": self.width(blocks)})

    def width(self, blocks: Sequence[str] | None = None) -> int:
        """Return how many features `blocks` have, by default all."""
        return sum(n for name, n in self.blocks.items() if blocks is None or name in blocks)

    def costs(self) -> dict[str, Cost]:
        """Return what it costs up to each of its blocks."""
        return {name: self.cost([name]) for name in self.blocks}

    def cost(self, blocks: Sequence[str] | None = None) -> Cost:
        """Return what `blocks` cost together, by default all; what they share counts once."""
        model = _parsed(self.model)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        shapes = tensor_shapes(model)
        constants = {one.name: one for one in model.graph.initializer}
        chosen = [tensor_of(name) for name in self.blocks if blocks is None or name in blocks]
        nodes, names = _needed(model.graph, chosen)
        multiply_adds = 0
        for node in nodes:
            made = [one for one in shapes.get(node.output[0], []) if isinstance(one, int)]
            taken = shapes.get(node.input[0], []) if node.input else []
            if node.op_type == "Conv" and node.input[1] in constants:
                multiply_adds += prod(constants[node.input[1]].dims) * prod(made[2:])
            elif node.op_type in ("Gemm", "MatMul") and taken and isinstance(taken[-1], int):
                multiply_adds += prod(made) * taken[-1]
        n_weights = sum(prod(constants[one].dims) for one in names if one in constants)
        return Cost.of_kernels(multiply_adds, n_weights)


def load_onnx_encoder(path: Path) -> OnnxEncoder | None:
    """Load what `OnnxEncoder.save` wrote; None where the file is something else.

    Raises:
        FormatError: its graph is not in the file itself.
    """
    with h5py.File(path, "r") as file:
        if file.attrs.get("format") != FORMAT:
            return None
        model = stored_array(file, ENCODER_DATASET).tobytes()
        read_stored(model, f"{ENCODER_DATASET} of {path}")
        return OnnxEncoder(json.loads(file.attrs["blocks"]), model)


def side_by_side(each: Mapping[str, OnnxEncoder]) -> OnnxEncoder:
    """Return one encoder of several by name; its blocks are called `<name>.<block>`."""
    import onnx
    from onnx import helper

    models = {name: _parsed(one.model) for name, one in each.items()}
    opset = max(map(opset_of, models.values()))
    whole: Any = None
    blocks: dict[str, int] = {}
    for name, model in models.items():
        if opset_of(model) < opset:
            model = onnx.version_converter.convert_version(model, opset)
        model = onnx.compose.add_prefix(model, f"{name}/", rename_inputs=False)
        for block, width in each[name].blocks.items():
            blocks[f"{name}.{block}"] = width
            ends = [f"{name}/{tensor_of(block)}"], [tensor_of(f"{name}.{block}")]
            model.graph.node.append(helper.make_node("Identity", *ends))
        if whole is None:
            whole = model
        else:
            whole.graph.node.extend(model.graph.node)
            whole.graph.initializer.extend(model.graph.initializer)
    return OnnxEncoder(
        blocks, finished_graph(whole, {tensor_of(n): width for n, width in blocks.items()})
    )


def tensor_of(block: str) -> str:
    """Return the name of the output that gives a block."""
    return f"block/{block}"


def finished_graph(model: Any, outputs: Mapping[str, int]) -> bytes:
    """Return the bytes of a model with these outputs, name → width, and what they need."""
    import onnx
    from onnx import TensorProto, helper

    graph = model.graph
    nodes, names = _needed(graph, list(outputs))
    constants = [one for one in graph.initializer if one.name in names]
    inputs = [one for one in graph.input if one.name == "image"]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "encoder",
            inputs,
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n_images", width])
                for name, width in outputs.items()
            ],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", opset_of(model))],
        ir_version=max(10, model.ir_version),
        producer_name="headstart",
    )
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString(deterministic=True))


def _needed(graph: Any, outputs: Sequence[str]) -> tuple[list[Any], set[str]]:
    """The nodes that give these tensors, in order, and the names of all that they take."""
    names, nodes = set(outputs), []
    for node in reversed(graph.node):
        if names & set(node.output):
            nodes.append(node)
            names |= set(node.input)
    return nodes[::-1], names


def tensor_shapes(model: Any) -> dict[str, list[Any]]:
    """Return what follows of the shapes of tensors: for each axis a number, a name, or None."""
    import onnx

    # Shapes that the file states may be those of another size.
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        one.name: [d.dim_value or d.dim_param or None for d in one.type.tensor_type.shape.dim]
        for one in (*graph.value_info, *graph.output, *graph.input)
        if one.type.tensor_type.HasField("shape")
    }


def _parsed(model: bytes) -> Any:
    import onnx

    return onnx.load_from_string(model)


def opset_of(model: Any) -> int:
    """Return the version of ONNX's own operators that a model is written in."""
    return max(
        (one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1
    )
