"""The ingest.split section, and the names of the splits."""

from typing import Literal, Self

from pydantic import Field, model_validator

from headstart.params.base import Section

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class SplitParams(Section):
    """Fractions of the images in each split; they sum to 1."""

    train: float = Field(0.7, gt=0, lt=1, description="heads and the encoder are trained on it")
    validation: float = Field(0.15, gt=0, lt=1, description="chooses the head and stops training")
    test: float = Field(0.15, gt=0, lt=1, description="read by evaluate alone")

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(
                f"train + validation + test must be 1, but got {self.train} + {self.validation} + "
                f"{self.test} = {total:.6g}: change one of them"
            )
        return self
