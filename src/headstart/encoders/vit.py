"""Vision transformers (ViT, DeiT, DINOv2, CLIP's image side) from plain Keras layers, and where
the tensors of published files go.

Sources: Dosovitskiy et al. 2021 (ViT), Touvron et al. 2021 (DeiT, and LayerScale), Radford et al.
2021 (CLIP), Oquab et al. 2023 (DINOv2), Darcet et al. 2024 (registers). Class token, registers and
positions are the bias of one layer; LayerScale and the factor of CLIP's activation are multiplied
into the layers beside them; so nothing but built-in layers is needed, and the `.h5` loads
everywhere. Knows nothing of files.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, floor, isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import WeightsError
from headstart.encoders.encoder import Encoder
from headstart.encoders.weights_files import Tensors

State = Mapping[str, NDArray[np.float32]]
CLASS_TOKEN, PATCHES = "class_token", "patch_tokens"
# x · sigmoid(1.702 x), which CLIP was trained with in place of GELU.
_QUICK = np.float32(1.702)
# What Hugging Face's files and timm's call the parts of a block, and of the whole.
_IN_BLOCK = {
    "norm1": ("norm1", "layernorm_before", "layer_norm1"),
    "query": ("attention.attention.query", "attention.q_proj", "self_attn.q_proj"),
    "key": ("attention.attention.key", "attention.k_proj", "self_attn.k_proj"),
    "value": ("attention.attention.value", "attention.v_proj", "self_attn.v_proj"),
    "joined": ("attn.qkv",),
    "attended": ("attention.output.dense", "attention.o_proj", "self_attn.out_proj", "attn.proj"),
    "scale1": ("layer_scale1.lambda1", "ls1.gamma"),
    "norm2": ("norm2", "layernorm_after", "layer_norm2"),
    "dense1": ("mlp.fc1", "intermediate.dense"),
    "dense2": ("mlp.fc2", "output.dense"),
    "scale2": ("layer_scale2.lambda1", "ls2.gamma"),
}
_WHOLE = {
    "patches": ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding",
                "patch_embed.proj"),
    "class": ("embeddings.cls_token", "embeddings.class_embedding", "cls_token"),
    "registers": ("embeddings.register_tokens", "register_tokens", "reg_token"),
    "positions": ("embeddings.position_embeddings", "embeddings.position_embedding.weight",
                  "pos_embed"),
    "first_norm": ("pre_layrnorm", "norm_pre"),
    "norm": ("layernorm", "post_layernorm", "norm"),
}  # fmt: skip
_PREFIXES = re.compile(r"^(model\.|vit\.|deit\.|dinov2\w*\.|vision_model\.|visual\.|trunk\.)+")
_BLOCK = re.compile(r"^(?:encoder\.layers?|layers|blocks)\.(\d+)\.")


# name, width, blocks, heads, side of a patch, registers; where the weights are published
_DINOV2 = (
    ("dinov2-small", 384, 12, 6, 14, 0, "facebook/dinov2-small"),
    ("dinov2-base", 768, 12, 12, 14, 0, "facebook/dinov2-base"),
    ("dinov2-large", 1024, 24, 16, 14, 0, "facebook/dinov2-large"),
    ("dinov2-small-registers", 384, 12, 6, 14, 4, "facebook/dinov2-with-registers-small"),
    ("dinov2-base-registers", 768, 12, 12, 14, 4, "facebook/dinov2-with-registers-base"),
    ("dinov2-large-registers", 1024, 24, 16, 14, 4, "facebook/dinov2-with-registers-large"),
)
_DEIT = (
    ("deit-tiny", 192, 12, 3, 16, 0, "facebook/deit-tiny-patch16-224"),
    ("deit-small", 384, 12, 6, 16, 0, "facebook/deit-small-patch16-224"),
    ("deit-base", 768, 12, 12, 16, 0, "facebook/deit-base-patch16-224"),
)
_VIT = (
    ("vit-small-16", 384, 12, 6, 16, 0, "timm/vit_small_patch16_224.augreg_in21k"),
    ("vit-base-16", 768, 12, 12, 16, 0, "google/vit-base-patch16-224-in21k"),
    ("vit-base-32", 768, 12, 12, 32, 0, "google/vit-base-patch32-224-in21k"),
    ("vit-large-16", 1024, 24, 16, 16, 0, "google/vit-large-patch16-224-in21k"),
)
_CLIP = (
    ("clip-base-32", 768, 12, 12, 32, 0, "openai/clip-vit-base-patch32"),
    ("clip-base-16", 768, 12, 12, 16, 0, "openai/clip-vit-base-patch16"),
    ("clip-large-14", 1024, 24, 16, 14, 0, "openai/clip-vit-large-patch14"),
)


def vits() -> Iterator[Encoder]:
    """Yield the encoders of the family, for `.safetensors` of Hugging Face or timm."""
    clip = {"first_norm": True, "quick": True, "epsilon": 1e-5}
    families: tuple[tuple[Any, str, str, dict[str, Any]], ...] = (
        (_DINOV2, "torch", "Apache-2.0", {}),
        (_DEIT, "torch", "Apache-2.0", {"epsilon": 1e-12}),
        (_VIT, "tf", "Apache-2.0", {"epsilon": 1e-12}),
        (_CLIP, "clip", "MIT", clip),
    )
    for members, preprocessing, licence, options in families:
        for name, width, depth, heads, patch_px, registers, repository in members:
            vit = Vit(name, width, depth, heads, patch_px, registers, **options)
            yield Encoder(
                name,
                vit.network,
                preprocessing,
                vit.blocks,
                default_size_px=224,
                least_size_px=2 * patch_px,
                from_pytorch=vit.tensors_from_pytorch,
                multiple_px=patch_px,
                published=f"model.safetensors of {repository}, {licence}",
                licence=licence,
            )


@dataclass(frozen=True)
class Vit:
    """One network of the family.

    Attributes:
        width, depth, heads: channels of a token, blocks, attention heads.
        patch_px: side of the square that becomes a token.
        registers: tokens beside the class token and the patches.
        first_norm: whether tokens are normalised before the first block, as in CLIP.
        quick: whether its activation is CLIP's in place of GELU.
    """

    name: str
    width: int
    depth: int
    heads: int
    patch_px: int
    registers: int = 0
    first_norm: bool = False
    quick: bool = False
    epsilon: float = 1e-6

    @property
    def blocks(self) -> dict[str, int]:
        """Its feature blocks: class token and mean of patches at the end, and the class token of
        the blocks before, as in DINOv2's linear evaluation."""
        earlier = {f"block{self.depth - back}_class": self.width for back in (2, 3)}
        return {CLASS_TOKEN: self.width, PATCHES: self.width, **earlier}

    def network(self, inputs: Any) -> Any:
        """Return the network, a `keras.Model` on `inputs` (n, size, size, 3), by its blocks.

        `class_token` gives a vector, `patch_tokens` a map, both after the last normalisation.
        """
        import keras

        layers = keras.layers
        side = inputs.shape[1] // self.patch_px
        n_patches, n_first = side * side, 1 + self.registers
        n_tokens = n_first + n_patches
        x = layers.Conv2D(self.width, self.patch_px, self.patch_px, name="patches")(inputs)
        x = layers.Reshape((n_patches, self.width), name="tokens")(x)
        x = layers.ZeroPadding1D((n_first, 0), name="padded")(x)
        # Multiplies by 1, and adds a row to each token.
        x = layers.EinsumDense(
            "abc,c->abc", (n_tokens, self.width), bias_axes="bc", name="positions"
        )(x)
        if self.first_norm:
            x = self._norm("first_norm")(x)

        def class_token(x: Any, name: str) -> Any:
            first = layers.Cropping1D((0, n_tokens - 1), name=f"{name}_only")(x)
            return layers.Flatten(name=name)(first)

        ends = {}
        for number in range(self.depth):
            name = f"block{number}"
            y = self._norm(f"{name}_norm1")(x)
            attention = layers.MultiHeadAttention(
                self.heads, self.width // self.heads, name=f"{name}_attention"
            )
            x = layers.Add(name=f"{name}_attended")([x, attention(y, y)])
            y = self._norm(f"{name}_norm2")(x)
            activation = "silu" if self.quick else "gelu"
            y = layers.Dense(4 * self.width, activation=activation, name=f"{name}_dense1")(y)
            y = layers.Dense(self.width, name=f"{name}_dense2")(y)
            x = layers.Add(name=f"{name}_add")([x, y])
            if f"{name}_class" in self.blocks:
                ends[f"{name}_class"] = class_token(x, f"{name}_class")
        x = self._norm("norm")(x)
        ends[CLASS_TOKEN] = class_token(x, CLASS_TOKEN)
        patches = layers.Cropping1D((n_first, 0), name=f"{PATCHES}_only")(x)
        ends[PATCHES] = layers.Reshape((side, side, self.width), name=PATCHES)(patches)
        return keras.Model(keras.utils.get_source_inputs(inputs)[0], ends, name=self.name)

    def tensors_from_pytorch(self, state: State, size_px: int) -> Tensors:
        """Return weights by Keras layer from a state of Hugging Face's or timm's, by key.

        Positions that were learnt at another size are interpolated (bicubic).

        Raises:
            WeightsError: the state lacks a tensor that the network needs, or is of another one.
        """
        parts = _by_part(state)
        n_blocks = 1 + max((n for n, _, _ in parts if n is not None), default=-1)
        n_registers = parts.get((None, "registers", ""), np.zeros((1, 0, 1))).shape[1]
        if (n_blocks, n_registers) != (self.depth, self.registers):
            raise WeightsError(
                f"weights of {self.name} must have {self.depth} blocks and {self.registers} "
                f"registers, but got {n_blocks} and {n_registers}: these are weights of another "
                "network"
            )
        if ((None, "first_norm", "weight") in parts) != self.first_norm:
            raise WeightsError(
                f"weights of {self.name} must {'' if self.first_norm else 'not '}normalise before "
                "the first block, as CLIP's do: these are weights of another network"
            )

        def take(number: int | None, part: str, kind: str = "weight") -> NDArray[np.float32]:
            if (number, part, kind) not in parts:
                place = "" if number is None else f" of block {number}"
                raise WeightsError(
                    f"weights of {self.name} must hold every layer's tensors, but the "
                    f"{kind or 'values'} of {part}{place} are missing: give a file of this network "
                    "by Hugging Face or timm"
                )
            return parts[number, part, kind]

        def norm(number: int | None, part: str) -> list[NDArray[np.float32]]:
            return [take(number, part), take(number, part, "bias")]

        kernel = take(None, "patches")
        if kernel.shape != (self.width, 3, self.patch_px, self.patch_px):
            raise WeightsError(
                f"weights of {self.name} must make {self.width} channels of patches of "
                f"{self.patch_px} px, but got the shape {kernel.shape}: these are weights of "
                "another network"
            )
        zeros = np.zeros(self.width, np.float32)
        tensors: Tensors = {
            # OIHW → HWIO; CLIP's has no bias.
            "patches": [kernel.transpose(2, 3, 1, 0), parts.get((None, "patches", "bias"), zeros)],
            "positions": [np.ones(self.width, np.float32), self._first_rows(take, size_px)],
            "norm": norm(None, "norm"),
        }
        if self.first_norm:
            tensors["first_norm"] = norm(None, "first_norm")
        per_head = (self.heads, self.width // self.heads)
        factor = _QUICK if self.quick else np.float32(1)
        for number in range(self.depth):
            name = f"block{number}"
            if (number, "joined", "weight") in parts:
                kernels = np.split(take(number, "joined"), 3)
                biases = np.split(take(number, "joined", "bias"), 3)
            else:
                each = ("query", "key", "value")
                kernels = [take(number, part) for part in each]
                biases = [take(number, part, "bias") for part in each]
            attention = []
            for one, bias in zip(kernels, biases, strict=True):
                attention += [one.T.reshape(self.width, *per_head), bias.reshape(per_head)]
            scale1, scale2 = (
                parts.get((number, part, ""), np.ones(self.width, np.float32))
                for part in ("scale1", "scale2")
            )
            out = (take(number, "attended").T * scale1).reshape(*per_head, self.width)
            attention += [out, take(number, "attended", "bias") * scale1]
            tensors |= {
                f"{name}_norm1": norm(number, "norm1"),
                f"{name}_attention": attention,
                f"{name}_norm2": norm(number, "norm2"),
                f"{name}_dense1": [
                    take(number, "dense1").T * factor,
                    take(number, "dense1", "bias") * factor,
                ],
                f"{name}_dense2": [
                    take(number, "dense2").T * scale2 / factor,
                    take(number, "dense2", "bias") * scale2,
                ],
            }
        return tensors

    def _first_rows(self, take: Any, size_px: int) -> NDArray[np.float32]:
        """What is added to the tokens of an image of that size: (n_tokens, width)."""
        first = take(None, "class", "").reshape(1, self.width)
        learnt = take(None, "positions", "").reshape(-1, self.width)
        side = isqrt(len(learnt))
        if len(learnt) != side * side:
            # The class token has a position, too; in timm's files with registers it has none.
            first, learnt, side = first + learnt[:1], learnt[1:], isqrt(len(learnt) - 1)
        if len(learnt) != side * side:
            raise WeightsError(
                f"weights of {self.name} must have the positions of a square of patches, but got "
                f"{len(learnt)}: these are weights of another network, such as a distilled one"
            )
        if self.registers:
            first = np.concatenate([first, take(None, "registers", "")[0]])
        # As Hugging Face does it: with antialiasing where there are registers.
        antialias = self.registers > 0
        weights = _bicubic(side, size_px // self.patch_px, antialias=antialias)
        grid = learnt.reshape(side, side, self.width).astype(np.float64)
        resized = np.einsum("ab,bcd,ec->aed", weights, grid, weights)
        rows = resized.reshape(-1, self.width).astype(np.float32)
        return np.concatenate([first, rows])

    def _norm(self, name: str) -> Any:
        import keras

        return keras.layers.LayerNormalization(epsilon=self.epsilon, name=name)


def _by_part(state: State) -> dict[tuple[int | None, str, str], NDArray[np.float32]]:
    """Tensors by block (None: of the whole), part, and weight, bias or nothing."""
    found = {}
    for key, values in state.items():
        key = _PREFIXES.sub("", key)
        block = _BLOCK.match(key)
        number = int(block.group(1)) if block else None
        rest = key[block.end() :] if block else key
        for part, names in (_IN_BLOCK if block else _WHOLE).items():
            for name in names:
                if rest in (name, f"{name}.weight", f"{name}.bias"):
                    found[number, part, rest[len(name) :].removeprefix(".")] = values
    return found


def _bicubic(n_in: int, n_out: int, *, antialias: bool) -> NDArray[np.float64]:
    """The weights, (n_out, n_in), of PyTorch's bicubic interpolation along one axis.

    As `torch.nn.functional.interpolate` without aligned corners: Keys 1981, with a = -0.75, or with
    antialiasing a = -0.5 and a filter as wide as what becomes one value.
    """
    if n_in == n_out:
        return np.eye(n_in)
    a, stretch = (-0.5, max(n_in / n_out, 1.0)) if antialias else (-0.75, 1.0)
    weights = np.zeros((n_out, n_in))
    for row in range(n_out):
        place = (row + 0.5) * n_in / n_out - 0.5
        reach = ceil(2 * stretch)
        for tap in range(floor(place) - reach, floor(place) + reach + 2):
            x = abs(place - tap) / stretch
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            value = near if x <= 1 else far if x < 2 else 0.0
            if 0 <= tap < n_in:
                weights[row, tap] += value
            elif not antialias:
                # What lies outside is as the edge; with antialiasing it is left out.
                weights[row, min(max(tap, 0), n_in - 1)] += value
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
