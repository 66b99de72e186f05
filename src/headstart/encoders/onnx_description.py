"""Any encoder as an `.onnx` file, and the description that says what the file does not.

`extract.weights` names the description, a YAML file: which `.onnx` file is meant, how it wants its
pixels, and which of its tensors are feature blocks. Such an encoder is frozen: Keras takes no part
in it, and neither does anything but plain operators of ONNX.
"""

import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from headstart.common.errors import ParamsError, WeightsError, one_line
from headstart.common.files import sha256_of_file
from headstart.encoders.encoder import Encoder
from headstart.encoders.onnx_encoder import (
    OnnxEncoder,
    finished_graph,
    opset_of,
    tensor_of,
    tensor_shapes,
)
from headstart.encoders.onnx_graph import OPSET, GraphWriter, check_graph
from headstart.encoders.onnx_session import open_onnx
from headstart.encoders.weights import checked_file
from headstart.params.base import Section
from headstart.params.extract import ExtractParams, Sha256
from headstart.params.image import Resampling
from headstart.params.load import read_mapping, validate

_OWN = "own/"  # before the names of the file's tensors
# Of a feature, in proportion to the largest, between an image alone and beside another.
_TOLERANCE = 1e-4
_Three = Annotated[tuple[float, float, float], Field(strict=False)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class BlockOutput(Section):
    """Where a feature block comes from."""

    output: Annotated[str, Field(min_length=1)]
    tokens: Literal["first", "patches", "all"] | None = None


class OnnxDescription(Section):
    """What an `.onnx` file does not say of itself.

    Attributes:
        file: the `.onnx` file, relative to the description.
        size_px: width and height of its input.
        layout: of its input and its maps.
        mean, std: of red, green and blue from 0 to 1, as it was trained.
        special_tokens: tokens before those of patches: class token and registers.
        blocks: its feature blocks, the last first. `output` is a tensor of the graph; of one
            that gives tokens (n, n_tokens, width), `tokens` takes the first, or the mean of the
            patches or of all. Maps are pooled as extract.pooling says.
    """

    file: Annotated[str, Field(min_length=1)]
    sha256: Sha256
    size_px: int = Field(ge=16, le=2048)
    layout: Literal["nchw", "nhwc"] = "nchw"
    mean: _Three
    std: _Three
    resampling: Resampling | None = None
    special_tokens: int = Field(1, ge=0)
    blocks: dict[_Name, BlockOutput] = Field(min_length=1)
    licence: str = ""


def described_encoder(extract: ExtractParams, root: Path) -> Encoder:
    """Return the encoder that a description describes.

    Args:
        extract: names one encoder, and a description as its weights.
        root: what a relative path is taken from.

    Raises:
        ParamsError, WeightsError: the description or the `.onnx` file cannot be taken, and why.
    """
    if not all(letter.isalnum() or letter in "-_" for letter in extract.encoder):
        raise ParamsError(
            "an encoder in an .onnx file has a name of your own of letters, digits, - and _, but "
            f"extract.encoders says {extract.encoder}"
        )
    path, digest = checked_file(extract, root)
    return _described(extract.encoder, path, digest, extract.pooling)


@functools.cache
def _described(name: str, path: Path, sha256: str, pooling: str) -> Encoder:  # noqa: ARG001
    # The hash is there for the cache: a stage asks several times, and reading takes a second.
    description = _read_description(path)
    return Encoder(
        name=name,
        network=_not_in_keras,
        in_onnx=True,
        preprocessing="onnx",
        blocks=_read_graph(path, description, pooling).blocks,
        default_size_px=description.size_px,
        least_size_px=description.size_px,
        only_resampling=description.resampling,
        licence=description.licence,
    )


def _not_in_keras(_: Any) -> Any:
    raise WeightsError("an encoder in an .onnx file must not be built in Keras, but was")


def build_onnx_encoder(extract: ExtractParams, root: Path) -> OnnxEncoder:
    """Return the encoder itself, tried on noise.

    Raises:
        ParamsError, WeightsError: it cannot be had as asked, or an image's features depend on
            what else is computed with it.
    """
    path, _ = checked_file(extract, root)
    description = _read_description(path)
    encoder = _read_graph(path, description, extract.pooling)
    side = description.size_px
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    try:
        session = open_onnx(encoder.joined(), 1)
        both = session.run(None, {"image": noise})[0]
        alone = session.run(None, {"image": noise[:1]})[0]
    except Exception as error:
        # ONNX Runtime raises what it likes.
        raise WeightsError(
            f"{path.parent / description.file} must compute two images at once, but it does not "
            f"({one_line(error, 200)}): export it with a first axis of any length"
        ) from None
    difference = float(np.abs(both[:1] - alone).max() / max(float(np.abs(alone).max()), 1e-12))
    if not difference <= _TOLERANCE:  # NaN too
        raise WeightsError(
            f"{path.parent / description.file} must give an image the same features whatever is "
            f"computed beside it, but they differ by {difference:.2g} of the largest: export it "
            "for inference"
        )
    start = 0
    for name, width in encoder.blocks.items():
        if not np.ptp(both[:, start : start + width], axis=0).any():
            raise WeightsError(
                f"blocks.{name} of {path.name} must tell images apart, but is the same for two of "
                "noise: name another tensor, or correct special_tokens"
            )
        start += width
    return encoder


def _read_description(path: Path) -> OnnxDescription:
    description = validate(path, OnnxDescription, read_mapping(path))
    file = path.parent / description.file
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [p.name for p in path.parent.iterdir()], n=1)
        hint = f"did you mean {near[0]}?" if near else "put it there"
        raise WeightsError(
            f"{path.name} names {description.file}, but {file} does not exist: {hint}"
        )
    if (found := sha256_of_file(file)) != description.sha256:
        raise WeightsError(
            f"{file} must have the sha256 {description.sha256} that {path.name} names, but has "
            f"{found}: provide the right file, or change the hash if you trust this one"
        )
    return description


