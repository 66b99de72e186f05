"""The extract section: which encoder, which of its layers, run how."""

import difflib
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from headstart.params.base import Section

Name = Annotated[str, Field(min_length=1)]


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[
    tuple[Name, ...],
    Field(min_length=1),
    BeforeValidator(
        _one_or_several,
        json_schema_input_type=Name | Annotated[list[Name], Field(min_length=1)],
    ),
]


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ExtractParams(Section):
    """What turns an image into a feature row."""

    rarely_changed: ClassVar = frozenset({"batch_size"})
    renamed: ClassVar = {"backbone": "encoders", "layer": "layers"}

    encoders: Names = Field(
        ("efficientnet-lite0",),
        strict=False,
        description="a name, or several; `headstart encoders` lists them",
    )
    weights: Name | dict[Name, Name] = Field(
        "imagenet",
        description="imagenet, random, or the path of a weights file; of several, encoder: path",
    )
    weights_sha256: Sha256 | dict[Name, Sha256] | None = Field(
        None, description="what a weights file must hash to; of several, encoder: hash"
    )
    layers: Names | None = Field(
        None,
        strict=False,
        description="blocks of the encoder that features.h5 shows, or another layer; null: all",
    )
    pooling: Literal["avg", "max", "flatten"] = Field(
        "avg", description="how a feature map becomes a row"
    )
    views: int = Field(1, ge=1, le=64, description="view 0 is plain, the others are augmented")
    runtime: Literal["keras", "onnxruntime", "openvino", "auto"] = Field(
        "onnxruntime", description="what computes the forward pass"
    )
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="precision of the forward pass"
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto", description="images per forward pass; changes no number"
    )

    @field_validator("encoders", "layers")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"names must differ, but got {', '.join(value)}: name each once")
        return value

    @model_validator(mode="after")
    def _of_several(self) -> Self:
        for field, given in (("weights", self.weights), ("weights_sha256", self.weights_sha256)):
            for name in given if isinstance(given, dict) else ():
                if name not in self.encoders:
                    near = difflib.get_close_matches(name, self.encoders, n=1)
                    hint = f": did you mean {near[0]}?" if near else ""
                    raise ValueError(
                        f"{field} must name encoders of extract.encoders, which are "
                        f"{', '.join(self.encoders)}, but got {name}{hint}"
                    )
        if len(self.encoders) == 1:
            return self
        if isinstance(self.weights, str) and self.weights not in ("imagenet", "random"):
            raise ValueError(
                "a weights file holds one encoder's weights, but extract.encoders names "
                f"{len(self.encoders)}: say whose they are, as in "
                f"{{{self.encoders[-1]}: {self.weights}}}; the others have imagenet"
            )
        if isinstance(self.weights_sha256, str):
            raise ValueError(
                "a hash is that of one file, but extract.encoders names "
                f"{len(self.encoders)}: say whose it is, as in {{{self.encoders[-1]}: <hash>}}"
            )
        if self.layers is not None:
            encoders = {layer.partition(".")[0] for layer in self.layers}
            if encoders != set(self.encoders):
                raise ValueError(
                    "with several encoders, layers must name at least one of each as "
                    f"<encoder>.<layer>, but got {', '.join(self.layers)}: name the layers of "
                    f"{', '.join(self.encoders)}"
                )
        return self

    @property
    def own_weights(self) -> tuple[str, str | None]:
        """The weights and their hash, of parameters that name one encoder."""
        (name,) = self.encoders
        weights, sha256 = self.weights, self.weights_sha256
        return (
            weights if isinstance(weights, str) else weights.get(name, "imagenet"),
            sha256.get(name) if isinstance(sha256, dict) else sha256,
        )

    @property
    def in_onnx(self) -> bool:
        """Whether the only encoder is an `.onnx` file, which a YAML file describes."""
        return self.own_weights[0].endswith((".yaml", ".yml"))

    @property
    def encoder(self) -> str:
        """The name of the encoder, or of several, joined by +."""
        return "+".join(self.encoders)

    def each(self) -> tuple[Self, ...]:
        """The same for each of the encoders alone."""
        if len(self.encoders) == 1:
            return (self,)
        layers = {
            name: None
            if self.layers is None
            else tuple(
                layer.removeprefix(f"{name}.")
                for layer in self.layers
                if layer.startswith(f"{name}.")
            )
            for name in self.encoders
        }
        return tuple(
            self.model_copy(update={"encoders": (name,), "layers": layers[name]})
            for name in self.encoders
        )
