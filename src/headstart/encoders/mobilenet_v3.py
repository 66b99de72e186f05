"""MobileNetV3 from plain Keras layers; layers with weights have the names that Keras gives them.

Keras's own builder adds and multiplies by `keras.ops`, which do not come back from `.h5`. Source:
Howard et al. 2019. Knows nothing of files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headstart.encoders.encoder import Encoder
from headstart.encoders.lite import multiple_of_8
from headstart.encoders.weights import Imagenet, KerasFile

_EPSILON = 1e-3
# expansion, channels, kernel, stride, squeeze-and-excitation, activation; of each block
_LARGE = (
    (1, 16, 3, 1, False, "relu"),
    (4, 24, 3, 2, False, "relu"),
    (3, 24, 3, 1, False, "relu"),
    (3, 40, 5, 2, True, "relu"),
    (3, 40, 5, 1, True, "relu"),
    (3, 40, 5, 1, True, "relu"),
    (6, 80, 3, 2, False, "hard_swish"),
    (2.5, 80, 3, 1, False, "hard_swish"),
    (2.3, 80, 3, 1, False, "hard_swish"),
    (2.3, 80, 3, 1, False, "hard_swish"),
    (6, 112, 3, 1, True, "hard_swish"),
    (6, 112, 3, 1, True, "hard_swish"),
    (6, 160, 5, 2, True, "hard_swish"),
    (6, 160, 5, 1, True, "hard_swish"),
    (6, 160, 5, 1, True, "hard_swish"),
)
_SMALL = (
    (1, 16, 3, 2, True, "relu"),
    (72 / 16, 24, 3, 2, False, "relu"),
    (88 / 24, 24, 3, 1, False, "relu"),
    (4, 40, 5, 2, True, "hard_swish"),
    (6, 40, 5, 1, True, "hard_swish"),
    (6, 40, 5, 1, True, "hard_swish"),
    (3, 48, 5, 1, True, "hard_swish"),
    (3, 48, 5, 1, True, "hard_swish"),
    (6, 96, 5, 2, True, "hard_swish"),
    (6, 96, 5, 1, True, "hard_swish"),
    (6, 96, 5, 1, True, "hard_swish"),
)
_LAST = "conv_1_activation"


def mobilenets_v3() -> Iterator[Encoder]:
    """Yield both, for the weights that Keras publishes."""
    for size, rows, blocks, md5 in (
        (
            "large",
            _LARGE,
            {_LAST: 960, "expanded_conv_14_add": 160, "expanded_conv_11_add": 112},
            "07fb09a5933dd0c8eaafa16978110389",
        ),
        (
            "small",
            _SMALL,
            {_LAST: 576, "expanded_conv_10_add": 96, "expanded_conv_7_add": 48},
            "d3e8ec802a04aa4fc771ee12a9a9b836",
        ),
    ):
        file = f"weights_mobilenet_v3_{size}_224_1.0_float_no_top_v2.h5"
        yield Encoder(
            f"mobilenetv3{size}",
            MobileNetV3(f"mobilenetv3{size}", rows).network,
            "tf",
            blocks,
            default_size_px=224,
            least_size_px=32,
            licence="Apache-2.0",
            imagenet=Imagenet(
                identity=f"md5:{md5}",
                keras=KerasFile(file, md5, "mobilenet_v3", "BASE_WEIGHT_PATH"),
            ),
        )


@dataclass(frozen=True)
class MobileNetV3:
    """One network of the family."""

    name: str
    rows: tuple[tuple[float, int, int, int, bool, str], ...]

    def network(self, inputs: Any) -> Any:
        """Return the network without classifier, a `keras.Model` on `inputs` (n, size, size, 3)."""
        import keras

        layers = keras.layers

        def conv(x: Any, filters: int, name: str, activation: str | None, **options: Any) -> Any:
            x = layers.Conv2D(filters, padding="same", use_bias=False, name=name, **options)(x)
            return normalised(x, name, activation)

        def normalised(x: Any, name: str, activation: str | None) -> Any:
            x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_bn")(x)
            if activation is None:
                return x
            return layers.Activation(activation, name=f"{name}_activation")(x)

        x = conv(inputs, 16, "conv", "hard_swish", kernel_size=3, strides=2)
        for number, (expansion, filters, kernel, stride, excite, activation) in enumerate(
            self.rows
        ):
            prefix = f"expanded_conv_{number}_" if number else "expanded_conv_"
            before, wide = x, multiple_of_8(x.shape[-1] * expansion)
            if number:
                x = conv(x, wide, f"{prefix}expand", activation, kernel_size=1)
            if stride == 2:
                # As "same" of an even side, with the odd one before; of an odd one, both alike.
                half = kernel // 2
                pads = tuple((half - 1 + side % 2, half) for side in x.shape[1:3])
                x = layers.ZeroPadding2D(pads, name=f"{prefix}depthwise_pad")(x)
            name = f"{prefix}depthwise"
            x = layers.DepthwiseConv2D(
                kernel, stride, "same" if stride == 1 else "valid", use_bias=False, name=name
            )(x)
            x = normalised(x, name, activation)
            if excite:
                name = f"{prefix}squeeze_excite"
                y = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_avg_pool")(x)
                y = layers.Conv2D(
                    multiple_of_8(wide / 4), 1, activation="relu", name=f"{name}_conv"
                )(y)
                y = layers.Conv2D(wide, 1, activation="hard_sigmoid", name=f"{name}_conv_1")(y)
                x = layers.Multiply(name=f"{name}_mul")([x, y])
            x = conv(x, filters, f"{prefix}project", None, kernel_size=1)
            if stride == 1 and before.shape[-1] == filters:
                x = layers.Add(name=f"{prefix}add")([before, x])
        x = conv(x, multiple_of_8(6 * x.shape[-1]), "conv_1", "hard_swish", kernel_size=1)
        return keras.Model(keras.utils.get_source_inputs(inputs)[0], x, name=self.name)
