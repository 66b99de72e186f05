"""The train section: how the winner is made into a model."""

from typing import Literal

from pydantic import Field

from headstart.params.base import Section


class FineTuneParams(Section):
    """Training the backbone's last layers from pixels, after the head."""

    enabled: bool = Field(False)


class TrainParams(Section):
    """How the best head becomes models/model.h5."""

    on: Literal["train", "train+validation"] = Field("train")
    seeds: int = Field(1, ge=1, le=32, description="heads trained from so many seeds")
    fine_tune: FineTuneParams = Field(default_factory=FineTuneParams)
