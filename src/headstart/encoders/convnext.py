"""ConvNeXt from plain Keras layers, and where the tensors of published files go.

Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022; DINOv3's ConvNeXt has the same graph.
LayerScale is multiplied into the dense layer before it, so that nothing but built-in layers is
needed. Knows nothing of files.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import WeightsError
from headstart.encoders.encoder import Encoder
from headstart.encoders.weights_files import Tensors

_EPSILON = 1e-6
# What the files of Hugging Face (ConvNeXt, and DINOv3's), timm and the authors call the parts.
_STEM = re.compile(
    r"^(?:embeddings\.(?P<hf>patch_embeddings|layernorm)|(?:stem|downsample_layers\.0)\.(?P<number>[01])"
    r"|stages\.0\.downsample_layers\.(?P<dino>[01]))\.(?P<kind>weight|bias)$"
)
_DOWN = re.compile(
    r"^(?:stages\.(?P<stage>[123])\.(?:downsampling_layer|downsample|downsample_layers)"
    r"|downsample_layers\.(?P<own>[123]))\.(?P<number>[01])\.(?P<kind>weight|bias)$"
)
_IN_BLOCK = re.compile(
    r"^stages\.(?P<stage>\d)\.(?:layers\.|blocks\.)?(?P<block>\d+)\."
    r"(?P<part>\w+(?:\.fc[12])?)(?:\.(?P<kind>weight|bias))?$"
)
_PARTS = {
    "dwconv": "conv", "conv_dw": "conv", "depthwise_conv": "conv",
    "layernorm": "norm", "norm": "norm", "layer_norm": "norm",
    "pwconv1": "dense1", "mlp.fc1": "dense1", "pointwise_conv1": "dense1",
    "pwconv2": "dense2", "mlp.fc2": "dense2", "pointwise_conv2": "dense2",
    "layer_scale_parameter": "scale", "gamma": "scale",
}  # fmt: skip


@dataclass(frozen=True)
class ConvNext:
    """One network of the family: blocks and channels of its four stages."""

    name: str
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]

    @property
    def blocks(self) -> dict[str, int]:
        """Its feature blocks: the maps at the end of the last three stages."""
        return {_end(stage, self.depths): self.widths[stage] for stage in (3, 2, 1)}

    def network(self, inputs: Any) -> Any:
        """Return the network without classifier, a `keras.Model` on `inputs` (n, size, size, 3)."""
        import keras

        layers = keras.layers

        def norm(name: str) -> Any:
            return layers.LayerNormalization(epsilon=_EPSILON, name=name)

        x = layers.Conv2D(self.widths[0], 4, 4, name="stem_conv")(inputs)
        x = norm("stem_norm")(x)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage:
                x = norm(f"stage{stage}_down_norm")(x)
                x = layers.Conv2D(width, 2, 2, name=f"stage{stage}_down_conv")(x)
            for number in range(depth):
                name = f"stage{stage}_block{number}"
                y = layers.DepthwiseConv2D(7, padding="same", name=f"{name}_conv")(x)
                y = norm(f"{name}_norm")(y)
                y = layers.Dense(4 * width, activation="gelu", name=f"{name}_dense1")(y)
                y = layers.Dense(width, name=f"{name}_dense2")(y)
                x = layers.Add(name=f"{name}_add")([x, y])
        return keras.Model(keras.utils.get_source_inputs(inputs)[0], x, name=self.name)

    def tensors_from_pytorch(
        self, state: Mapping[str, NDArray[np.float32]], _size_px: int
    ) -> Tensors:
        """Return weights by Keras layer from a state of Hugging Face's, timm's or the authors'.

        Raises:
            WeightsError: the state lacks a tensor that the network needs, or is of another one.
        """
        parts = _by_layer(state)
        depths = tuple(
            1 + max((n for s, n, _, _ in parts if s == stage and n is not None), default=-1)
            for stage in range(4)
        )
        if depths != self.depths:
            raise WeightsError(
                f"weights of {self.name} must have {self.depths} blocks in its stages, but got "
                f"{depths}: these are weights of another network"
            )

        def take(
            stage: int | None, block: int | None, part: str
        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            try:
                return parts[stage, block, part, "weight"], parts[stage, block, part, "bias"]
            except KeyError:
                raise WeightsError(
                    f"weights of {self.name} must hold every layer's tensors, but those of {part} "
                    f"of stage {stage}, block {block}, are missing: give a file of this network by "
                    "Hugging Face or timm"
                ) from None

        def conv(stage: int | None, part: str) -> list[NDArray[np.float32]]:
            kernel, bias = take(stage, None, part)
            return [kernel.transpose(2, 3, 1, 0), bias]  # OIHW → HWIO

        tensors: Tensors = {
            "stem_conv": conv(None, "conv"),
            "stem_norm": [*take(None, None, "norm")],
        }
        for stage, depth in enumerate(self.depths):
            if stage:
                tensors[f"stage{stage}_down_norm"] = [*take(stage, None, "norm")]
                tensors[f"stage{stage}_down_conv"] = conv(stage, "conv")
            for number in range(depth):
                name = f"stage{stage}_block{number}"
                kernel, bias = take(stage, number, "conv")
                tensors[f"{name}_conv"] = [kernel.transpose(2, 3, 0, 1), bias]
                tensors[f"{name}_norm"] = [*take(stage, number, "norm")]
                kernel, bias = take(stage, number, "dense1")
                tensors[f"{name}_dense1"] = [kernel.T, bias]
                kernel, bias = take(stage, number, "dense2")
                scale = parts.get((stage, number, "scale", ""), np.ones(len(bias), np.float32))
                tensors[f"{name}_dense2"] = [kernel.T * scale, bias * scale]
        return tensors


def convnexts() -> Iterator[Encoder]:
    """Yield the encoders of the family, for `.safetensors` of Hugging Face or timm."""
    tiny, small = (3, 3, 9, 3), (3, 3, 27, 3)
    sizes = (
        ("tiny", tiny, (96, 192, 384, 768)),
        ("small", small, (96, 192, 384, 768)),
        ("base", small, (128, 256, 512, 1024)),
        ("large", small, (192, 384, 768, 1536)),
    )
    for size, depths, widths in sizes:
        network = ConvNext(f"convnext-{size}", depths, widths)
        yield Encoder(
            network.name,
            network.network,
            "torch",
            network.blocks,
            default_size_px=224,
            least_size_px=32,
            from_pytorch=network.tensors_from_pytorch,
            published=f"model.safetensors of facebook/convnext-{size}-224, Apache-2.0",
            licence="Apache-2.0",
        )


def _end(stage: int, depths: tuple[int, ...]) -> str:
    return f"stage{stage}_block{depths[stage] - 1}_add"


def _by_layer(
    state: Mapping[str, NDArray[np.float32]],
) -> dict[tuple[int | None, int | None, str, str], NDArray[np.float32]]:
    """Tensors by stage (None: the stem), block (None: what comes before them), part and kind."""
    found: dict[tuple[int | None, int | None, str, str], NDArray[np.float32]] = {}
    for given, values in state.items():
        key = re.sub(r"^(model\.|convnext\.|encoder\.|trunk\.)+", "", given)
        if match := _STEM.match(key):
            number = match["number"] or match["dino"]
            part = "conv" if match["hf"] == "patch_embeddings" or number == "0" else "norm"
            found[None, None, part, match["kind"]] = values
        elif match := _DOWN.match(key):
            part = "norm" if match["number"] == "0" else "conv"
            found[int(match["stage"] or match["own"]), None, part, match["kind"]] = values
        elif (match := _IN_BLOCK.match(key)) and match["part"] in _PARTS:
            place = int(match["stage"]), int(match["block"])
            found[*place, _PARTS[match["part"]], match["kind"] or ""] = values
    return found
