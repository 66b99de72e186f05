"""Building an encoder: a flat frozen Keras model from uint8 pixels to float32 feature blocks.

Knows nothing of the cache, of batches or of files of images. Importing this imports no Keras.
"""

import difflib
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from headstart.common.errors import ParamsError, WeightsError
from headstart.common.quiet import quiet_keras
from headstart.encoders.catalogue import (
    BLOCK_PREFIX,
    ENCODERS,
    check_size,
    chosen_encoder,
    encoder_named,
    row_layers,
)
from headstart.encoders.encoder import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Encoder
from headstart.encoders.onnx_description import build_onnx_encoder
from headstart.encoders.onnx_encoder import OnnxEncoder, side_by_side, tensor_of
from headstart.encoders.onnx_graph import onnx_model
from headstart.encoders.weights import locate_weights
from headstart.encoders.weights_files import Tensors, read_tensors
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

__all__ = ["ENCODERS", "Encoder", "bare_network", "build", "check_size", "encoder_named"]

_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)


def _standardising(
    means: Sequence[float], deviations: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Scale and offset of bytes."""
    scale = [1 / (255 * deviation) for deviation in deviations]
    return scale, [-mean / std for mean, std in zip(means, deviations, strict=True)]


# Scale and offset of the pixels, by preprocessing; caffe is more than that.
_SCALES: MappingProxyType[str, tuple[Any, Any]] = MappingProxyType(
    {
        # less 127, over 128
        "lite": (1 / 128, -127 / 128),
        # from -1 to 1
        "tf": (1 / 127.5, -1.0),
        # mean 0 and standard deviation 1 of ImageNet, and of what CLIP was trained on
        "torch": _standardising(IMAGENET_MEAN, IMAGENET_STD),
        "clip": _standardising(CLIP_MEAN, CLIP_STD),
        # the encoder's own first layers do it
        "inside": (1.0, 0.0),
    }
)


def build(extract: ExtractParams, image: ImageParams, root: Path | None = None) -> Any:
    """Return a frozen, flat `keras.Model`: uint8 (n, size, size, 3) → float32 (n, feature_dim).

    Preprocessing is inside; every layer is named, the last one "features"; it survives `.h5`. With
    several layers, that of each is pooled by "features_<layer>", and "features" joins them. Several
    encoders stand side by side on the same pixels; their layers are called `<encoder>.<layer>`.
    Relative weights paths are taken from `root`, by default the working directory. Where an encoder
    is an `.onnx` file, all become an `OnnxEncoder`, which holds the same as ONNX.

    Raises:
        ParamsError: unknown encoder or layer, or an image size it cannot take.
        WeightsError: the weights are nowhere, or not the ones they claim to be.
    """
    if len(extract.encoders) > 1:
        each = [(one, build(one, image, root)) for one in extract.each()]
        if any(isinstance(model, OnnxEncoder) for _, model in each):
            return side_by_side({one.encoder: _as_onnx(one, model) for one, model in each})
        return _side_by_side(each)
    if extract.in_onnx:
        check_size(chosen_encoder(extract, root or Path.cwd()), image)
        return build_onnx_encoder(extract, root or Path.cwd())
    encoder = encoder_named(extract.encoder)
    check_size(encoder, image)
    tensors: Tensors | None = None
    if extract.own_weights[0] != "random":
        path = locate_weights(extract, encoder.imagenet, root or Path.cwd())
        from_pytorch = encoder.from_pytorch
        tensors = read_tensors(
            path,
            bare=encoder.reference or (lambda: bare_network(encoder, image.size)),
            from_pytorch=from_pytorch and (lambda state: from_pytorch(state, image.size)),
        )
        if encoder.repair is not None:
            tensors = encoder.repair(tensors)
    model = _named(_graph(encoder, extract, image.size))
    if tensors is None:
        tensors = random_tensors(model)
    for layer in model.layers:
        # Preprocessing layers keep their weights.
        if not layer.weights or layer.name.startswith("preprocess_"):
            continue
        given = [np.shape(tensor) for tensor in tensors.get(layer.name, [])]
        wanted = [tuple(weight.shape) for weight in layer.weights]
        if given != wanted:
            raise WeightsError(
                f"weights of {model.name} must have the shapes {wanted} in layer {layer.name}, "
                f"but got {given or 'none'}: these are weights of another network"
            )
        layer.set_weights(tensors[layer.name])
        if hasattr(layer, "finalize_state"):
            # Normalization computes with a copy of its weights, made when they are loaded.
            layer.finalize_state()
    model.trainable = False
    return model


def _as_onnx(extract: ExtractParams, model: Any) -> OnnxEncoder:
    """Return an encoder of this room as ONNX, with the blocks that its rows hold."""
    if isinstance(model, OnnxEncoder):
        return model
    names = row_layers(encoder_named(extract.encoder), extract)
    layers = {name: f"{BLOCK_PREFIX}{name}" if len(names) > 1 else "features" for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.h5"
        with quiet_keras():
            model.save(path, include_optimizer=False)
        made = onnx_model(path, outputs={tensor_of(name): layer for name, layer in layers.items()})
    widths = {name: int(model.get_layer(layer).output.shape[-1]) for name, layer in layers.items()}
    return OnnxEncoder(widths, made)


def _side_by_side(each: Sequence[tuple[ExtractParams, Any]]) -> Any:
    """Return one flat network of several."""
    import keras

    pixels = keras.Input(each[0][1].input_shape[1:], dtype="uint8", name="image")
    blocks: list[Any] = []
    for extract, model in each:
        prefix = f"{extract.encoder}."
        (*_, only) = row_layers(encoder_named(extract.encoder), extract)

        def renamed(layer: Any, prefix: str = prefix, only: str = only) -> Any:
            name = f"{prefix}{layer.name}"
            if layer.name == "features":  # pools the only block
                name = f"{BLOCK_PREFIX}{prefix}{only}"
            elif layer.name.startswith(BLOCK_PREFIX):
                name = f"{BLOCK_PREFIX}{prefix}{layer.name.removeprefix(BLOCK_PREFIX)}"
            return type(layer).from_config(layer.get_config() | {"name": name})

        is_joined = isinstance(model.layers[-1], keras.layers.Concatenate)
        ends = keras.Model(model.input, model.layers[-1].input if is_joined else [model.output])
        clone = keras.models.clone_model(ends, input_tensors=pixels, clone_function=renamed)
        clone.set_weights(ends.get_weights())
        for layer in clone.layers:
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()
        blocks += clone.outputs
    features = keras.layers.Concatenate(name="features", dtype="float32")(blocks)
    names = "+".join(extract.encoder for extract, _ in each)
    model = keras.Model(pixels, features, name=names)
    model.trainable = False
    return model


def layer_names(extract: ExtractParams, image: ImageParams) -> list[str]:
    """Return the names of the layers that `build` would use; no weights are read.

    Raises:
        ParamsError: unknown encoder or layer, or an image size it cannot take.
    """
    encoder = encoder_named(extract.encoder)
    check_size(encoder, image)
    return [layer.name for layer in _named(_graph(encoder, extract, image.size)).layers]


def bare_network(encoder: Encoder, size_px: int) -> Any:
    """Return the network alone, without preprocessing or pooling, with the names of `build`."""
    import keras

    return _named(encoder.network(keras.Input((size_px, size_px, 3), name="image")))


def random_tensors(model: Any) -> Tensors:
    """Return He-uniform kernels and neutral statistics, the same on every machine."""
    tensors: Tensors = {}
    for layer in model.layers:
        if not layer.weights or layer.name.startswith("preprocess_"):
            continue
        values = tensors[layer.name] = []
        for weight in layer.weights:
            shape, kind = tuple(weight.shape), weight.name.split("/")[-1]
            if len(shape) < 2:
                is_factor = kind in ("gamma", "moving_variance", "variance", "kernel")
                fill = 1.0 if is_factor else 0.0
                values.append(np.full(shape, fill, np.asarray(weight).dtype))
                continue
            is_depthwise = "depthwise" in kind or (len(shape) == 4 and shape[-1] == 1)
            fan_in = int(np.prod(shape[:-2])) * (1 if is_depthwise else shape[-2])
            # A layer's name seeds it, so that every process draws the same; attention has several
            # kernels.
            number = sum(one.name == weight.name for one in layer.weights[: len(values)])
            seed = f"{layer.name}/{kind}{number or ''}".encode()
            generator = np.random.default_rng(zlib.crc32(seed))
            drawn = (generator.random(shape, np.float32) * 2 - 1).astype(np.float32)
            values.append(drawn * np.float32(np.sqrt(6 / fan_in)))
    return tensors


def _graph(encoder: Encoder, extract: ExtractParams, size_px: int) -> Any:
    """The network from pixels to pooled blocks, before its weights are set."""
    import keras

    layers = keras.layers
    pixels = keras.Input((size_px, size_px, 3), dtype="uint8", name="image")
    # Preprocessing by built-in layers alone, because others do not survive a round trip through
    # `.h5`; in float32 whatever the encoder's precision: pixels must not be rounded twice.
    if encoder.preprocessing == "caffe":
        # RGB to BGR, minus ImageNet's means: a fixed 1 x 1 convolution. Rescaling(1.0) is the cast
        # from uint8 that survives `.h5`.
        cast = layers.Rescaling(1.0, name="preprocess_cast", dtype="float32")
        channels = layers.Conv2D(3, 1, name="preprocess_channels", dtype="float32", trainable=False)
        inputs = channels(cast(pixels))
        kernel = np.eye(3, dtype=np.float32)[:, ::-1].reshape(1, 1, 3, 3)
        channels.set_weights([kernel, -np.asarray(_CAFFE_MEAN_BGR, np.float32)])
    else:
        scale, offset = _SCALES[encoder.preprocessing]
        rescale = layers.Rescaling(scale, offset, name="preprocess_rescale", dtype="float32")
        inputs = rescale(pixels)
    whole = _named(encoder.network(inputs))
    known = [layer.name for layer in whole.layers]
    names = row_layers(encoder, extract)
    pooled = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known[-5:]
            raise ParamsError(
                f"extract.layers must name layers of {whole.name}, but it has none named {name}: "
                f"nearest are {', '.join(near)}"
            )
        output = whole.get_layer(name).output
        if isinstance(output, list | tuple) or len(output.shape) not in (2, 4):
            raise ParamsError(
                "extract.layers must name layers that give one map (height, width, channels) or "
                f"one vector an image, but {name} gives {output}: choose another layer"
            )
        if len(output.shape) == 2 or extract.pooling == "flatten":
            pool = layers.Flatten
        else:
            is_mean = extract.pooling == "avg"
            pool = layers.GlobalAveragePooling2D if is_mean else layers.GlobalMaxPooling2D
        given = "features" if len(names) == 1 else f"{BLOCK_PREFIX}{name}"
        pooled.append(pool(name=given, dtype="float32")(output))
    features = pooled[0]
    if len(pooled) > 1:
        features = layers.Concatenate(name="features", dtype="float32")(pooled)
    return keras.Model(whole.inputs[0], features, name=encoder.name)


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
