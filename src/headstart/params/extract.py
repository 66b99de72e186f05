"""The extract section: which backbone, which of its layers, run how."""

from typing import Annotated, Literal

from pydantic import Field

from headstart.params.base import Section


class ExtractParams(Section):
    """What turns an image into a feature row."""

    backbone: str = Field("efficientnet-lite0", min_length=1)
    weights: str = Field(
        "imagenet", min_length=1, description="imagenet, random, or the path of a weights file"
    )
    weights_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    layer: str | None = Field(None, description="a named layer; none: the backbone's last")
    pooling: Literal["avg", "max", "flatten"] = Field("avg")
    views: int = Field(1, ge=1, le=64, description="view 0 is plain, the others are augmented")
    runtime: Literal["keras", "onnxruntime", "openvino", "auto"] = Field("onnxruntime")
    precision: Literal["float32", "bfloat16", "auto"] = Field("float32")
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto", description="images a forward pass; changes no number"
    )
