"""Preprocessing of pixels as built-in Keras layers, so that it travels inside every model.

Each entry of PREPROCESSING takes a uint8 tensor (n, size, size, 3) and returns float32 of the same
shape. Built-in layers alone, because others do not survive a round trip through `.h5`. They
compute in float32 whatever the precision of the encoder: pixels must not be rounded twice.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

# `Any` stands for a Keras tensor: Keras ships no types.
Preprocess = Callable[[Any], Any]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)


def _rescaled(scale: Any, offset: Any) -> Preprocess:
    def apply(pixels: Any) -> Any:
        import keras

        layer = keras.layers.Rescaling(scale, offset, name="preprocess_rescale", dtype="float32")
        return layer(pixels)

    return apply


def _caffe(pixels: Any) -> Any:
    """RGB to BGR, minus the channel means: a fixed 1 x 1 convolution after a cast."""
    import keras
    import numpy as np

    # Rescaling(1.0) is the cast from uint8 that survives `.h5`.
    cast = keras.layers.Rescaling(1.0, name="preprocess_cast", dtype="float32")
    channels = keras.layers.Conv2D(
        3, 1, name="preprocess_channels", dtype="float32", trainable=False
    )
    result = channels(cast(pixels))
    kernel = np.eye(3, dtype=np.float32)[:, ::-1].reshape(1, 1, 3, 3)
    channels.set_weights([kernel, -np.asarray(CAFFE_MEAN_BGR, np.float32)])
    return result


PREPROCESSING: MappingProxyType[str, Preprocess] = MappingProxyType(
    {
        # less 127, over 128
        "lite": _rescaled(1 / 128, -127 / 128),
        # from -1 to 1
        "tf": _rescaled(1 / 127.5, -1.0),
        # BGR minus ImageNet's means
        "caffe": _caffe,
        # ImageNet's mean 0 and standard deviation 1
        "torch": _rescaled(
            [1 / (255 * std) for std in IMAGENET_STD],
            [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)],
        ),
        # the encoder's own first layers do it
        "inside": _rescaled(1.0, 0.0),
    }
)
