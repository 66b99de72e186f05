"""The image section: how a decoded image becomes input pixels."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from headstart.params.base import Section

Resampling = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class ImageParams(Section):
    """How a decoded image becomes the pixels that the encoder sees."""

    # DVC's run cache leaves keys named `size` out of its comparison, wherever they stand: under
    # that name in params.yaml, a changed size would bring back the old features.
    model_config = ConfigDict(populate_by_name=True)
    rarely_changed: ClassVar = frozenset({"resampling"})

    size: int = Field(
        224, alias="size_px", ge=16, le=2048, description="width and height of the input, in pixels"
    )
    resampling: Resampling = Field("bicubic", description="filter with which images are resized")
    fit: Literal["stretch", "crop", "pad"] = Field(
        "stretch", description="stretch both sides to size_px, crop the centre, or pad with black"
    )
