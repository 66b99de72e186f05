"""The image section: how a decoded image becomes input pixels."""

from typing import Literal

from pydantic import ConfigDict, Field

from headstart.params.base import Section


class ImageParams(Section):
    """How a decoded image becomes the square that the backbone sees."""

    # DVC's run cache leaves keys named `size` out of its comparison, wherever they stand: under
    # that name in params.yaml, a changed size would bring back the old features.
    model_config = ConfigDict(populate_by_name=True)

    size: int = Field(
        224, alias="size_px", ge=16, le=2048, description="side of the square in pixels"
    )
    resampling: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field("bicubic")
    fit: Literal["stretch", "crop", "pad"] = Field(
        "stretch", description="stretch to the square, crop the centre, or pad with black"
    )
