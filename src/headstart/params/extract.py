"""The extract section: which encoder, which of its layers, run how."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from headstart.params.base import Section


class ExtractParams(Section):
    """What turns an image into a feature row."""

    rarely_changed: ClassVar = frozenset({"batch_size"})
    renamed: ClassVar = {"backbone": "encoders", "layer": "layers"}

    encoders: str = Field(
        "efficientnet-lite0", min_length=1, description="the encoder: `headstart encoders` lists"
    )
    weights: str = Field(
        "imagenet", min_length=1, description="imagenet, random, or the path of a weights file"
    )
    weights_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="what a weights file must hash to"
    )
    layers: tuple[str, ...] | None = Field(
        None,
        min_length=1,
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

    @field_validator("encoders", mode="before")
    @classmethod
    def _one_encoder(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if len(value) != 1:
            raise ValueError(
                f"one encoder must be named, but got {len(value)}: queue an experiment for each, "
                "`dvc exp run --queue -S extract.encoders=NAME`; they share the feature cache"
            )
        return value[0]

    @field_validator("layers", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("layers")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"layers must differ, but got {', '.join(value)}: name each once")
        return value

    @property
    def encoder(self) -> str:
        """The name of the encoder."""
        return self.encoders
