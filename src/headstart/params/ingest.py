"""The ingest section: what is accepted as an image, and how the images are split."""

from typing import ClassVar

from pydantic import Field

from headstart.params.base import Section
from headstart.params.split import SplitParams


class IngestParams(Section):
    """What is accepted as an image, and how the images are split."""

    rarely_changed: ClassVar = frozenset({"min_images_per_split", "keep_pixels"})
    no_longer: ClassVar = {"max_file_mb": "always 1000"}

    split: SplitParams = Field(default_factory=SplitParams)
    min_images_per_split: int = Field(
        2, ge=1, description="warn of a class that has fewer images in a split"
    )
    max_rejected_fraction: float = Field(
        0.05, ge=0, le=1, description="stop where more of the files are rejected"
    )
    max_pixels: int = Field(
        100_000_000, gt=0, description="images of more pixels, width x height, are rejected"
    )
    keep_pixels: bool = Field(
        True,
        description="keep input pixels in the cache; if not, pack and extract decode again",
    )
    near_duplicate_bits: int = Field(
        4, ge=0, le=8, description="near duplicates differ in at most this many of 64 hash bits"
    )
