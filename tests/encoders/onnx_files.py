"""Real `.onnx` files of encoders, as exporters write them: float pixels in, tokens out."""

import hashlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import yaml
from numpy.typing import NDArray

from headstart.encoders.builders import random_tensors
from headstart.encoders.onnx_graph import onnx_model
from headstart.encoders.vit import Vit
from headstart.params.extract import ExtractParams

MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
WIDTH, PATCH_PX = 24, 8


def vit(size: int) -> Any:
    """A vision transformer with random weights in Keras, from standardised pixels."""
    network = Vit("tiny", WIDTH, 3, 3, PATCH_PX, registers=1)
    model = network.network(keras.Input((size, size, 3), name="image"))
    for name, tensors in random_tensors(model).items():
        model.get_layer(name).set_weights(tensors)
    return model


def write_vit(folder: Path, size: int, name: str = "tiny") -> Any:
    """Write `vit` as an .onnx file with its description; returns the same in Keras.

    The file takes `pixels` (n, 3, size, size) and gives `last_hidden_state` (n, n_tokens, width).
    """
    model = vit(size)
    tokens = keras.Model(model.inputs[0], model.get_layer("norm").output)
    folder.mkdir(parents=True, exist_ok=True)
    h5 = folder / "scratch.h5"
    tokens.save(h5)
    made = onnx.load_from_string(onnx_model(h5, outputs={"last_hidden_state": "norm"}))
    h5.unlink()
    # Without what makes floats of an image's bytes: an exporter knows nothing of them.
    cast = next(node for node in made.graph.node if node.op_type == "Cast")
    kept = [n for n in made.graph.node if n.name not in (cast.name, _source(made, cast).name)]
    for node in kept:
        renamed = ["pixels" if one == cast.output[0] else one for one in node.input]
        del node.input[:]
        node.input.extend(renamed)
    del made.graph.node[:], made.graph.input[:], made.graph.value_info[:]
    made.graph.node.extend(kept)
    made.graph.input.append(
        onnx.helper.make_tensor_value_info(
            "pixels", onnx.TensorProto.FLOAT, ["batch", 3, size, size]
        )
    )
    save(folder, made, size, name)
    return tokens


def _source(model: Any, node: Any) -> Any:
    return next(one for one in model.graph.node if one.output[0] == node.input[0])


def save(folder: Path, model: Any, size: int, name: str = "tiny", **changes: Any) -> Path:
    """Write a model and its description, which `changes` change; returns the description's path."""
    onnx.save(model, folder / f"{name}.onnx")
    description = {
        "file": f"{name}.onnx",
        "sha256": hashlib.sha256((folder / f"{name}.onnx").read_bytes()).hexdigest(),
        "size_px": size,
        "mean": MEAN,
        "std": STD,
        "special_tokens": 2,
        "blocks": {
            "class_token": {"output": "last_hidden_state", "tokens": "first"},
            "patches": {"output": "last_hidden_state", "tokens": "patches"},
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**description, **changes}, sort_keys=False), encoding="utf-8")
    return path


def extract_params(path: Path, name: str = "tiny", **more: Any) -> ExtractParams:
    """The extract section that names a description."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ExtractParams(encoders=name, weights=str(path), weights_sha256=digest, **more)


def expected_features(tokens: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Class token and mean of the patches, by Keras; float32 (n, 2 · width)."""
    standardised = (pixels / 255.0 - np.asarray(MEAN)) / np.asarray(STD)
    found = np.asarray(tokens(standardised.astype(np.float32)))
    return np.concatenate([found[:, 0], found[:, 2:].mean(axis=1)], axis=1)
