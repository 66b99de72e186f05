"""What an `.h5` file of this project is and holds, in words. Reads it without Keras.

What `headstart inspect FILE` prints.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from headstart.common.errors import FormatError
from headstart.common.hdf5 import open_h5
from headstart.common.terminal import size_text, table
from headstart.encoders.onnx_graph import ENCODER_DATASET

_KINDS = {
    "headstart-features": "bottleneck features",
    "headstart-feature-shard": "one shard of the row cache",
    "headstart-images": "decoded images",
    "headstart-model": "a trained model",
    "headstart-onnx-encoder": "an encoder in ONNX",
}
_REMEDY = "give a features, images or model file of this project"


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    layout: str


@dataclass(frozen=True)
class H5Contents:
    """What a features, images, model or encoder `.h5` is and holds.

    Attributes:
        facts: of its recipe and the like, by dotted name.
        datasets: empty for a model.
        classes, splits: images of each, where the file has images.
        model: input, layers and parameters of a model, in words; empty for other files.
    """

    path: Path
    kind: str
    size_bytes: int
    facts: dict[str, Any]
    datasets: list[DatasetFacts] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)

    def as_text(self) -> str:
        """Return lines for a person."""
        lines = [f"{self.path}: {self.kind}, {size_text(self.size_bytes)}"]
        lines += [f"  {name}: {_short(value)}" for name, value in self.facts.items()]
        lines += [f"  {name}: {text}" for name, text in self.model.items()]
        if not self.model:
            rows = [
                [one.name, one.dtype, " × ".join(f"{side:,}" for side in one.shape),
                 size_text(one.size_bytes), one.layout]
                for one in self.datasets
            ]  # fmt: skip
            header = ["dataset", "dtype", "shape", "size", "layout"]
            lines += [f"  {line}" for line in table(header, rows)]
        for heading, counts in (("class", self.classes), ("split", self.splits)):
            if counts:
                listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
                lines.append(f"  images by {heading}: {listed}")
        return "\n".join(lines)


def inspect_h5(path: Path) -> H5Contents:
    """Read kind, recipe and contents of a features, images, model or encoder `.h5`.

    Raises:
        FormatError: the file is missing, damaged, or none of this project.
    """
    with open_h5(path, _REMEDY) as file:
        known = path, _kind(file, path), path.stat().st_size, dict(_facts(file))
        if "model_config" in file.attrs:
            return H5Contents(*known, model=_model(file))
        classes, splits = _counts(file)
        return H5Contents(*known, datasets=_datasets(file), classes=classes, splits=splits)


def _kind(file: Any, path: Path) -> str:
    name = str(file.attrs.get("format", ""))
    if name in _KINDS:
        return f"{_KINDS[name]} ({name}, version {int(file.attrs['format_version'])})"
    if "model_config" in file.attrs:
        return "a Keras model (.h5)"
    raise FormatError(f"{path} must be a file of this project, but is not: {_REMEDY}")


def _facts(file: Any) -> Iterator[tuple[str, Any]]:
    skipped = {"format", "format_version", "model_config", "training_config"}
    for name in sorted(set(file.attrs) - skipped):
        value = _decoded(file.attrs[name])
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", value[key]) for key in sorted(value))
        else:
            yield name, value


def _decoded(value: Any) -> Any:
    text = value.decode() if isinstance(value, bytes) else value
    if isinstance(text, str) and text[:1] in ("{", "["):
        return json.loads(text)
    return text


def _short(value: Any, limit: int = 200) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _datasets(file: Any) -> list[DatasetFacts]:
    found = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            layout = f"chunks {item.chunks}" if item.chunks else "contiguous"
            packed = f", {item.compression}" if item.compression else ""
            shape, dtype = tuple(map(int, item.shape)), str(item.dtype)
            found.append(DatasetFacts(name, dtype, shape, int(item.nbytes), layout + packed))

    file.visititems(visit)
    return found


def _counts(file: Any) -> tuple[dict[str, int], dict[str, int]]:
    by_class: dict[str, int] = {}
    labels = next((file[name] for name in ("labels", "label_ids") if name in file), None)
    if labels is not None and "classes" in file.attrs:
        classes = json.loads(file.attrs["classes"])
        counts = np.bincount(labels[...], minlength=len(classes))
        by_class = dict(zip(classes, counts.tolist(), strict=True))
    splits = next((file[name] for name in ("splits", "split") if name in file), None)
    by_split = (
        Counter(value.decode() for value in splits[...].tolist()) if splits is not None else {}
    )
    return by_class, dict(sorted(by_split.items()))


def _model(file: Any) -> dict[str, str]:
    config = json.loads(file.attrs["model_config"])["config"]
    layers = config["layers"]
    n_parameters = 0

    def visit(_: str, item: Any) -> None:
        nonlocal n_parameters
        if isinstance(item, h5py.Dataset):
            n_parameters += int(item.size)

    file["model_weights"].visititems(visit)
    first = layers[0]["config"]
    last = [f"{layer['config']['name']} ({layer['class_name']})" for layer in layers[-4:]]
    encoder = file.get(ENCODER_DATASET)
    of_encoder = {} if encoder is None else {"encoder in ONNX": size_text(int(encoder.nbytes))}
    return of_encoder | {
        "input": f"{first.get('dtype')} {first.get('batch_shape')}",
        "layers": f"{len(layers)}, the last ones {', '.join(last)}",
        "parameters": f"{n_parameters:,}",
    }
