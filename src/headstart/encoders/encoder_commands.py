"""The encoders for a person: which there are, at what cost; fetching and describing them."""

import csv
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from headstart.common.errors import ParamsError
from headstart.common.files import sha256_of_file, write_text
from headstart.common.terminal import size_text, table
from headstart.encoders.catalogue import ENCODERS, encoder_named
from headstart.encoders.onnx_description import read_onnx
from headstart.encoders.onnx_encoder import tensor_shapes
from headstart.encoders.weights import locate_weights, weights_identity
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

HERE, FETCHED, YOURS = "here", "fetched", "a file"
_LEGEND = (
    "px: the default input size, at which GFLOPs are counted (two a multiply-add).\n"
    "weights: here; fetched when needed, or by `headstart encoders fetch NAME`; or\n"
    "in a file that you give: `headstart encoders show NAME` says which."
)


@dataclass(frozen=True)
class ListedEncoder:
    """One encoder of the list.

    Attributes:
        blocks: feature blocks, layer → width.
        parameters, mflops: of the network without classifier, at `size_px`.
        weights: "here", "fetched" when they are needed, or "a file" that the user gives.
    """

    name: str
    size_px: int
    blocks: dict[str, int]
    parameters: int
    mflops: float
    weights: str
    licence: str


def listed_encoders() -> list[ListedEncoder]:
    """Return all encoders of the catalogue, in its order."""
    text = resources.files("headstart.encoders").joinpath("costs.csv").read_text(encoding="utf-8")
    costs = {row["encoder"]: row for row in csv.DictReader(text.splitlines())}
    found = []
    for encoder in ENCODERS.values():
        imagenet = encoder.imagenet
        weights = YOURS if imagenet is None else HERE if imagenet.is_here() else FETCHED
        cost = costs[encoder.name]
        found.append(
            ListedEncoder(
                encoder.name,
                encoder.default_size_px,
                dict(encoder.blocks),
                int(cost["parameters"]),
                float(cost["mflops"]),
                weights,
                encoder.licence,
            )
        )
    return found


def listing() -> str:
    """All encoders, a line each, in 80 columns."""
    rows = [
        [
            one.name,
            str(one.size_px),
            f"{sum(one.blocks.values()):,}",
            f"{one.parameters / 1e6:.1f} M",
            f"{one.mflops / 1e3:.2f}",
            one.weights,
            one.licence,
        ]
        for one in listed_encoders()
    ]
    header = ["encoder", "px", "features", "params", "GFLOPs", "weights", "licence"]
    return "\n".join([*table(header, rows), "", _LEGEND])


def listed_encoder(name: str) -> ListedEncoder:
    """Return one encoder of the list.

    Raises:
        ParamsError: there is none of that name.
    """
    encoder = encoder_named(name)
    return next(one for one in listed_encoders() if one.name == encoder.name)


def details(name: str) -> str:
    """What there is to know of one encoder.

    Raises:
        ParamsError: there is none of that name.
    """
    encoder = encoder_named(name)
    listed = listed_encoder(name)
    blocks = [f"{layer} ({width:,})" for layer, width in listed.blocks.items()]
    multiple = f", a multiple of {encoder.multiple_px}" if encoder.multiple_px > 1 else ""
    return "\n".join([
        f"{encoder.name}: {listed.parameters / 1e6:.1f} M parameters, "
        f"{listed.mflops / 1e3:.2f} GFLOPs at {encoder.default_size_px} px",
        f"  input: at least {encoder.least_size_px} px{multiple}",
        f"  blocks: {', '.join(blocks)}",
        f"  weights: {listed.weights}{f', {encoder.published}' if encoder.published else ''}",
        f"  licence of the weights: {encoder.licence}",
    ])  # fmt: skip


