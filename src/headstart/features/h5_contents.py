"""What an `.h5` file of this project is and holds, in words. Reads it without Keras.

What `headstart inspect FILE` prints.
"""

import json
from collections import Counter
from collections.abc import Iterator
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


def inspect_text(path: Path) -> str:
    """Kind, recipe and contents of a features, images, model or encoder `.h5`.

    Raises:
        FormatError: the file is missing, damaged, or none of this project.
    """
    with open_h5(path, _REMEDY) as file:
        kind = _kind(file, path)
        lines = [f"{path}: {kind}, {size_text(path.stat().st_size)}"]
        lines += [f"  {name}: {value}" for name, value in _facts(file)]
        if "model_config" in file.attrs:
            lines += [f"  {line}" for line in _layers(file)]
            if ENCODER_DATASET in file:
                size = size_text(file[ENCODER_DATASET].nbytes)
                lines.append(f"  encoder before these layers: {ENCODER_DATASET}, {size}")
        else:
            lines += [f"  {line}" for line in _datasets(file)]
            lines += [f"  {line}" for line in _counts(file)]
    return "\n".join(lines)


def _kind(file: Any, path: Path) -> str:
    name = str(file.attrs.get("format", ""))
    if name in _KINDS:
        return f"{_KINDS[name]} ({name}, version {int(file.attrs['format_version'])})"
    if "model_config" in file.attrs:
        return "a Keras model (.h5)"
    raise FormatError(f"{path} must be a file of this project, but is not: {_REMEDY}")


def _facts(file: Any) -> Iterator[tuple[str, str]]:
    skipped = {"format", "format_version", "model_config", "training_config"}
    for name in sorted(set(file.attrs) - skipped):
        value = _decoded(file.attrs[name])
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", _short(value[key])) for key in sorted(value))
        else:
            yield name, _short(value)


def _decoded(value: Any) -> Any:
    text = value.decode() if isinstance(value, bytes) else value
    if isinstance(text, str) and text[:1] in ("{", "["):
        return json.loads(text)
    return text


def _short(value: Any, limit: int = 200) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _datasets(file: Any) -> list[str]:
    rows: list[list[str]] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            layout = f"chunks {item.chunks}" if item.chunks else "contiguous"
            packed = f", {item.compression}" if item.compression else ""
            shape = " × ".join(f"{side:,}" for side in item.shape)
            rows.append([name, str(item.dtype), shape, size_text(item.nbytes), layout + packed])

    file.visititems(visit)
    return table(["dataset", "dtype", "shape", "size", "layout"], rows)


def _counts(file: Any) -> Iterator[str]:
    labels = next((file[name] for name in ("labels", "label_ids") if name in file), None)
    if labels is not None and "classes" in file.attrs:
        classes = json.loads(file.attrs["classes"])
        counts = np.bincount(labels[...], minlength=len(classes))
        pairs = zip(classes, counts.tolist(), strict=True)
        yield "images by class: " + ", ".join(f"{name} {count:,}" for name, count in pairs)
    splits = next((file[name] for name in ("splits", "split") if name in file), None)
    if splits is not None:
        found = Counter(value.decode() for value in splits[...].tolist())
        yield "images by split: " + ", ".join(f"{k} {found[k]:,}" for k in sorted(found))


def _layers(file: Any) -> list[str]:
    config = json.loads(file.attrs["model_config"])["config"]
    layers = config["layers"]
    n_parameters = 0

    def visit(_: str, item: Any) -> None:
        nonlocal n_parameters
        if isinstance(item, h5py.Dataset):
            n_parameters += int(item.size)

    file["model_weights"].visititems(visit)
    first = layers[0]["config"]
    return [
        f"input: {first.get('dtype')} {first.get('batch_shape')}",
        f"layers: {len(layers)}, the last ones "
        + ", ".join(f"{layer['config']['name']} ({layer['class_name']})" for layer in layers[-4:]),
        f"parameters: {n_parameters:,}",
    ]
