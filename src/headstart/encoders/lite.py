"""The EfficientNet-Lite family from plain Keras layers, and where its ImageNet tensors go.

EfficientNet without squeeze-and-excitation and with ReLU6, stem and head of fixed width, first and
last stage of fixed depth (Tan and Le 2019, and the EfficientNet-Lite release of 2020). Knows
nothing of files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import WeightsError
from headstart.encoders.weights_files import Tensors

_STEM_FILTERS, _HEAD_FILTERS = 32, 1280
_EPSILON = 1e-3
# repeats, kernel, stride of the first, expansion, filters; of Lite0
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class _Block:
    """One inverted residual block."""

    name: str
    kernel: int
    stride: int
    expansion: int
    filters_in: int
    filters_out: int


@dataclass(frozen=True)
class Lite:
    """One network of the family: how much wider and deeper than Lite0 it is."""

    name: str
    width: float = 1.0
    depth: float = 1.0

    def network(self, inputs: Any) -> Any:
        """Return the network without classifier, a `keras.Model` on `inputs` (n, size, size, 3)."""
        import keras

        x = _conv(inputs, "stem", _STEM_FILTERS, kernel=3, stride=2)
        x = _relu6(x, "stem")
        for block in self._blocks():
            before = x
            if block.expansion > 1:
                name = f"{block.name}_expand"
                x = _relu6(_conv(x, name, block.filters_in * block.expansion), name)
            name = f"{block.name}_depthwise"
            x = keras.layers.DepthwiseConv2D(
                block.kernel, block.stride, padding="same", use_bias=False, name=f"{name}_conv"
            )(x)
            x = _relu6(_batch_norm(x, name), name)
            x = _conv(x, f"{block.name}_project", block.filters_out)
            if block.stride == 1 and block.filters_in == block.filters_out:
                x = keras.layers.Add(name=f"{block.name}_add")([x, before])
        x = _relu6(_conv(x, "head", _HEAD_FILTERS), "head")
        return keras.Model(keras.utils.get_source_inputs(inputs)[0], x, name=self.name)

    def tensors_from_pytorch(
        self, state: Mapping[str, NDArray[np.float32]], _size_px: int
    ) -> Tensors:
        """Return weights by Keras layer, in Keras's order and axes, from a PyTorch state by key.

        Raises:
            WeightsError: the state lacks a tensor that the network needs.
        """
        tensors: Tensors = {}

        def take(name: str, conv: str, norm: str, *, depthwise: bool = False) -> None:
            # OIHW → HWIO; a depthwise kernel is (channels, 1, h, w) and becomes (h, w, channels, 1)
            axes = (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)
            kernel = np.ascontiguousarray(state[f"{conv}.weight"].transpose(axes))
            parts = ("weight", "bias", "running_mean", "running_var")
            tensors[f"{name}_conv"] = [kernel]
            tensors[f"{name}_bn"] = [state[f"{norm}.{part}"] for part in parts]

        try:
            take("stem", "_conv_stem", "_bn0")
            for index, block in enumerate(self._blocks()):
                there = f"_blocks.{index}."
                if block.expansion > 1:
                    take(f"{block.name}_expand", f"{there}_expand_conv", f"{there}_bn0")
                name = f"{block.name}_depthwise"
                take(name, f"{there}_depthwise_conv", f"{there}_bn1", depthwise=True)
                take(f"{block.name}_project", f"{there}_project_conv", f"{there}_bn2")
            take("head", "_conv_head", "_bn1")
        except KeyError as missing:
            raise WeightsError(
                f"weights of {self.name} must hold every layer's tensors, but "
                f"{missing.args[0]} is missing: use the file of the package"
            ) from None
        return tensors

    def _blocks(self) -> Iterator[_Block]:
        filters_in, index = _STEM_FILTERS, 0
        for stage, (repeats, kernel, stride, expansion, narrow) in enumerate(_STAGES):
            if 0 < stage < len(_STAGES) - 1:
                repeats = ceil(repeats * self.depth)
            filters = multiple_of_8(narrow * self.width)
            for repeat in range(repeats):
                yield _Block(
                    f"block{index}",
                    kernel,
                    stride if repeat == 0 else 1,
                    expansion,
                    filters_in,
                    filters,
                )
                filters_in, index = filters, index + 1


def multiple_of_8(filters: float) -> int:
    """The nearest multiple of 8 that is at least 0.9 of it."""
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * filters else nearest


def _conv(x: Any, name: str, filters: int, kernel: int = 1, stride: int = 1) -> Any:
    import keras

    conv = keras.layers.Conv2D(
        filters, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv"
    )
    return _batch_norm(conv(x), name)


def _batch_norm(x: Any, name: str) -> Any:
    import keras

    return keras.layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_bn")(x)


def _relu6(x: Any, name: str) -> Any:
    import keras

    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x)