@dataclass(frozen=True)
class FetchedWeights:
    """A file of an encoder's weights that is on this machine.

    Attributes:
        sha256: of a file that the user gave, which params.yaml must name; else None.
    """

    encoder: str
    path: Path
    size_bytes: int
    licence: str
    sha256: str | None = None

    def as_text(self) -> str:
        """Where it is; of a given file also the lines for params.yaml."""
        said = f"{self.path}: {size_text(self.size_bytes)}, {self.licence}"
        if self.sha256 is None:
            return said
        lines = [
            f"encoders: {self.encoder}",
            f"weights: {self.path}",
            f"weights_sha256: {self.sha256}",
        ]
        return "\n    ".join([f"{said}. In params.yaml:\n  extract:", *lines])


def fetch_weights(name: str, file: Path | None) -> FetchedWeights:
    """Fetch the weights of an encoder, or look whether a file holds them.

    Raises:
        ParamsError, WeightsError: there is no such encoder, or no weights of it.
    """
    from headstart.encoders.builders import build

    encoder = encoder_named(name)
    if file is None:
        extract = ExtractParams(encoders=(name,))
        weights_identity(extract, encoder.imagenet, Path.cwd(), encoder.published)
        path = locate_weights(extract, encoder.imagenet, Path.cwd())
        return FetchedWeights(name, path, path.stat().st_size, encoder.licence)
    digest = sha256_of_file(file) if file.is_file() else None
    extract = ExtractParams(encoders=(name,), weights=str(file), weights_sha256=digest)
    build(extract, ImageParams(size=encoder.default_size_px))
    return FetchedWeights(name, file, file.stat().st_size, encoder.licence, digest)


def describe_onnx(file: Path) -> tuple[Path, str]:
    """Write a first description beside an `.onnx` file, to be looked through; none is replaced.

    Returns:
        Its path, and what to do next.

    Raises:
        ParamsError: there is a description already, or the file's input is no image.
        WeightsError: the file is no ONNX model that is taken.
    """
    path = file.with_suffix(".yaml")
    if path.exists():
        raise ParamsError(f"a description must be new, but {path} is there: edit or remove it")
    model = read_onnx(file)
    shapes = tensor_shapes(model)
    constants = {one.name for one in model.graph.initializer}
    shape = next(
        (shapes.get(one.name, []) for one in model.graph.input if one.name not in constants), []
    )
    is_nhwc = len(shape) == 4 and shape[3] == 3
    sides = shape[1:3] if is_nhwc else shape[2:4]
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ParamsError(
            f"the input of {file} must be images of three channels, but its shape is {shape}: "
            "export the encoder with its input alone"
        )
    blocks: dict[str, Any] = {}
    for output in model.graph.output:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", output.name)
        of_tokens = len(shapes.get(output.name, [])) == 3
        kinds = {"class_token": "first", "patches": "patches"} if of_tokens else {"": None}
        for suffix, tokens in kinds.items():
            block = f"{name}_{suffix}".rstrip("_")
            blocks[block] = {"output": output.name} | ({"tokens": tokens} if tokens else {})
    said = {
        "file": file.name,
        "sha256": sha256_of_file(file),
        "size_px": sides[0] if isinstance(sides[0], int) else 224,
        "layout": "nhwc" if is_nhwc else "nchw",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "special_tokens": 1,
        "blocks": blocks,
        "licence": "",
    }
    write_text(
        path,
        "# Look through it: mean and std, of RGB from 0 to 1, are those of ImageNet, which the\n"
        "# file does not say. special_tokens are class token and registers, before the patches.\n"
        + yaml.safe_dump(said, sort_keys=False),
    )
    name = re.sub(r"[^A-Za-z0-9_-]", "-", file.stem)
    return path, (
        f"{path}: look through it, then name it and its hash in params.yaml:\n"
        f"  image:\n    size_px: {said['size_px']}\n"
        f"  extract:\n    encoders: {name}\n    weights: {path}\n    weights_sha256: null\n"
        "A first `dvc repro` says the hash."
    )