def _read_graph(path: Path, description: OnnxDescription, pooling: str) -> OnnxEncoder:
    """The graph of a described file with preprocessing before it and its blocks pooled."""
    import onnx
    from onnx import helper

    file = path.parent / description.file
    model = onnx.compose.add_prefix(read_onnx(file), _OWN)
    wrong: list[str] = []
    given = _input(model.graph, description, wrong)
    shapes = tensor_shapes(model)
    before, after = GraphWriter("before"), GraphWriter("after")
    _preprocess(before, description, given)
    blocks: dict[str, int] = {}
    for name, block in description.blocks.items():
        try:
            shape = shapes.get(f"{_OWN}{block.output}")
            if shape is None:
                own = [one.removeprefix(_OWN) for one in shapes]
                outputs = [one.name.removeprefix(_OWN) for one in model.graph.output]
                near = difflib.get_close_matches(block.output, own, n=3, cutoff=0.4) or outputs
                raise ParamsError(
                    f"blocks.{name}.output must be a tensor of the graph, but got {block.output}: "
                    f"nearest are {', '.join(near)}"
                )
            blocks[name] = _pool(after, name, shape, description, pooling)
        except ParamsError as error:
            wrong.append(str(error))
    if wrong:
        count = "1 mistake" if len(wrong) == 1 else f"{len(wrong)} mistakes"
        raise ParamsError("\n  ".join([f"{count} in {path.name} and {file.name}:", *wrong]))
    nodes = [*before.nodes, *model.graph.node, *after.nodes]
    side = description.size_px
    pixels = helper.make_tensor_value_info(
        "image", onnx.TensorProto.UINT8, ["n_images", side, side, 3]
    )
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    model.graph.input.append(pixels)
    model.graph.initializer.extend([*before.constants, *after.constants])
    return OnnxEncoder(
        blocks, finished_graph(model, {tensor_of(n): width for n, width in blocks.items()})
    )


def read_onnx(file: Path) -> Any:
    """Return an `.onnx` file as an `onnx.ModelProto` of our opset or a later one.

    Raises:
        WeightsError: it is none, has operators that are not taken, or weights in other files.
    """
    import onnx
    from onnx import inliner

    try:
        model = onnx.load(str(file), load_external_data=False)
        check_graph(model, str(file))
        model = inliner.inline_local_functions(model)
        if opset_of(model) < OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
    except WeightsError:
        raise
    except Exception as error:
        # protobuf, and C++ of ONNX by its bindings.
        raise WeightsError(
            f"{file} must be an ONNX model of opset {OPSET}, or one that can be converted to it, "
            f"but it is not ({one_line(error, 200)}): export it with opset_version={OPSET}"
        ) from None
    return model


