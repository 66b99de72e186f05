"""Sections that say which images there are and how they are read: image, data, ingest, pack."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from headstart.params.base import Section

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


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


class DataParams(Section):
    """Where the images come from."""

    source: str = Field(
        "data/sources/animal-silhouettes.yaml",
        min_length=1,
        description="spec file, folder of class folders, archive, WebDataset folder or URL",
    )
    class_names: Literal["checked", "as_given"] = Field(
        "checked", description="as_given: classes may be called train or test, or Cat and cat"
    )
    max_archive_gb: float = Field(50.0, gt=0, description="most bytes an archive may unpack to")
    max_archive_members: int = Field(5_000_000, gt=0)


class SplitParams(Section):
    """Fractions of the images in each split; they sum to 1."""

    train: float = Field(0.7, gt=0, lt=1)
    validation: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.15, gt=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(
                f"train + validation + test must be 1, but got {self.train} + {self.validation} + "
                f"{self.test} = {total:.6g}: change one of them"
            )
        return self


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


class PackParams(Section):
    """Which splits are kept as decoded pixels for training from pixels."""

    splits: tuple[Split, ...] = Field(("train", "validation"), strict=False)
    compression: Literal["none", "gzip", "lzf"] = Field("none")
