"""Building an encoder: a flat frozen Keras model from uint8 pixels to float32 feature blocks.

Knows nothing of the cache, of batches or of files of images. Importing this imports no Keras.
"""

import difflib
from pathlib import Path
from typing import Any

from headstart.common.errors import ParamsError
from headstart.encoders.catalogue import (
    BLOCK_PREFIX,
    ENCODERS,
    Encoder,
    check_size,
    encoder_named,
    row_layers,
)
from headstart.encoders.preprocessing import PREPROCESSING
from headstart.encoders.tensors import Tensors, assign, random_tensors, read_tensors
from headstart.encoders.weights import locate_weights
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

__all__ = ["ENCODERS", "Encoder", "bare_network", "build", "check_size", "encoder_named"]


def build(extract: ExtractParams, image: ImageParams, root: Path | None = None) -> Any:
    """A frozen, flat `keras.Model`: uint8 (n, size, size, 3) → float32 (n, feature_dim).

    Preprocessing is inside; every layer is named, the last one "features"; it survives `.h5`. With
    several layers, that of each is pooled by "features_<layer>", and "features" joins them.
    Relative weights paths are taken from `root`, by default the working directory.

    Raises:
        ParamsError: unknown encoder or layer, or an image size it cannot take.
        WeightsError: the weights are nowhere, or not the ones they claim to be.
    """
    encoder = encoder_named(extract.encoder)
    check_size(encoder, image)
    tensors = _tensors(encoder, extract, image.size, root or Path.cwd())
    model = _named(_graph(encoder, extract, image.size))
    if tensors is None:
        tensors = random_tensors(model)
    assign(model, tensors)
    model.trainable = False
    return model


def _tensors(encoder: Encoder, extract: ExtractParams, size_px: int, root: Path) -> Tensors | None:
    if extract.weights == "random":
        return None
    path = locate_weights(extract, encoder.imagenet, root)
    tensors = read_tensors(
        path, bare=lambda: bare_network(encoder, size_px), from_pytorch=encoder.from_pytorch
    )
    return tensors if encoder.repair is None else encoder.repair(tensors)


def bare_network(encoder: Encoder, size_px: int) -> Any:
    """The network alone, without preprocessing or pooling, its layers named as in `build`."""
    import keras

    return _named(encoder.network(keras.Input((size_px, size_px, 3), name="image")))


def _graph(encoder: Encoder, extract: ExtractParams, size_px: int) -> Any:
    import keras

    pixels = keras.Input((size_px, size_px, 3), dtype="uint8", name="image")
    whole = _named(encoder.network(PREPROCESSING[encoder.preprocessing](pixels)))
    names = row_layers(encoder, extract)
    pooled = []
    for name in names:
        output = _layer(whole, name).output
        if isinstance(output, list | tuple) or len(output.shape) not in (2, 4):
            raise ParamsError(
                "extract.layers must name layers that give one map (height, width, channels) or "
                f"one vector an image, but {name} gives {output}: choose another layer"
            )
        given = "features" if len(names) == 1 else f"{BLOCK_PREFIX}{name}"
        pooled.append(_pooled(output, extract.pooling, given))
    features = pooled[0]
    if len(pooled) > 1:
        features = keras.layers.Concatenate(name="features", dtype="float32")(pooled)
    return keras.Model(whole.inputs[0], features, name=encoder.name)


def layer_names(extract: ExtractParams, image: ImageParams) -> list[str]:
    """The names of the layers that `build` would use; no weights are read.

    Raises:
        ParamsError: unknown encoder or layer, or an image size it cannot take.
    """
    encoder = encoder_named(extract.encoder)
    check_size(encoder, image)
    return [layer.name for layer in _named(_graph(encoder, extract, image.size)).layers]


def _pooled(output: Any, pooling: str, name: str) -> Any:
    import keras

    layers = keras.layers
    if len(output.shape) == 2 or pooling == "flatten":
        return layers.Flatten(name=name, dtype="float32")(output)
    pool = layers.GlobalAveragePooling2D if pooling == "avg" else layers.GlobalMaxPooling2D
    return pool(name=name, dtype="float32")(output)


def _layer(model: Any, name: str) -> Any:
    names = [layer.name for layer in model.layers]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.3) or names[-5:]
        raise ParamsError(
            f"extract.layers must name layers of {model.name}, but it has none named {name}: "
            f"nearest are {', '.join(near)}"
        )
    return model.get_layer(name)


def _named(model: Any) -> Any:
    """The same network with the layer names of a fresh process.

    Layers that Keras names by counting get names that depend on what was built before; saved
    files would differ. The smallest count of each class becomes zero.
    """
    import keras
    from keras.src.utils.naming import to_snake_case

    first: dict[str, int] = {}
    counted: dict[str, tuple[str, int]] = {}
    for layer in model.layers:
        base = to_snake_case(type(layer).__name__)
        count = layer.name.removeprefix(base).removeprefix("_") or "0"
        if layer.name.startswith(base) and count.isdigit():
            counted[layer.name] = (base, int(count))
            first[base] = min(first.get(base, int(count)), int(count))
    names = {
        old: base if count == first[base] else f"{base}_{count - first[base]}"
        for old, (base, count) in counted.items()
    }
    if all(old == new for old, new in names.items()):
        return model

    def renamed(layer: Any) -> Any:
        config = layer.get_config()
        return type(layer).from_config(config | {"name": names.get(layer.name, layer.name)})

    clone = keras.models.clone_model(model, clone_function=renamed)
    clone.set_weights(model.get_weights())
    return clone
