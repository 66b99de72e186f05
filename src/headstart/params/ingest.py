"""The ingest section: what is accepted as an image, and how the images are split."""

from pydantic import Field

from headstart.params.base import Section
from headstart.params.split import SplitParams


class IngestParams(Section):
    """What is accepted as an image, and how the images are split."""

    split: SplitParams = Field(default_factory=SplitParams)
    min_images_per_split: int = Field(2, ge=1, description="of each class, in each split")
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)
    max_pixels: int = Field(100_000_000, gt=0, description="width x height, checked by header")
    max_file_mb: float = Field(1000.0, gt=0, description="a file is read whole into memory")
    near_duplicate_bits: int = Field(
        4, ge=0, le=8, description="perceptual hashes that differ in at most this many of 64 bits"
    )