def _input(graph: Any, description: OnnxDescription, wrong: list[str]) -> str:
    """The name of the graph's input, whose shape becomes (n_images, …) of the description."""
    import onnx

    constants = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in constants]
    side = description.size_px
    wanted: list[Any] = [3, side, side] if description.layout == "nchw" else [side, side, 3]
    (first, *others) = inputs or [None]
    of_tensor = None if first is None else first.type.tensor_type
    dims = [] if of_tensor is None else [d.dim_value or None for d in of_tensor.shape.dim]
    fits = len(dims) == 4 and all(d in (None, w) for d, w in zip(dims[1:], wanted, strict=True))
    is_float = of_tensor is not None and of_tensor.elem_type == onnx.TensorProto.FLOAT
    if first is None or others or not fits or not is_float:
        told = [f"{one.name.removeprefix('encoder/')}" for one in inputs]
        wrong.append(
            f"the input must be one of float32 and shape (n, {', '.join(map(str, wanted))}), as "
            f"layout and size_px say, but the graph has {', '.join(told) or 'none'}"
            + (f" of shape {tuple(d or '?' for d in dims)}" if not others else "")
            + ": correct the description, or export it in float32"
        )
    elif dims[0] is not None:
        wrong.append(
            f"the input's first axis must be of any length, but it is {dims[0]}: export the model "
            "with it dynamic, as in torch.onnx.export(…, dynamic_axes={'pixels': [0]})"
        )
    if first is None:
        return ""
    whole = onnx.helper.make_tensor_value_info(
        first.name, onnx.TensorProto.FLOAT, ["n_images", *wanted]
    )
    first.CopyFrom(whole)
    return str(first.name)


def _preprocess(writer: GraphWriter, description: OnnxDescription, given: str) -> None:
    """From the bytes of pixels to what the graph takes under the name `given`."""
    from onnx import TensorProto, helper

    is_nchw = description.layout == "nchw"
    deviation = np.asarray(description.std, np.float64)
    scale, offset = 1 / (255 * deviation), -np.asarray(description.mean) / deviation
    pixels = writer.add("Transpose", ["image"], perm=[0, 3, 1, 2]) if is_nchw else "image"
    pixels = writer.add("Cast", [pixels], to=TensorProto.FLOAT)
    shape = (3, 1, 1) if is_nchw else (3,)
    pixels = writer.add("Mul", [pixels, writer.constant(scale.reshape(shape))])
    pixels = writer.add("Add", [pixels, writer.constant(offset.reshape(shape))])
    writer.nodes.append(helper.make_node("Identity", [pixels], [given]))


def _pool(
    writer: GraphWriter, name: str, shape: Sequence[Any], description: OnnxDescription, pooling: str
) -> int:
    """Add what makes a vector of a block's tensor, of that shape; returns its width."""
    from onnx import TensorProto, helper

    block, is_nchw = description.blocks[name], description.layout == "nchw"
    of_tokens, of_map = len(shape) == 3, len(shape) == 4
    width = shape[1 if of_map and is_nchw else -1] if len(shape) in (2, 3, 4) else None
    if not isinstance(width, int):
        raise ParamsError(
            f"blocks.{name}.output must give vectors, tokens or maps of a known width, but "
            f"{block.output} is of shape {_told(shape)}: choose another tensor"
        )
    if of_tokens != (block.tokens is not None):
        raise ParamsError(
            f"blocks.{name}.tokens must be first, patches or all where the output gives tokens "
            f"(n, n_tokens, width), and else not there, but {block.output} is of shape "
            f"{_told(shape)}: {'say which' if of_tokens else 'leave it out'}"
        )
    n_tokens = shape[1] if of_tokens and isinstance(shape[1], int) else 2**31
    if block.tokens == "patches" and description.special_tokens >= n_tokens:
        raise ParamsError(
            f"special_tokens must be less than the {n_tokens} tokens of {block.output}, or "
            f"blocks.{name} has no patches, but got {description.special_tokens}: lower it"
        )
    if of_map and pooling == "flatten":
        raise ParamsError(
            f"extract.pooling must be avg or max for the map of blocks.{name}, but got flatten"
        )
    values = f"{_OWN}{block.output}"
    if of_tokens and block.tokens != "all":
        start, end = (0, 1) if block.tokens == "first" else (description.special_tokens, 2**31 - 1)
        limits = [writer.constant(one, np.int64) for one in (start, end, 1)]
        values = writer.add("Slice", [values, *limits])
    if of_tokens or of_map:
        axes = [1] if of_tokens else [2, 3] if is_nchw else [1, 2]
        reduce = "ReduceMax" if of_map and pooling == "max" else "ReduceMean"
        values = writer.add(reduce, [values, writer.constant(axes, np.int64)], keepdims=0)
    cast = helper.make_node("Cast", [values], [tensor_of(name)], to=TensorProto.FLOAT)
    writer.nodes.append(cast)
    return width


def _told(shape: Sequence[Any]) -> str:
    return f"({', '.join(str(one or '?') for one in shape)})"
